"""The causal context pool: class maps freed, so the claim, from the background that a class is mostly seen on.

A map that spreads over the water around a boat has learned the context of boats, not the boat. CI-CAM (Shao et al.)
reads this as confounding: context decides which objects are in a picture and what their features look like. The remedy
is P(Y | do(X)), a mean over contexts, and the method approximates it (their eq. 5) by one picture of context a class:
a pool Q of class maps, gathered while training, that enhances the features X,

    X_e = X + X * A(Q_pi),     A a 1x1 convolution, pi the predicted class

One classifier looks twice: at X, to find pi, and at X_e, for the answer. What is drawn is a combination of the class
maps M of all classes, the k-th most probable one weighed by gamma(k) (eq. 3):

    H = sum_k gamma(k) M_(k)

NL-CCAM (Yang et al., 2020) is the same without a pool: non-local blocks in the network, one look, and the combination.

What of the authors' networks is not rebuilt. Backbones are timm's, with weights of ImageNet as they come:

* VGG16: the stage `stage5` is the network without its last max-pool, 14x14x512 for 224 pixels. The authors also put
  LeakyReLU(0.2) for every ReLU, and on ImageNet two more 3x3 convolutions (512 to 1024 to 1024) behind it.
* InceptionV3: the stage `stage4` of `inception_v3` is their cut at Mixed_6e, 17x17x768 for 299 pixels.

Their non-local blocks stand behind pooling layers. Give those by timm's names of the layers: in VGG16 `features.9`,
`features.16` and `features.23` (CUB; ImageNet without the first), in InceptionV3 `Pool2`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsol_lib import distributed
from wsol_lib.backbones import Backbone, in_eval_mode, to_grid
from wsol_lib.types import Batch, Localization, Localizer, RecipeError, nearest

Rule = Literal["ci_quadratic", "nlccam_quadratic", "linear", "sum_1"]
Reading = Literal["paper", "code"]


def rank_weights(n: int, rule: Rule, last: int = 20) -> Tensor:
    """gamma (eq. 3): the weight of the class that is ranked first, second, ..., n-th by its logit.

    * "ci_quadratic" (CI-CAM on CUB): -((k - 1) / (n - 1))^2, from 0 for the predicted class to -1 for the last one.
      The class itself is not drawn; improbable ones are taken away.
    * "nlccam_quadratic" (NL-CCAM): the first half falls from 1 to 0, the second from 0 to -1, both squared. Of an odd
      n the class in the middle belongs to the first half.
    * "linear": from 1 to -1.
    * "sum_1" (CI-CAM on ImageNet): 1 for the predicted class, and for the `last` ranks from 0 to -2 / last, -1 in all.
      Where there are no more than `last` classes, those are the lower half.

    Returns:
        Float[n].

    Raises:
        RecipeError: there is no such rule; the text names the nearest.
    """
    if rule == "ci_quadratic":
        return -torch.linspace(0, 1, n).square()
    if rule == "nlccam_quadratic":
        half = (n + 1) // 2
        return torch.cat([torch.linspace(1, 0, half).square(), -torch.linspace(0, 1, n - half).square()])
    if rule == "linear":
        return torch.linspace(1, -1, n)
    if rule == "sum_1":
        tail = last if last < n else n // 2
        return torch.cat([torch.ones(1), torch.zeros(n - 1 - tail), -torch.linspace(0, 2, tail) / tail])
    raise RecipeError(f"there is no rule {rule!r} to combine class maps{nearest(rule, get_args(Rule))}")


def combine(cams: Tensor, logits: Tensor, rule: Rule) -> Tensor:
    """The class maps of a picture as one: H = sum_k gamma(k) M_(k) (eq. 3), then H - min H.

    Args:
        cams: Float[B,K,h,w], M of every class; gradients pass.
        logits: Float[B,K], which rank the classes. Of equal ones the first class leads.
        rule: of `rank_weights`.

    Returns:
        Float[B,h,w], at least 0; neither divided by its maximum nor resized.
    """
    ranks = logits.argsort(dim=1, descending=True, stable=True).argsort(1)  # [B,K], 0 for the predicted class
    gamma = rank_weights(logits.shape[1], rule).to(cams)[ranks]  # [B,K]
    combined = torch.einsum("bk,bkhw->bhw", gamma, cams)
    return combined - combined.amin((1, 2), keepdim=True)


def standardize(maps: Tensor) -> Tensor:
    """Each map minus its mean over places, divided by sqrt(variance + 1e-5), the variance biased: Float[K,h,w].

    It is what a fresh BatchNorm2d does in training with one picture of K channels. A map of zeros stays zero.
    """
    return F.layer_norm(maps, maps.shape[1:])


class CausalContextPool(nn.Module):
    """Q: for every class one map of where its pictures spoke for it, and the step from X to X_e.

    `pool` Float[K,h,w] starts at zero and is a buffer, so checkpoints hold it: without it the method is another one.

    Args:
        classes: number K of classes.
        height, width: of the maps.
        rate: lambda of eq. 7.
        channels: C of the features that `forward` enhances; None for a pool that is only updated.
        faithful_to: which pictures count. "code": those whose predicted class is the label. "paper": all, for their
            predicted class, as eq. 7 has no filter; what it leaves open, several pictures of a class, is as in the
            code.
    """

    pool: Tensor

    def __init__(
        self,
        classes: int,
        height: int,
        width: int,
        rate: float,
        *,
        channels: int | None = None,
        faithful_to: Reading = "code",
    ) -> None:
        super().__init__()
        self.rate, self.faithful_to = rate, faithful_to
        self.register_buffer("pool", torch.zeros(classes, height, width))
        self.project = None if channels is None else nn.Conv2d(classes, channels, 1)
        self._fresh: Tensor | None = None  # no buffer: a distributed wrapper would overwrite it with that of rank 0

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """X_e = X + X * A, where A = W[:, pi] Q_pi + b.

        That is the 1x1 convolution of a map of K channels which are zero but for the channel pi, at 1/K of the cost.

        Args:
            features: X, Float[B,C,h,w].
            classes: pi, Int[B]: the predicted classes, in training too.

        Returns:
            Float[B,C,h,w].

        Raises:
            ValueError: the pool was made without `channels`.
            RecipeError: the maps have another size than the pool.
        """
        if self.project is None:
            raise ValueError("a pool that enhances features needs to know their channels=")
        self._check_size(features)
        weight = self.project.weight[:, classes, 0, 0].T  # [B,C]
        attention = torch.einsum("bc,bhw->bchw", weight, self.pool[classes])  # [B,C,h,w]
        return features + features * (attention + self.project.bias[:, None, None])  # type: ignore[index]

    @torch.no_grad()
    def collect(self, cams: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add up, class by class, the maps of the pictures that count; they wait for `step`.

        Args:
            cams: M of the first look, Float[B,K,h,w].
            logits: of the first look, Float[B,K].
            labels: Int[B].

        Raises:
            RecipeError: the maps have another size than the pool.
        """
        self._check_size(cams)
        predicted = logits.argmax(1)  # [B]
        counts = predicted == labels if self.faithful_to == "code" else torch.ones_like(labels, dtype=torch.bool)
        own = cams[counts, predicted[counts]].to(self.pool)  # [b,h,w]
        fresh = torch.zeros_like(self.pool) if self._fresh is None else self._fresh
        self._fresh = fresh.index_add(0, predicted[counts], own)  # [K,h,w]

    @torch.no_grad()
    def step(self) -> None:
        """Q <- bn(Q + lambda bn(V)), V what was collected since the last step, on all processes (eq. 7).

        Every class is standardised again, also one that V says nothing about; with more than one process, every
        process must call it.
        """
        fresh = distributed.global_sum(torch.zeros_like(self.pool) if self._fresh is None else self._fresh)
        self.pool.copy_(standardize(self.pool + self.rate * standardize(fresh)))
        self._fresh = None

    def update(self, cams: Tensor, logits: Tensor, labels: Tensor) -> None:
        """`collect` and `step`: what one batch does to the pool. No gradient passes."""
        self.collect(cams, logits, labels)
        self.step()

    def _check_size(self, maps: Tensor) -> None:
        there, here = tuple(maps.shape[-2:]), tuple(self.pool.shape[-2:])
        if there != here:
            raise RecipeError(
                f"the context pool holds maps of {here[0]} x {here[1]}, and these are {there[0]} x {there[1]}: "
                "give pictures of the size that the pool was made for"
            )


