"""A token for space: localization gets a query of its own, so that it need not share one with classification.

A map read from the attention of a classifier is good for what it was made for, and losses that bend it into the shape
of an object bend the classifier too. SAT (Wu et al., ICCV 2023) adds a token to the sequence,

    [class token (and registers), N patches, spatial token],

whose only work is to ask every token, in the last blocks, whether it belongs to the object. With H heads and
S = Q K^T / sqrt(d), d the width of a head,

    m = sigmoid(mean over heads of S[spatial, :])     one row for all heads: the mean is taken before the sigmoid
    out = (softmax(S) * m) V                          every column is scaled by its m, and no row is renormalised
    M = mean over the last blocks of m, its columns of patches

What m leaves out no other token can see, so cross-entropy teaches m to keep what tells the class. How much that is, it
leaves open: two losses say what share of a batch is foreground, and that every place should be sure. With M* a smoothed
M (eq. 7 prints sums where the code has means):

    L = L_cls + |mean over the batch of M - lambda| + mean of M* (1 - M*)

Scaling columns after the softmax is scaling values: (softmax(S) * m) V = softmax(S) (m * V). So attention stays fused,
and only the row of the spatial token is computed beside it. The head is that of TS-CAM.

What the released code does otherwise than the paper prints: the kernel that smooths M ("sigma 6") is nearly the
identity (`smoothing_kernel`); the cosine schedules are made and never applied; tokens and positions decay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from wsol_lib.backbones import Backbone, in_eval_mode, to_grid
from wsol_lib.distributed import global_mean
from wsol_lib.maps import normalize
from wsol_lib.methods.ts_cam import TransformerClassifier, class_rows, patch_head
from wsol_lib.methods.wend import binary_entropy, weighted_entropy
from wsol_lib.types import Batch, Localization, RecipeError, check_choice

Query = Literal["token", "class", "attention"]
Product = Literal["after", "before"]
Start = Literal["random", "zeros", "class"]
Sharpen = Literal["normalization", "entropy", "weighted-entropy"]
Kernel = Literal["code", "gaussian"]
Names = Literal["patches", "class"]
Preset = Literal["a", "b", "c", "d", "e"]
CHOICES: dict[str, tuple[str | None, ...]] = {
    "query": get_args(Query),
    "product": get_args(Product),
    "names": get_args(Names),
    "initial": get_args(Start),
    "sharpen": get_args(Sharpen),
    "kernel": (*get_args(Kernel), None),
    "frozen": get_args(Preset),
}
EMBEDDINGS = ("patch_embed.", "pos_embed", "cls_token", "reg_token", "dist_token", "norm_pre.")
WEIGHTED: dict[str, Any] = {"alpha": 0.1, "gamma": 6.0, "tau1": 0.3, "tau2": 0.3}  # WEND's best for CUB


def smoothing_kernel(kind: Kernel) -> Tensor:
    """The 3x3 kernel of M*, Float64[3,3], sums to 1.

    * "code": the mass of a standard normal in three bins over +-(6 + 13/6) deviations, the square root of the outer
      product, normalised: .805440 in the centre, .046012 at edges, .002628 at corners. The "6" is an extent, no sigma.
    * "gaussian": that of sigma 6, nearly flat: .1132, .1116, .1101.
    """
    extent = 6 + 13 / 6
    bins = torch.linspace(-extent, extent, 4, dtype=torch.float64)
    offsets = torch.arange(-1, 2, dtype=torch.float64)
    line = torch.special.ndtr(bins).diff().sqrt() if kind == "code" else (-offsets.square() / (2 * 6**2)).exp()
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def smooth(maps: Tensor, kernel: Kernel | None) -> Tensor:
    """M*: maps Float[B,h,w] or Float[B,1,h,w] through a `smoothing_kernel`, zero beyond the border: Float[B,1,h,w].

    None leaves them as they are.
    """
    maps = maps.reshape(len(maps), 1, *maps.shape[-2:])
    if kernel is None:
        return maps
    with torch.autocast(maps.device.type, enabled=False):  # half precision cannot tell .997 from 1
        return F.conv2d(maps.float(), smoothing_kernel(kernel).to(maps.device, torch.float32)[None, None], padding=1)


def normalization_loss(maps: Tensor, kernel: Kernel | None = "code") -> Tensor:
    """mean M* (1 - M*): 0 where every place is sure, 1/4 where none is.

    Args:
        maps: M in [0,1], Float[B,h,w] or Float[B,1,h,w].
        kernel: of `smooth`. Zeros beyond the border keep a map of ones from being sure there.

    Returns:
        The scalar mean over pictures and places; with several processes, over this one's.
    """
    smoothed = smooth(maps, kernel)
    return (smoothed * (1 - smoothed)).mean()


def batch_area_loss(maps: Tensor, target: float, per_image: bool = False) -> Tensor:
    """|mean M - target| with the mean over the whole batch, so that objects may differ in size.

    With several processes the batch is that of all of them together, and the gradient is the one that a lone process
    would have. (The released code averages over one GPU's part on ImageNet, over all on CUB.) With gradient
    accumulation it is one part of the batch, over all processes.

    Args:
        maps: M in [0,1], Float[B,h,w] or Float[B,1,h,w].
        target: lambda, the share of the batch that is foreground.
        per_image: the mean of |mean of a picture's M - target| instead (Table 13): every object is to be of one size.

    Returns:
        A scalar, the same on every process.
    """
    areas = maps.flatten(1).mean(1)  # [B]
    return global_mean((areas - target).abs()) if per_image else (global_mean(areas) - target).abs()


class SpatialQueryAttention(nn.Module):
    """timm's attention in which one token says how much every token is seen.

    The layers are those of the attention it replaces, under the same names.

    Args:
        attention: timm's; its layers are shared, not copied.
        query: the place of the asking token in the sequence: -1 for a spatial token, 0 for the class token.
        product: m scales columns "after" the softmax or logits "before" it, softmax(S * m) V (Table 10).

    Raises:
        RecipeError: the attention has a gate.
    """

    def __init__(self, attention: Attention, query: int = -1, product: Product = "after") -> None:
        super().__init__()
        if getattr(attention, "gate", None) is not None:
            raise RecipeError("SAT does not know gated attention: choose a vision transformer without it")
        self.query, self.product = query, product
        self.num_heads, self.scale = attention.num_heads, attention.scale
        self.qkv, self.q_norm, self.k_norm = attention.qkv, attention.q_norm, attention.k_norm
        self.foreground = nn.Sigmoid()  # a module, so that `foregrounds` can catch m
        self.attn_drop, self.norm = attention.attn_drop, getattr(attention, "norm", nn.Identity())
        self.proj, self.proj_drop = attention.proj, attention.proj_drop

    def forward(self, x: Tensor, attn_mask: None = None, is_causal: bool = False) -> Tensor:
        """Tokens Float[B,N,D] to Float[B,N,D]; timm's blocks hand over a mask, which must not be set."""
        if attn_mask is not None or is_causal:
            raise NotImplementedError("SpatialQueryAttention sees all tokens: it takes no mask")
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # [B,H,N,d]
        q, k = self.q_norm(q), self.k_norm(k)
        asked = torch.einsum("bhd,bhnd->bn", q[:, :, self.query] * (self.scale / self.num_heads), k)  # [B,N]
        m = self.foreground(asked.float()).to(v)[:, None, :, None]  # [B,1,N,1]
        k, v = (k, v * m) if self.product == "after" else (k * m, v)
        dropout = self.attn_drop.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)  # [B,H,N,d]
        return self.proj_drop(self.proj(self.norm(seen.transpose(1, 2).flatten(2))))


