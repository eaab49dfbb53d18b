"""A vision transformer that a laptop can train: its patches are the places of a pretrained, frozen CNN.

A transformer from nothing needs millions of photographs. So `vit_lite0_s16` looks at a picture through the first five
stages of EfficientNet-Lite0 (ImageNet, from the pip package; never trained here): a token is one place of their map, a
vector of 112 numbers for each 16 x 16 pixels. Blocks, class token, positions and all the rest are timm's own. timm has
such hybrids of its own (`vit_small_r26_s32_224`); Conformer, one of the backbones of SAT, mixes the two throughout.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn

from wsol_lib.backbones import create
from wsol_lib.types import Frozen

default_cfgs = generate_default_cfgs(
    {
        "vit_lite0_s16.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "mean": (127 / 255,) * 3,
            "std": (128 / 255,) * 3,
            "first_conv": "",
            "classifier": "head",
        }
    }
)


class Lite0Stem(nn.Module):
    """The first five stages of EfficientNet-Lite0, frozen: Float[B,3,H,W], normalised, to Float[B,112,H/16,W/16]."""

    def __init__(self) -> None:
        super().__init__()
        weights = "random" if torch.get_default_device().type == "meta" else "lite0-pip"  # meta: shapes, no values
        trunk = create(weights=weights, stages=["stage4"])
        trunk.network.blocks = trunk.network.blocks[:5]
        trunk.network.conv_head = trunk.network.bn2 = nn.Identity()
        self.trunk = Frozen(trunk)

    def forward(self, inputs: Tensor) -> Tensor:
        """The map of descriptors that become tokens."""
        found: dict[str, Tensor] = self.trunk.module.features(inputs)
        return found["stage4"]


@register_model
def vit_lite0_s16(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Six blocks of width 192 over the stem; 2.7 million parameters that train, and 0.7 million that do not."""
    small = {"patch_size": 1, "embed_dim": 192, "depth": 6, "num_heads": 3}
    embed = partial(HybridEmbed, backbone=Lite0Stem())
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer, "vit_lite0_s16", pretrained, **{**small, "embed_layer": embed, **options}
    )
    return model