class NonLocal(nn.Module):
    """A block in which every place of a map looks at every other one (Wang et al., 2018), as the authors have it.

    x + bn(mix(softmax(q k^T) v)): q and k have an eighth of the channels, the softmax is not scaled, and the norm has
    weight and bias 0 at first, so that the network starts as it was without the block.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(1, channels // 8)
        self.query, self.key = nn.Conv2d(channels, narrow, 1), nn.Conv2d(channels, narrow, 1)
        self.value, self.mix = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Float[B,C,h,w] to Float[B,C,h,w]; memory grows with (h w)^2."""
        q, k, v = (part(x).flatten(2).transpose(1, 2) for part in (self.query, self.key, self.value))  # [B,hw,.]
        seen = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # [B,hw,C]
        return x + self.norm(self.mix(seen.transpose(1, 2).unflatten(2, x.shape[-2:])))


@contextmanager
def behind(
    backbone: Backbone, size: Sequence[int], blocks: Iterable[tuple[str, Callable[[Tensor], Tensor]]]
) -> Iterator[None]:
    """While this is open, the maps of some layers go through a function Float[B,C,h,w] -> Float[B,C,h,w] each.

    Args:
        backbone: whose network is run meanwhile.
        size: (height, width) of the pictures.
        blocks: of each, the name of a stage ("stage3") or of a layer in timm's network ("features.9"), and a function.

    Raises:
        RecipeError: there is no such stage or layer; the text names the nearest.
    """
    with ExitStack() as stack:
        for place, block in blocks:
            hook = partial(_through, network=backbone.network, size=(size[0], size[1]), place=place, block=block)
            stack.callback(backbone.layer(place).register_forward_hook(hook).remove)
        yield