@contextmanager
def foregrounds(blocks: Iterable[Any]) -> Iterator[list[Tensor]]:
    """While this is open, each block that runs appends its m, Float[B,N], to the list.

    Args:
        blocks: of a timm vision transformer, with a `SpatialQueryAttention`.
    """
    found: list[Tensor] = []
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.attn.foreground.register_forward_hook(lambda _, __, m: found.append(m)))
        yield found


def frozen_parts(preset: Preset, depth: int, blocks: int) -> tuple[str, ...]:
    """What a preset of Table 8 freezes of a network with `depth` blocks, the last `blocks` of them spatial.

    The letters are the paper's, their meaning is not: the text could not be had, and this is a ladder that frees ever
    less. The head and the spatial token learn in all.

    * "a": nothing is frozen.
    * "b": the embeddings: patches, positions, class token.
    * "c": also the blocks before the spatial ones.
    * "d": also the second halves of the spatial blocks (their MLPs), so that only attention learns.
    * "e": the whole network.

    Returns:
        Beginnings of timm's names of the parameters.
    """
    early = tuple(f"blocks.{i}." for i in range(depth - blocks))
    late = tuple(f"blocks.{i}.{part}" for i in range(depth - blocks, depth) for part in ("norm2.", "mlp.", "ls2."))
    ladder = {"a": (), "b": EMBEDDINGS, "c": EMBEDDINGS + early, "d": EMBEDDINGS + early + late, "e": ("",)}
    return ladder[preset]


