"""Views wrap a data set: augmentation, triplets, pseudo supervision, a choice for each picture.

What is random is a pure function of (seed, epoch, index), so that it is the same for any number of workers and ranks.
Views nest; `Triplets` and `Choices` go outside `Augmented`, since they ask it for frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsol_lib.data.dataset import WsolDataset
from wsol_lib.data.geometry import Frame
from wsol_lib.pseudo import Threshold, boxes_from_maps, disturb

ASPECT = (3 / 4, 4 / 3)  # width / height of a random window, log-uniform
ATTEMPTS = 10  # windows drawn before the whole picture is taken


class Stream(IntEnum):
    """Keeps the draws of different views apart where they share a seed."""

    AUGMENT, PARTNER, CHOICE, NOISE = range(4)


def generator(stream: Stream, *key: int) -> np.random.Generator:
    """A generator that depends on nothing but its key, for example (seed, epoch, index)."""
    return np.random.default_rng([int(stream), *key])


class Wrapped(WsolDataset):
    """A data set seen through another; whatever a view does not change comes from the data set inside.

    The epoch lies in shared memory: `set_epoch` reaches data loader workers that are already running
    (`persistent_workers=True`). Call it between epochs, before the loader is iterated.
    """

    def __init__(self, dataset: WsolDataset, *, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        self.supervision, self.size, self.view = dataset.supervision, dataset.size, dataset.view
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def epoch(self) -> int:
        """The epoch that the draws are for; 0 at first."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for this epoch, here and in all views inside."""
        self._epoch.fill_(epoch)
        if isinstance(self.dataset, Wrapped):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def picture(self, i: int) -> Image.Image:
        """The original picture, RGB."""
        return self.dataset.picture(i)

    def _boxes(self, i: int) -> Tensor:
        return self.dataset._boxes(i)

    def _mask(self, i: int) -> Tensor | None:
        return self.dataset._mask(i)

    def image_size(self, i: int) -> tuple[int, int]:
        """(width, height) of the original picture i."""
        return self.dataset.image_size(i)

    def frame(self, i: int, draw: int = 0) -> Frame:
        """How picture i is resized and cropped; `draw` numbers further, independent draws for the same picture."""
        return self.dataset.frame(i, draw) if isinstance(self.dataset, Wrapped) else self.dataset.frame(i)

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """The item of the data set inside, in the given frame."""
        return self.dataset.item(i, frame)

    def subset(self, indices: Sequence[int] | Tensor) -> WsolDataset:
        """Refused: a view draws by position, so take the subset first and wrap it then."""
        raise ValueError(f"take the subset of the data set first, then wrap it in {type(self).__name__}")


class Augmented(Wrapped):
    """Random crop and flip for training.

    Args:
        dataset: what to augment; its `size` is set aside.
        resize: the whole picture is squashed to resize x resize first (the usual 256 before a crop of 224).
        crop: side of the square that the network sees.
        flip: mirror half of the pictures.
        random_resized: instead of `resize`, (low, high) part of the picture's area that the crop covers; the window's
            aspect ratio is drawn too, from 3/4 to 4/3 (Szegedy et al., 2015).
        seed: of the draws.

    Raises:
        ValueError: not exactly one of resize and random_resized, a crop that does not fit, or a data set with a view.
    """

    def __init__(
        self,
        dataset: WsolDataset,
        *,
        resize: int | None = None,
        crop: int,
        flip: bool = True,
        random_resized: tuple[float, float] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, seed=seed)
        if (resize is None) == (random_resized is None):
            raise ValueError("give either resize= (whole picture, then crop) or random_resized= (range of areas)")
        if resize is not None and resize < crop:
            raise ValueError(f"a crop of {crop} does not fit into a picture resized to {resize}")
        if random_resized is not None and not 0 < random_resized[0] <= random_resized[1] <= 1:
            raise ValueError(f"random_resized is a range of areas (low, high) in (0, 1], not {random_resized}")
        if dataset.view is not None:
            raise ValueError("a data set loaded with view= is for evaluation: load it without to augment it")
        inner: WsolDataset = dataset
        while isinstance(inner, Wrapped):
            if isinstance(inner, Triplets | Choices):
                raise ValueError(f"wrap {type(inner).__name__} around Augmented, not the other way round")
            inner = inner.dataset
        self.resize, self.crop, self.flip, self.random_resized = resize, crop, flip, random_resized

    def frame(self, i: int, draw: int = 0) -> Frame:
        """The random frame of picture i in this epoch."""
        rng = generator(Stream.AUGMENT, self.seed, self.epoch, i, draw)
        width, height, left, top = self._window(rng, i)
        return Frame(width, height, (left, top, self.crop, self.crop), self.flip and bool(rng.integers(2)))

    def _window(self, rng: np.random.Generator, i: int) -> tuple[int, int, int, int]:
        """Size of the whole picture after resizing, and left and top of the crop in it."""
        width = height = self.resize or 0
        if self.random_resized is not None:
            part = random_part(rng, self.image_size(i), self.random_resized)
            width, height = (max(self.crop, round(self.crop / p)) for p in part)
        left, top = (int(rng.integers(side - self.crop + 1)) for side in (width, height))
        return width, height, left, top