def _through(
    _: nn.Module,
    __: Any,
    out: Tensor,
    *,
    network: nn.Module,
    size: tuple[int, int],
    place: str,
    block: Callable[[Tensor], Tensor],
) -> Tensor:
    """The output of a layer after a function of maps, in the layer's own layout."""
    grid, back = to_grid(out, network, size, place)
    return back(block(grid))


@torch.no_grad()
def _glimpse(backbone: Backbone, size: Sequence[int]) -> dict[str, Tensor]:
    """The maps of a black picture of (height, width), in eval mode."""
    with in_eval_mode(backbone):
        return backbone(torch.zeros(1, 3, *size, device=backbone.mean.device))


def _widths(backbone: Backbone, places: Sequence[str]) -> list[int]:
    """Channels of the maps behind the named layers."""
    size = backbone.network.pretrained_cfg["input_size"][1:]
    seen: dict[str, Tensor] = {}
    with behind(backbone, size, [(place, partial(seen.setdefault, place)) for place in places]):
        _glimpse(backbone, size)
    late = [place for place in places if place not in seen]
    if late:
        raise RecipeError(f"no block can be put behind {late[0]!r}: it comes after the last stage that is asked for")
    return [seen[place].shape[1] for place in places]


class NonLocalBackbone(nn.Module):
    """A backbone with non-local blocks behind some of its layers. Its own weights, and their names, stay.

    Args:
        backbone: its deepest stage is what a classifier will pool.
        places: names of stages ("stage3") or of layers in timm's network ("features.9").

    Raises:
        RecipeError: there is no such layer, or it comes after the deepest stage.
    """

    def __init__(self, backbone: Backbone, places: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.places = backbone, tuple(places)
        self.stage = list(backbone.channels)[-1]
        self.channels = backbone.channels[self.stage]
        self.blocks = nn.ModuleList(NonLocal(width) for width in _widths(backbone, places))

    def normalize(self, images: Tensor) -> Tensor:
        """Pictures in [0,1] as the network takes them, of the same shape."""
        return self.backbone.normalize(images)

    def forward(self, inputs: Tensor) -> Tensor:
        """X: normalised pictures Float[B,3,H,W] to the map Float[B,C,h,w] of the deepest stage."""
        with behind(self.backbone, inputs.shape[-2:], zip(self.places, self.blocks, strict=True)):
            return self.backbone.features(inputs)[self.stage]

    def map_size(self, size: int) -> tuple[int, int]:
        """(h, w) of the map of a square picture with sides of `size` pixels."""
        height, width = _glimpse(self.backbone, (size, size))[self.stage].shape[-2:]
        return height, width


class CamHead(nn.Linear):
    """The classifier on the global average of a map, and the maps of all its classes."""

    def forward(self, features: Tensor) -> Tensor:
        """Logits Float[B,K] of Float[B,C,h,w]."""
        return super().forward(features.mean((2, 3)))

    def cams(self, features: Tensor) -> Tensor:
        """M = W X, Float[B,K,h,w]: no bias, no ReLU; the mean of a map plus the bias is the logit."""
        return F.conv2d(features, self.weight[:, :, None, None])


class NLCCAM(Localizer):
    """Combinational class activation maps on a network with non-local blocks (Yang et al., 2020).

    One map a picture, whatever its class: labels are not used to localize.

    Args:
        backbone: its deepest stage is pooled.
        classes: number K of classes.
        non_local: behind which stages or layers the blocks are put; none gives plain combinational maps.
        rule: of `rank_weights`.

    Raises:
        RecipeError: there is no such layer or rule.
    """

    uses_labels = False

    def __init__(
        self, backbone: Backbone, classes: int, *, non_local: Sequence[str], rule: Rule = "nlccam_quadratic"
    ) -> None:
        super().__init__()
        rank_weights(classes, rule)  # refuses an unknown rule now, not after the training
        self.classes, self.rule = classes, rule
        self.network = NonLocalBackbone(backbone, non_local)
        self.head = CamHead(self.network.channels, classes)

    def answer(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits Float[B,K] and class maps Float[B,K,h,w] of normalised pictures."""
        features = self.network(inputs)  # [B,C,h,w]
        return self.head(features), self.head.cams(features)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label: `classification`."""
        logits = self.head(self.network(self.network.normalize(batch["image"])))  # [B,K]
        return {"classification": F.cross_entropy(logits, batch["label"])}

    def new_parts(self) -> list[nn.Module]:
        """The classifier. The authors' scripts give its rate, and a `backbone_rate` that multiplies it for the rest."""
        return [self.head]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Logits and the combined map of each picture, at the size of the grid; labels are not looked at."""
        logits, cams = self.answer(self.network.normalize(images))
        return Localization(logits, combine(cams, logits, self.rule))


class Branches(NamedTuple):
    """What the classifier says at its two looks."""

    features: Tensor  # X, Float[B,C,h,w]
    plain_logits: Tensor  # of X, Float[B,K]
    logits: Tensor  # of X_e, Float[B,K]
    cams: Tensor  # of X_e, Float[B,K,h,w]


class CICAM(NLCCAM):
    """NL-CCAM with a causal context pool between two looks of one classifier (Shao et al.).

    Args:
        backbone: its deepest stage is pooled.
        classes: number K of classes.
        size: side in pixels of the square pictures that the network sees, in training and in use: it decides the size
            of the maps in the pool.
        non_local: behind which stages or layers the blocks are put.
        rate: lambda, how fast the pool learns. The paper has .01; the authors' scripts .002 (VGG16) and .015
            (InceptionV3) on CUB, .001 on ImageNet.
        rule: of `rank_weights`.
        faithful_to: of `CausalContextPool`; None is the default there.

    Raises:
        RecipeError: there is no such layer or rule.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        *,
        size: int,
        non_local: Sequence[str],
        rate: float = 0.01,
        rule: Rule = "ci_quadratic",
        faithful_to: Reading | None = None,
    ) -> None:
        super().__init__(backbone, classes, non_local=non_local, rule=rule)
        self.faithful_to = faithful_to
        height, width = self.network.map_size(size)
        self.pool = CausalContextPool(
            classes, height, width, rate, channels=self.network.channels, faithful_to=faithful_to or "code"
        )

    def branches(self, inputs: Tensor) -> Branches:
        """Both looks at normalised pictures Float[B,3,H,W]."""
        features = self.network(inputs)  # [B,C,h,w]
        plain_logits = self.head(features)  # [B,K]
        enhanced = self.pool(features, plain_logits.argmax(1))  # [B,C,h,w]
        return Branches(features, plain_logits, self.head(enhanced), self.head.cams(enhanced))

    def answer(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits Float[B,K] and class maps Float[B,K,h,w] of the second look."""
        seen = self.branches(inputs)
        return seen.logits, seen.cams

    def study(self, inputs: Tensor, labels: Tensor) -> Branches:
        """Both looks; in training mode the pool collects the class maps of the first one, for the end of the step."""
        seen = self.branches(inputs)
        if self.training:
            with torch.no_grad():
                self.pool.collect(self.head.cams(seen.features), seen.plain_logits, labels)
        return seen

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the image label at both looks: `plain` and `enhanced`."""
        return both_looks(self.study(self.network.normalize(batch["image"]), batch["label"]), batch["label"])

    def after_step(self) -> None:
        """The pool learns from the whole batch, over all its parts and processes."""
        self.pool.step()


def both_looks(seen: Branches, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy at the look at X, `plain`, and at the look at X_e, `enhanced`."""
    return {
        "plain": F.cross_entropy(seen.plain_logits, labels),
        "enhanced": F.cross_entropy(seen.logits, labels),
    }