class SAT(TransformerClassifier):
    """A vision transformer with a spatial token in its last blocks. One map a picture, whatever its class.

    Args:
        backbone: as for `TransformerClassifier`; its last blocks are changed, so no other method should hold it.
        classes: number K of classes.
        start: a trained vision transformer like the backbone, such as `TSCAM`, whose weights are copied before the
            blocks are changed, the head's too if it is of the same kind: two stages (Table 13).
        blocks: how many of the last blocks are spatial (Table 9).
        query: what the map is made of. "token": a spatial token of its own. "class": the class token asks, no token is
            added (Table 11). "attention": no m and no product; M is the class token's attention in the last blocks,
            each picture's stretched to [0,1], under the same losses (Table 5; how the paper stretched it is not known).
        names: who names the class, the "patches" by `patch_head` or the "class" token by a linear layer.
        product: of `SpatialQueryAttention` (Table 10).
        initial: the spatial token starts at "random" (truncated normal, .02), "zeros", or as the "class" token. Its
            position is random.
        area: lambda, the share of a batch that is foreground.
        area_weight, sharpen_weight: prices of the two losses; 0 leaves a loss out (Table 2).
        per_image: of `batch_area_loss` (Table 13).
        sharpen: the second loss: "normalization", or the mean "entropy" or "weighted-entropy" of M* (Table 12), the
            weights those of `WEIGHTED`.
        kernel: of `smooth` (Table 2).
        frozen: of `frozen_parts` (Table 8). Drop-path, if the backbone has it, stays.
        decay_tokens: weight decay falls on tokens and positions too, as in the released code.

    Raises:
        RecipeError: the backbone is no plain vision transformer of timm, or not that of `start`; there is no such
            choice, or a number is out of its range.
    """

    uses_labels = False

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        start: TransformerClassifier | None = None,
        blocks: int = 3,
        query: Query = "token",
        names: Names = "patches",
        product: Product = "after",
        initial: Start = "random",
        area: float = 0.25,
        area_weight: float = 1.0,
        per_image: bool = False,
        sharpen: Sharpen = "normalization",
        sharpen_weight: float = 1.0,
        kernel: Kernel | None = "code",
        frozen: Preset = "a",
        decay_tokens: bool = False,
    ) -> None:
        chosen = {"query": query, "names": names, "product": product, "initial": initial}
        for name, value in {**chosen, "sharpen": sharpen, "kernel": kernel, "frozen": frozen}.items():
            check_choice("SAT", name, value, CHOICES[name])
        head = patch_head(classes) if names == "patches" else lambda width: nn.Linear(width, classes)
        super().__init__(backbone, head, decay_tokens)
        if not 0 <= area <= 1 or min(area_weight, sharpen_weight) < 0:
            raise RecipeError(
                "SAT's area is a share of the batch in [0,1], and the weights of its losses are not negative; "
                f"these are {area}, {area_weight} and {sharpen_weight}"
            )
        depth = len(self.network.blocks)
        if not 1 <= blocks <= depth:
            raise RecipeError(f"SAT takes 1 to {depth} blocks of {backbone.name}, not {blocks}")
        self.blocks, self.query, self.names, self.kernel = blocks, query, names, kernel
        self.area, self.area_weight, self.per_image = area, area_weight, per_image
        self.sharpen, self.sharpen_weight = sharpen, sharpen_weight
        if start is not None:
            self._copy(start)
        self._freeze(frozen_parts(frozen, depth, blocks))
        own = {"token": self._start(initial), "position": self._start("random")} if query == "token" else {}
        self.spatial = nn.ParameterDict(own)
        if query != "attention":
            for block in self.network.blocks[-blocks:]:
                block.attn = SpatialQueryAttention(block.attn, -1 if query == "token" else 0, product)

    def _copy(self, start: TransformerClassifier) -> None:
        try:
            self.network.load_state_dict(start.network.state_dict())
            if type(self.head) is type(start.head):
                self.head.load_state_dict(start.head.state_dict())
        except RuntimeError as error:
            raise RecipeError(f"SAT cannot start from {type(start).__name__}: other network or classes") from error

    def _freeze(self, parts: tuple[str, ...]) -> None:
        for name, parameter in self.network.named_parameters():
            if name.startswith(parts):
                parameter.requires_grad_(False)

    def _start(self, initial: Start) -> Tensor:
        token = self.network.cls_token.detach().clone()  # [1,1,D]
        return {"random": trunc_normal_(torch.empty_like(token), std=0.02), "zeros": 0 * token, "class": token}[initial]

    def tokens(self, inputs: Tensor) -> Tensor:
        """Normalised pictures Float[B,3,H,W] to the final tokens but for the spatial one, Float[B,P+N,D]."""
        if not self.spatial:
            return self.network.forward_features(inputs)
        spatial = (self.spatial["token"] + self.spatial["position"]).expand(len(inputs), -1, -1)  # [B,1,D]
        with self.network.norm_pre.register_forward_pre_hook(lambda _, given: torch.cat([given[0], spatial], 1)):
            return self.network.forward_features(inputs)[:, :-1]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits Float[B,K] and M Float[B,h,w] in [0,1] of pictures Float[B,3,H,W]."""
        inputs = self.backbone.normalize(images)
        catch = class_rows if self.query == "attention" else foregrounds
        with catch(self.network.blocks[-self.blocks :]) as rows:
            tokens = self.tokens(inputs)  # [B,P+N,D]
        height, width = inputs.shape[2:]
        features, _ = to_grid(tokens, self.network, (height, width), "last")  # [B,D,h,w]
        logits = self.head(tokens[:, 0]) if self.names == "class" else self.head(features).mean((2, 3))  # [B,K]
        if self.query == "attention":
            return logits, normalize(self.attention(rows, inputs))
        m = torch.stack(rows).mean(0)[:, self.network.num_prefix_tokens : tokens.shape[1]]  # [B,N]
        return logits, m.unflatten(1, features.shape[2:])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label, `classification`; `area`; and the loss that `sharpen` names."""
        logits, maps = self.look(batch["image"])
        losses = {"classification": F.cross_entropy(logits, batch["label"])}
        if self.area_weight:
            losses["area"] = self.area_weight * batch_area_loss(maps, self.area, self.per_image)
        if self.sharpen_weight:
            losses[self.sharpen] = self.sharpen_weight * self._unsure(maps)
        return losses

    def _unsure(self, maps: Tensor) -> Tensor:
        if self.sharpen == "normalization":
            return normalization_loss(maps, self.kernel)
        p = smooth(maps, self.kernel)
        return binary_entropy(p).mean() if self.sharpen == "entropy" else weighted_entropy(p, **WEIGHTED)

    def new_parts(self) -> list[nn.Module]:
        """The head, and the spatial token with its position."""
        return [self.head, self.spatial]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Logits and M, not smoothed, at the size of the grid of patches; labels are not looked at."""
        with in_eval_mode(self):
            return Localization(*self.look(images))