def random_part(
    rng: np.random.Generator, image_size: tuple[int, int], area: tuple[float, float]
) -> tuple[float, float]:
    """Width and height of a random window, as parts of the picture's; the whole picture if none fits."""
    width, height = image_size
    for _ in range(ATTEMPTS):
        pixels = rng.uniform(*area) * width * height
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        part = (math.sqrt(pixels * aspect) / width, math.sqrt(pixels / aspect) / height)
        if max(part) <= 1:
            return part
    return 1.0, 1.0


class Triplets(Wrapped):
    """Adds `positive`, a picture of the same class, and `negative`, one of another class, both drawn uniformly.

    Each is framed by a draw of its own. A class with one picture is its own positive.

    Raises:
        ValueError: the data set has one class only.
    """

    def __init__(self, dataset: WsolDataset, *, seed: int = 0) -> None:
        super().__init__(dataset, seed=seed)
        labels = dataset.labels.numpy()
        self._order = np.argsort(labels, kind="stable")  # positions, class by class
        self._first = np.searchsorted(labels[self._order], np.arange(labels.max() + 2))  # where each class begins
        if (np.diff(self._first) > 0).sum() < 2:
            raise ValueError("triplets need pictures of at least two classes")

    def partners(self, i: int) -> tuple[int, int]:
        """Positions of the positive and the negative of picture i in this epoch."""
        rng = generator(Stream.PARTNER, self.seed, self.epoch, i)
        label = int(self.labels[i])
        start, end = self._first[label : label + 2].tolist()
        same = self._order[start:end]
        same = same[same != i] if len(same) > 1 else same
        other = int(rng.integers(len(self) - (end - start)))
        return int(rng.choice(same)), int(self._order[other if other < start else other + end - start])

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """The item of picture i with `positive` and `negative` Float[3,H,W]."""
        item = super().item(i, frame)
        for role, (key, j) in enumerate(zip(("positive", "negative"), self.partners(i), strict=True)):
            item[key] = self.frame(j, draw=1 + 2 * i + role).image(self.picture(j))
        return item


class PseudoSupervision(Wrapped):
    """Adds pseudo labels made by an earlier stage, moved by the same resize, crop and flip as the picture.

    Args:
        boxes: N tensors Float[M,4], half-open, in pixels of the original pictures; given as `pseudo_boxes`, cut at the
            crop (a box that lies outside becomes empty: x0 = x1 or y0 = y1).
        maps: N maps Float[h,w] of the whole pictures, at any size; given as `pseudo_maps`.

    Raises:
        ValueError: neither is given, or one has another length than the data set.
    """

    def __init__(
        self,
        dataset: WsolDataset,
        *,
        boxes: Sequence[Tensor] | None = None,
        maps: Sequence[Tensor] | Tensor | None = None,
    ) -> None:
        super().__init__(dataset)
        given = [part for part in (boxes, maps) if part is not None]
        if not given or any(len(part) != len(dataset) for part in given):
            raise ValueError(f"pseudo supervision needs boxes or maps, one for each of the {len(dataset)} pictures")
        self.pseudo_boxes, self.pseudo_maps = boxes, maps

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """The item of picture i with `pseudo_boxes` Float[M,4] and `pseudo_maps` Float[H,W], as far as given."""
        item = super().item(i, frame)
        if self.pseudo_boxes is not None:
            _, _, width, height = frame.window
            moved = frame.boxes(self.pseudo_boxes[i], self.image_size(i))
            item["pseudo_boxes"] = torch.minimum(moved.clamp(min=0), moved.new_tensor([width, height, width, height]))
        if self.pseudo_maps is not None:
            item["pseudo_maps"] = frame.map(self.pseudo_maps[i])
        return item


