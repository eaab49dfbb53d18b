"""What every data set is: pictures with labels, and boxes and masks that only an evaluation may see."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal
from typing import Protocol as Interface

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from wsol_lib.data.geometry import Frame
from wsol_lib.types import Batch, DataCorrupt, RecipeError, SupervisionError

Supervision = Literal["image", "oracle"]


class View(Interface):
    """What decides a picture's frame: a `metrics.Protocol`, or anything with these two functions."""

    def frame(self, image_size: tuple[int, int]) -> Frame:
        """The frame of a picture of `image_size` (width, height)."""

    def to_frame(self, boxes: Sequence[Tensor], image_sizes: Tensor) -> list[Tensor]:
        """Boxes in original pixels, moved into the frames of pictures of `image_sizes` Int[n,2] (width, height)."""


class WsolDataset(Dataset):
    """Pictures with image-level labels; boxes and masks for evaluation.

    A training split refuses to show boxes and masks unless made with `supervision="oracle"`: the rule of weak
    supervision is kept by code. A reader of a real data set fills the fields and gives `picture`, `_boxes`, `_mask`.

    Attributes:
        name, split: as given to `load`.
        classes: names of the K classes.
        labels: Int[N].
        image_ids: N names, in the official order.
        image_sizes: Int[N,2], (width, height) of the original pictures.
        view: decides the frame; None with `size` None gives the original picture.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: Tensor
    image_ids: tuple[str, ...]
    image_sizes: Tensor
    supervision: Supervision = "image"
    size: int | None = None
    view: View | None = None

    def picture(self, i: int) -> Image.Image:
        """The original picture, RGB."""
        raise NotImplementedError

    def _boxes(self, i: int) -> Tensor:
        raise NotImplementedError

    def _mask(self, i: int) -> Tensor | None:
        return None

    @property
    def may_see_boxes(self) -> bool:
        """Whether boxes and masks may be read: never in training, unless for an oracle."""
        return self.split != "train" or self.supervision == "oracle"

    def _guard(self) -> None:
        if not self.may_see_boxes:
            raise SupervisionError(
                f"the training split of {self.name} gives no boxes and no masks: weak supervision is labels only "
                '(for an upper bound, load it with supervision="oracle")'
            )

    def boxes(self, i: int) -> Tensor:
        """Boxes of picture i, Float[M,4], in pixels of the original picture, with the published corners."""
        self._guard()
        return self._boxes(i)

    def mask(self, i: int) -> Tensor | None:
        """Object mask of picture i, Bool[H,W] of the original picture, or None where the data set has none."""
        self._guard()
        return self._mask(i)

    def image_size(self, i: int) -> tuple[int, int]:
        """(width, height) of the original picture i."""
        width, height = self.image_sizes[i].tolist()
        return width, height

    def frame(self, i: int) -> Frame:
        """How picture i is resized and cropped."""
        if self.view is not None:
            return self.view.frame(self.image_size(i))
        width, height = (self.size, self.size) if self.size else self.image_size(i)
        return Frame(width, height)

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """Picture i in the given frame, with its label and index; boxes and masks too where they may be seen."""
        item: dict[str, Any] = {"image": frame.image(self.picture(i)), "label": int(self.labels[i]), "index": i}
        if self.may_see_boxes:
            item["boxes"] = self._framed_boxes(i, frame)
            mask = self._mask(i)
            if mask is not None:
                item["mask"] = frame.mask(mask)
        return item

    def _framed_boxes(self, i: int, frame: Frame) -> Tensor:
        if self.view is not None:
            return self.view.to_frame([self._boxes(i)], torch.tensor([self.image_size(i)]))[0]
        return frame.boxes(self._boxes(i), self.image_size(i))

    def __getitem__(self, i: int) -> dict[str, Any]:
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.name} {self.split} has {len(self)} pictures; there is no number {i}")
        i = range(len(self))[i]
        return self.item(i, self.frame(i))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | Tensor) -> WsolDataset:
        """The same data set with only the given pictures, in the given order; `index` counts anew from 0."""
        return Subset(self, [int(i) for i in indices])


class Subset(WsolDataset):
    """Some pictures of a data set, in a chosen order."""

    def __init__(self, parent: WsolDataset, indices: list[int]) -> None:
        self.__dict__.update(copy.copy(parent.__dict__))
        self.parent, self.indices = parent, indices
        self.labels = parent.labels[indices]
        self.image_sizes = parent.image_sizes[indices]
        self.image_ids = tuple(parent.image_ids[i] for i in indices)

    def picture(self, i: int) -> Image.Image:
        """The original picture, RGB."""
        return self.parent.picture(self.indices[i])

    def _boxes(self, i: int) -> Tensor:
        return self.parent._boxes(self.indices[i])

    def _mask(self, i: int) -> Tensor | None:
        return self.parent._mask(self.indices[i])


def imagenet_wnids(data: WsolDataset, what: str) -> tuple[str, ...]:
    """WordNet ids of the classes of a data set whose classes are ImageNet's.

    Args:
        what: is wanted for them, for the error.

    Raises:
        RecipeError: the classes are none of ImageNet.
    """
    wnids: tuple[str, ...] = getattr(data, "wnids", ())
    if not wnids:
        raise RecipeError(f"the classes of {data.name} are none of ImageNet, so there is no {what} for them")
    return wnids


def by_class(labels: Tensor, order: Tensor) -> tuple[Tensor, ...]:
    """Positions Int[N] in `order`, gathered class by class, each class in that order: K tensors, perhaps empty."""
    return order[labels[order].argsort(stable=True)].split(labels.bincount().tolist())


def read_picture(path: Path | str, stream: BinaryIO | None = None) -> Image.Image:
    """The RGB picture in a file; grey, palette and CMYK files are converted.

    Args:
        path: the file, named in errors.
        stream: where its bytes are if they are not at the path itself (a member of an archive).

    Raises:
        DataCorrupt: the file is missing, truncated or no picture; the text names it.
    """
    try:
        with Image.open(path if stream is None else stream) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataCorrupt(f"cannot read the picture {path}: {error}") from error


def collate(items: Sequence[dict[str, Any]]) -> Batch:
    """Items of a data set as one batch: tensors stacked, boxes and captions kept as lists, `mask` becoming `masks`.

    Raises:
        ValueError: the pictures differ in size; load the data set with `size=` or `view=`.
    """
    if len({tuple(item["image"].shape) for item in items}) > 1:
        raise ValueError("pictures of different sizes cannot form a batch: load the data set with size= or view=")
    return {"masks" if key == "mask" else key: _join(key, [item[key] for item in items]) for key in items[0]}  # type: ignore[return-value]


def _join(key: str, values: list[Any]) -> Any:
    if key in ("boxes", "pseudo_boxes", "caption"):
        return values
    return torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)
