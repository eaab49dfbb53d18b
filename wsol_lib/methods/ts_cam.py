"""Attention as a map: where the class token of a vision transformer looks, coupled with what each patch says.

In every block the class token asks all tokens, and the softmax of its logits says how much of each one it takes. Those
rows know no class. TS-CAM (Gao et al., ICCV 2021) lets the patches classify instead of the class token: their final
tokens, put back on the grid, go through a 3x3 convolution to K maps whose means are the logits. So there is a map of
semantics for every class, and the two are multiplied:

    A = sum over layers of the mean over heads of softmax(q_cls K^T / sqrt(d)), its columns of patches
    M_c = A * S_c,     logit_c = mean over (x, y) of S_c(x, y)

Nothing but the image label is learned from, and A is not needed before there is something to localize: training costs
what the plain transformer costs. The coupled map has no ReLU; S_c may be negative.

One row of N is all that is needed of the attention, so the N x N matrix is never made: `class_rows` catches queries
and keys as they pass, and leaves timm's fused attention as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from wsol_lib.backbones import Backbone, in_eval_mode
from wsol_lib.types import Batch, Localization, Localizer, RecipeError


def roll_up(rows: Sequence[Tensor]) -> Tensor:
    """A: the attention of one query to all tokens, averaged over heads and summed over layers.

    Args:
        rows: of each layer Float[B,H,N], after the softmax.

    Returns:
        Float[B,N]; with all N tokens it sums to the number of layers.
    """
    return torch.stack([row.mean(1) for row in rows]).sum(0)


def couple(attention: Tensor, semantics: Tensor, labels: Tensor) -> Tensor:
    """M = A * S_c, the semantic map of each picture's class where its class token looks.

    Args:
        attention: A, Float[B,h,w].
        semantics: S, Float[B,K,h,w].
        labels: Int[B].

    Returns:
        Float[B,h,w], of any sign.
    """
    return attention * semantics[torch.arange(len(labels), device=labels.device), labels]


@contextmanager
def class_rows(blocks: Iterable[Any]) -> Iterator[list[Tensor]]:
    """While this is open, each block that runs appends the attention row of its class token, Float[B,H,N], to the list.

    The rows are timm's own, normed queries and keys included, but for dropout. Gradients pass.

    Args:
        blocks: of a timm vision transformer with a class token, which is the first of its N tokens.
    """
    rows: list[Tensor] = []
    queries: list[Tensor] = []

    def keep_row(attention: Attention, _: nn.Module, __: Any, keys: Tensor) -> None:
        logits = attention.scale * queries.pop() @ keys.transpose(2, 3)  # [B,H,1,N]
        rows.append(logits.softmax(-1)[:, :, 0])

    with ExitStack() as stack:
        for attention in [block.attn for block in blocks]:
            stack.enter_context(attention.q_norm.register_forward_hook(lambda _, __, q: queries.append(q[:, :, :1])))
            stack.enter_context(attention.k_norm.register_forward_hook(partial(keep_row, attention)))
        yield rows


def check_transformer(backbone: Backbone) -> None:
    """Refuse a backbone whose class token's attention cannot be read.

    Raises:
        RecipeError: it is no plain vision transformer with a class token, or its final tokens are not asked for.
    """
    network = backbone.network
    if not (
        isinstance(network, VisionTransformer)
        and network.has_class_token
        and not isinstance(network.norm, nn.Identity)
        and all(isinstance(getattr(block, "attn", None), Attention) for block in network.blocks)
    ):
        raise RecipeError(
            f"{backbone.name} is no VisionTransformer of timm with a class token, a norm over its final tokens, and "
            "timm's own attention in every block: choose one such as deit_small_patch16_224, made anew for each method"
        )
    if "last" not in backbone.channels:
        raise RecipeError("this method reads the final tokens: create the backbone with stages=('last',)")


class TransformerClassifier(Localizer):
    """A vision transformer with a head; weight decay falls on its matrices and kernels alone.

    Args:
        backbone: a timm VisionTransformer with a class token, with the stage `last`; registers are fine.
        head: makes what turns tokens into logits, given their width.
        decay_tokens: weight decay falls on tokens and positions too, as in SAT's released code.

    Raises:
        RecipeError: the backbone is another network.
    """

    def __init__(self, backbone: Backbone, head: Callable[[int], nn.Module], decay_tokens: bool = False) -> None:
        super().__init__()
        check_transformer(backbone)
        self.backbone, self.decay_tokens = backbone, decay_tokens
        self.head = head(backbone.channels["last"])

    @property
    def network(self) -> Any:
        """timm's VisionTransformer."""
        return self.backbone.network

    def new_parts(self) -> list[nn.Module]:
        """The head."""
        return [self.head]

    def param_groups(self, recipe: Any) -> list[dict[str, Any]]:
        """As every method's, but biases, norms and (unless `decay_tokens`) tokens and positions do not decay.

        So has TS-CAM's code, and so means SAT's to: there the list of tokens is looked up in the wrong place and not
        found, so that they decay.
        """
        spare = (0, 1) if self.decay_tokens else (0, 1, 3)  # dimensions; a token and positions have three
        groups = []
        for group in super().param_groups(recipe):
            decayed = [p for p in group["params"] if p.ndim not in spare]
            spared = [p for p in group["params"] if p.ndim in spare]
            groups += [{**group, "params": decayed}, {**group, "params": spared, "weight_decay": 0.0}]
        return groups

    def attention(self, rows: Sequence[Tensor], images: Tensor) -> Tensor:
        """A of `roll_up` on the grid of the patches of Float[B,3,H,W]: Float[B,h,w]."""
        grid = self.network.patch_embed.dynamic_feat_size(images.shape[2:])
        return roll_up(rows)[:, self.network.num_prefix_tokens :].unflatten(1, grid)