class PseudoBoxes(PseudoSupervision):
    """Adds `pseudo_boxes`: one drawn from the map that an earlier stage made of each picture, or none.

    Args:
        maps: N maps Float[h,w] of the whole pictures, at any size.
        threshold: of `pseudo.boxes_from_maps`.

    Raises:
        ValueError: there is not one map for each picture, or no such threshold.
    """

    def __init__(self, dataset: WsolDataset, maps: Tensor, *, threshold: Threshold = "otsu") -> None:
        if len(maps) != len(dataset):
            raise ValueError(f"pseudo boxes need a map for each of the {len(dataset)} pictures, not {len(maps)}")
        super().__init__(dataset, boxes=boxes_from_maps(maps, dataset.image_sizes, threshold))


class DisturbedBoxes(PseudoSupervision):
    """Adds `pseudo_boxes` with a known share of wrong ones, for experiments on noise; they start from **true** boxes.

    Each picture has one: that of its largest object, with its published corners, or with probability `noise` a box of
    the same size at a random place (`pseudo.disturb`). It is drawn once for each picture, and is the same in every
    epoch.

    Args:
        dataset: loaded with `supervision="oracle"`.
        noise: share of boxes to put elsewhere, in [0,1]. The boxes that are wrong at a low share are wrong at a higher.
        seed: of the draws.

    Raises:
        SupervisionError: the data set shows no boxes.
        ValueError: noise is outside [0,1].
    """

    def __init__(self, dataset: WsolDataset, *, noise: float, seed: int = 0) -> None:
        boxes = [
            disturb(largest(dataset.boxes(i)), dataset.image_size(i), noise, generator(Stream.NOISE, seed, i))[None]
            for i in range(len(dataset))
        ]
        super().__init__(dataset, boxes=boxes)


def largest(boxes: Tensor) -> Tensor:
    """The box Float[4] of the largest area among Float[N,4]; the first of equal ones."""
    areas: Tensor = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return boxes[areas.argmax()]


class Choices(Wrapped):
    """Adds `view`, a number in 0..n-1 drawn uniformly for each picture and epoch: which teacher, which augmentation.

    Args:
        dataset: what to wrap.
        choices: how many, or one augmentation of the same data set for each: the picture is then framed by the chosen.

    Raises:
        ValueError: fewer than one choice, or augmentations of another length.
    """

    def __init__(self, dataset: WsolDataset, choices: int | Sequence[Augmented], *, seed: int = 0) -> None:
        super().__init__(dataset, seed=seed)
        self.framers = () if isinstance(choices, int) else tuple(choices)
        self.n = choices if isinstance(choices, int) else len(choices)
        if self.n < 1 or any(len(framer) != len(dataset) for framer in self.framers):
            raise ValueError("choices need a count of at least 1, or augmentations of the same data set")

    def set_epoch(self, epoch: int) -> None:
        """Draw anew for this epoch, here, in all views inside and in the augmentations to choose from."""
        super().set_epoch(epoch)
        for framer in self.framers:
            framer.set_epoch(epoch)

    def choice(self, i: int) -> int:
        """What is drawn for picture i in this epoch."""
        return int(generator(Stream.CHOICE, self.seed, self.epoch, i).integers(self.n))

    def frame(self, i: int, draw: int = 0) -> Frame:
        """The frame of the chosen augmentation, or of the data set inside."""
        return self.framers[self.choice(i)].frame(i, draw) if self.framers else super().frame(i, draw)

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """The item of picture i with `view`."""
        return super().item(i, frame) | {"view": self.choice(i)}
