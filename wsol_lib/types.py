"""The words that every part of the library speaks: Batch, Localization, Scores, Localizer, and the errors."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

MANY_WORDS = 30  # more than this are not listed in an error


class WsolError(Exception):
    """A mistake that the reader can mend. Its text is one sentence that says what is wrong and what to do."""


class DataMissing(WsolError):
    """The data set is not on this machine; the text says how to get it."""


class DataCorrupt(WsolError):
    """A file of the data set is damaged; the text names the file."""


class SupervisionError(WsolError):
    """A training split was asked for boxes or masks, which weak supervision forbids."""


class RecipeError(WsolError):
    """A recipe has an unknown or ill-typed key; the text names the key and the nearest right one."""


class CheckpointError(WsolError):
    """A checkpoint belongs to another method or class count, or the file is damaged."""


def nearest(word: str, words: Iterable[str]) -> str:
    """The end of a sentence that offers the nearest of `words`, or all of them where none is near and they are few."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (there are: {', '.join(words)})" if 0 < len(words) <= MANY_WORDS else ""


def check_choice(method: str, name: str, value: str | None, known: Collection[str | None]) -> None:
    """Refuse an argument of a method that is none of the known ones.

    Raises:
        RecipeError: it is not; the text lists them.
    """
    if value not in known:
        raise RecipeError(f"{method} has no {name} {value!r}: choose one of {', '.join(map(str, known))}")


class Batch(TypedDict, total=False):
    """What a data loader gives a method. Only `image`, `label` and `index` are always there.

    Boxes are `[x0, y0, x1, y1]` in pixels of the transformed image, with the corners that the data set publishes.
    """

    image: Tensor  # Float[B,3,H,W] in [0,1]
    label: Tensor  # Int[B]
    index: Tensor  # Int[B], position in the data set
    view: Tensor  # Int[B], which augmentation and teacher
    positive: Tensor  # Float[B,3,H,W], another image of the same class
    negative: Tensor  # Float[B,3,H,W], an image of another class
    caption: list[str]
    pseudo_boxes: list[Tensor]  # Float[N,4] an image
    pseudo_maps: Tensor  # Float[B,H,W], moved by the same crop and flip as the image
    boxes: list[Tensor]  # Float[N,4] an image; evaluation only
    masks: Tensor  # Bool[B,H,W]; evaluation only
    ignore: Tensor  # Bool[B,H,W], pixels that pixel scores leave out; evaluation only


@dataclass
class Localization:
    """Where a method says the object is: a raw score map, predicted boxes, or both.

    `maps` are finite and in any range; only `metrics.Protocol` and the figures normalise them. `boxes` are half-open
    `[x0, y0, x1, y1)` in pixels of the image the method was given, best first, with `scores` in the same order.

    Raises:
        ValueError: neither maps nor boxes are given, or the parts disagree on the batch size.
    """

    logits: Tensor | None = None  # Float[B,K]
    maps: Tensor | None = None  # Float[B,h,w]
    boxes: list[Tensor] | None = None  # Float[N,4] an image
    scores: list[Tensor] | None = None  # Float[N] an image

    def __post_init__(self) -> None:
        if self.maps is None and self.boxes is None:
            raise ValueError("a Localization needs maps or boxes")
        lengths = {len(part) for part in (self.logits, self.maps, self.boxes, self.scores) if part is not None}
        if len(lengths) > 1:
            raise ValueError(f"the parts of a Localization disagree on the batch size: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.maps if self.maps is not None else self.boxes)  # type: ignore[arg-type]

    def cpu(self) -> Localization:
        """The same localization with every tensor detached and on the CPU."""
        move: Callable[[Any], Any] = lambda x: x.detach().cpu() if isinstance(x, Tensor) else x  # noqa: E731
        lists = [None if x is None else [move(t) for t in x] for x in (self.boxes, self.scores)]
        return Localization(move(self.logits), move(self.maps), *lists)


@dataclass(frozen=True)
class Scores:
    """Localization scores in per cent; what is not known is NaN. Meaning of each: `metrics.Evaluator.compute`."""

    max_box_acc: float
    max_box_acc_v2: float
    gt_known: float
    top1_loc: float
    top5_loc: float
    gt_known_multi: float
    top5_loc_multi: float
    top1_cls: float
    top5_cls: float
    tau: float
    n: int
    pxap: float = math.nan
    piou: float = math.nan
    recall: float = math.nan
    calibration_error: float = math.nan

    def as_dict(self) -> dict[str, float]:
        """The scores as a plain dictionary, for JSON."""
        return asdict(self)


class Frozen(nn.Module):
    """A network that others lean on and that never learns: a teacher, an encoder.

    It stays in eval mode, takes no gradient in its weights (gradients pass through it), moves with `.to(device)`,
    and appears neither in `parameters()` nor in `state_dict()` of the method that holds it.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = (module.eval().requires_grad_(False),)

    @property
    def module(self) -> Any:
        """The network itself."""
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network says."""
        return self.module(*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Frozen:
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def train(self, mode: bool = True) -> Frozen:
        """Nothing: the network stays in eval mode."""
        self.training = False
        return self


class Localizer(nn.Module):
    """The one interface that every method fulfils; `engine.fit` and `metrics` know nothing else of a method."""

    needs: tuple[str, ...] = ()  # batch keys beyond image, label and index; fit refuses a data view that lacks one
    uses_labels: bool = True  # False: maps are class-agnostic and `labels` is ignored

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named, already weighted scalar losses; the total is their sum."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, so that a distributed wrapper sees the step."""
        return self.losses(batch)

    def after_step(self) -> None:
        """Called once per optimiser step: context pools and other running state."""

    def new_parts(self) -> Iterable[nn.Module]:
        """Parts that start from nothing, such as a head: they learn at `head_rate` times the recipe's rate."""
        return ()

    def param_groups(self, recipe: Any) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser: what there was before, then the `new_parts`, as far as they learn.

        Args:
            recipe: the `engine.Stage` being trained.
        """
        new = set(chain.from_iterable(part.parameters() for part in self.new_parts()))
        learned = [p for p in self.parameters() if p.requires_grad]
        old, fresh = [p for p in learned if p not in new], [p for p in learned if p in new]
        groups = [{"params": old, "lr_scale": 1.0}, {"params": fresh, "lr_scale": recipe.head_rate}]
        return [group for group in groups if group["params"]]

    @torch.no_grad()
    def localize(self, images: Tensor, labels: Tensor | None = None) -> Localization:
        """Where the object of class `labels` is; without labels, of the predicted class.

        Args:
            images: Float[B,3,H,W] in [0,1].
            labels: Int[B] or None.
        """
        raise NotImplementedError