class ClassToken(TransformerClassifier):
    """The plain vision transformer: its class token classifies, and the map is where that token looks, A.

    What DeiT is trained as, and where TS-CAM and SAT start from. One map a picture, whatever its class.

    Args:
        backbone: as for `TransformerClassifier`.
        classes: number K of classes.
    """

    uses_labels = False

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__(backbone, lambda width: nn.Linear(width, classes))

    def logits(self, images: Tensor) -> Tensor:
        """Float[B,3,H,W] to Float[B,K]."""
        return self.head(self.network.forward_features(self.backbone.normalize(images))[:, 0])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label: `classification`."""
        return {"classification": F.cross_entropy(self.logits(batch["image"]), batch["label"])}

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Logits and A at the size of the grid of patches; labels are not looked at."""
        with in_eval_mode(self), class_rows(self.network.blocks) as rows:
            logits = self.logits(images)  # [B,K]
        return Localization(logits, self.attention(rows, images))


def patch_head(classes: int) -> Callable[[int], nn.Module]:
    """What makes a head of the width D of tokens: a 3x3 convolution to K maps, whose means are the logits."""
    return lambda width: nn.Conv2d(width, classes, 3, padding=1)


class TSCAM(TransformerClassifier):
    """Token semantic coupled attention maps (Gao et al., 2021): a vision transformer whose patches classify.

    Args:
        backbone: as for `TransformerClassifier`.
        classes: number K of classes.
        decay_tokens: as for `TransformerClassifier`.
    """

    def __init__(self, backbone: Backbone, classes: int, decay_tokens: bool = False) -> None:
        super().__init__(backbone, patch_head(classes), decay_tokens)

    def semantics(self, images: Tensor) -> Tensor:
        """S: what each patch of Float[B,3,H,W] says for each class, Float[B,K,h,w]; its means are the logits."""
        return self.head(self.backbone(images)["last"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label: `classification`."""
        logits = self.semantics(batch["image"]).mean((2, 3))  # [B,K]
        return {"classification": F.cross_entropy(logits, batch["label"])}

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both halves of the map in eval mode: A Float[B,h,w] and S Float[B,K,h,w] of pictures Float[B,3,H,W]."""
        with in_eval_mode(self), class_rows(self.network.blocks) as rows:
            semantics = self.semantics(images)
        return self.attention(rows, images), semantics

    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Logits and the coupled map of each label, or of the predicted class, at the size of the grid of patches."""
        attention, semantics = self.look(images)
        logits = semantics.mean((2, 3))  # [B,K]
        classes = logits.argmax(1) if labels is None else labels
        return Localization(logits, couple(attention, semantics, classes))
