"""Which epoch to keep, chosen without a single box: by what the maps of held-out training pictures look like.

A method that is trained too long may localize worse while its loss still falls. The epoch that localizes best could be
read off the boxes of a test set, but that is cheating: such a choice is an upper bound. A score of the map alone
(`SCORES`) may tell instead, on training pictures that the method did not learn from.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wsol_lib import distributed
from wsol_lib.data.dataset import WsolDataset, by_class
from wsol_lib.data.geometry import Frame
from wsol_lib.data.views import Augmented, Choices, Wrapped
from wsol_lib.inference import localized
from wsol_lib.maps import normalize
from wsol_lib.training import Callback, History
from wsol_lib.types import Localizer, RecipeError, nearest


def _completeness(maps: Tensor) -> Tensor:
    from wsol_lib.methods.weight_map import completeness

    return completeness(maps)


SCORES: dict[str, Callable[[Tensor], Tensor]] = {"completeness": _completeness}
"""Scores that need no label, by name: maps Float[B,h,w] in [0,1] -> Float[B], the larger the better."""


def hold_out(labels: Tensor, share: float, seed: int, stage: str) -> tuple[list[int], list[int]]:
    """Which pictures a stage trains on, and which it holds out: two sorted lists of positions.

    Of every class the same share is held out, rounded to whole pictures, but never all of them. The draw depends on
    (seed, stage) alone.

    Args:
        labels: Int[N].
        share: in [0,1).
        stage: its name.
    """
    generator = torch.Generator().manual_seed(distributed.key(seed, "hold-out", stage))
    held: list[int] = []
    for members in by_class(labels, torch.randperm(len(labels), generator=generator)):
        held += members[: max(0, min(round(share * len(members)), len(members) - 1))].tolist()
    return sorted(set(range(len(labels))) - set(held)), sorted(held)


class HeldOut(Wrapped):
    """Pictures with their labels, framed without chance; boxes and masks are out of reach, whatever the data set.

    Args:
        dataset: the held-out pictures.
        trained_on: the training data in all their views. Where these augment, a picture is resized as there and cut at
            its centre; the whole picture is squashed to the crop's size where the augmentation draws the area.
    """

    def __init__(self, dataset: WsolDataset, trained_on: WsolDataset | None = None) -> None:
        super().__init__(dataset)
        self.augmented = None if trained_on is None else _augmentation(trained_on)

    def frame(self, i: int, draw: int = 0) -> Frame:
        """How picture i is resized and cropped; the same in every epoch."""
        if self.augmented is None:
            return super().frame(i, draw)
        crop = self.augmented.crop
        side = self.augmented.resize or crop
        corner = round((side - crop) / 2)
        return Frame(side, side, (corner, corner, crop, crop))

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """Picture i with its label and index, and nothing else."""
        return {"image": frame.image(self.picture(i)), "label": int(self.labels[i]), "index": i}


def _augmentation(viewed: WsolDataset) -> Augmented | None:
    """The outermost augmentation among the views of a data set; the first one where there is a choice."""
    while isinstance(viewed, Wrapped):
        if isinstance(viewed, Augmented):
            return viewed
        viewed = viewed.framers[0] if isinstance(viewed, Choices) and viewed.framers else viewed.dataset
    return None


class KeepBest(Callback):
    """Keeps the weights of the epoch whose maps of held-out pictures score best, and puts them back at the end.

    After an epoch every held-out picture is localized, with its label where the method uses labels, and never with a
    box. A map outside [0,1] is min-max normalised, one inside is taken as it is, unless `stretch`. The mean score goes
    into the history under the score's name, and as `shown_area` the mean part of the frame where a map reaches a tenth
    of its maximum. Of two equal epochs the earlier one is kept.

    An epoch counts only where the shown area lies inside `area`: a map that is the same everywhere, however faint,
    fills its own box completely and would win. If none does, the last weights stay and a warning says so.

    Args:
        held_out: training pictures that the method does not learn from.
        score: a key of `SCORES`.
        area: (low, high), the mean shown areas between which a map says anything, in [0,1].
        stretch: min-max every map first, so that a haze over everything does not hide what stands out of it. The weight
            map's paper scores masks as they are, its authors' later code stretches them.
        every: score only every so many epochs.
        patience: end the training so many epochs after the kept one, if none was better; None never does.
        batch_size, workers: of the loader.

    Attributes:
        kept_epoch: the best epoch so far, from 0; None before any counts.
        best: its mean score.

    Raises:
        ValueError: no held-out pictures, an unknown score, or numbers that make no sense.
    """

    def __init__(
        self,
        held_out: HeldOut,
        *,
        score: str = "completeness",
        area: tuple[float, float] = (0.05, 0.9),
        stretch: bool = False,
        every: int = 1,
        patience: int | None = None,
        batch_size: int = 64,
        workers: int = 0,
    ) -> None:
        self.held_out, self.score, self.area, self.every, self.patience = held_out, score, tuple(area), every, patience
        self.stretch, self.batch_size, self.workers = stretch, batch_size, workers
        self.best, self.kept_epoch = -math.inf, None  # type: float, int | None
        self.weights: dict[str, Tensor] | None = None
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        if not len(self.held_out):
            yield "KeepBest has no held-out pictures: set the stage's key hold_out, or raise it"
        if self.score not in SCORES:
            yield f"KeepBest knows no score {self.score!r}{nearest(self.score, SCORES)}"
        if len(self.area) != 2 or not 0 <= self.area[0] < self.area[1] <= 1:
            yield f"area of KeepBest is (low, high) with 0 <= low < high <= 1, not {self.area}"
        if self.every < 1 or (self.patience is not None and self.patience < 1):
            yield f"every and patience of KeepBest count epochs, at least 1; they are {self.every} and {self.patience}"

    def after_epoch(self, epoch: int, localizer: Localizer, history: History) -> bool:
        """Score the maps of this epoch; True once patience is at an end."""
        if (epoch + 1) % self.every:
            return False
        score, area = self.measure(localizer)
        history.epochs[-1] |= {self.score: score, "shown_area": area}
        if self.area[0] <= area <= self.area[1] and score > self.best:
            self.best, self.kept_epoch = score, epoch
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in localizer.state_dict().items()}
        waited = 0 if self.kept_epoch is None else epoch - self.kept_epoch
        return self.patience is not None and waited >= self.patience

    def measure(self, localizer: Localizer) -> tuple[float, float]:
        """Mean score and mean shown area of the maps of all held-out pictures; the same on every rank."""
        mine = []
        for batch, found in localized(localizer, self.held_out, self.batch_size, self.workers, progress=False):
            if found.maps is None:
                raise RecipeError(f"KeepBest scores maps, but {type(localizer).__name__} gives boxes alone")
            maps = normalize(found.maps) if self.stretch else in_unit_range(found.maps)
            mine.append(torch.stack([batch["index"], SCORES[self.score](maps), shown_area(maps)]).double())  # [3,B]
        table = torch.cat([part for parts in distributed.gather_objects(mine) for part in parts], dim=1)  # [3,N]
        _, score, area = table[:, table[0].argsort()].mean(1).tolist()  # in one order for any number of processes
        return score, area

    def after_fit(self, localizer: Localizer, history: History) -> None:
        """Put the weights of the kept epoch back."""
        history.kept_epoch = self.kept_epoch
        if self.weights is not None:
            localizer.load_state_dict(self.weights)
        elif distributed.rank() == 0:
            warnings.warn(
                f"KeepBest kept no epoch, so the last weights stay: in none did the shown area lie between "
                f"{self.area[0]} and {self.area[1]}",
                stacklevel=2,
            )

    def state(self) -> dict[str, Any]:
        """The kept epoch with its score and weights."""
        return {"best": self.best, "kept_epoch": self.kept_epoch, "weights": self.weights}

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.best, self.kept_epoch, self.weights = state["best"], state["kept_epoch"], state["weights"]


def in_unit_range(maps: Tensor) -> Tensor:
    """Maps Float[B,h,w] in [0,1]: those that lie there as they are, the others min-max normalised one by one."""
    inside = ((maps >= 0) & (maps <= 1)).flatten(1).all(1)
    return torch.where(inside[:, None, None], maps, normalize(maps))


def shown_area(maps: Tensor) -> Tensor:
    """The part Float[B] of each map Float[B,h,w] in [0,1] that reaches a tenth of its maximum; 0 for a zero map."""
    highest = maps.amax((1, 2), keepdim=True)
    return ((maps >= highest / 10) & (maps > 0)).double().mean((1, 2))
