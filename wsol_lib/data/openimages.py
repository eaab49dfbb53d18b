"""OpenImages30k (Choe et al., CVPR 2020): 100 classes, instance masks instead of boxes, and pixels to ignore."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsol_lib.data.geometry import Frame
from wsol_lib.data.metadata import MARKER as METADATA_MARKER
from wsol_lib.data.metadata import STEMS as METADATA_STEMS
from wsol_lib.data.metadata import mask_files, read_metadata
from wsol_lib.data.pictures import Pictures, find, remedy
from wsol_lib.data.source import Source

STEMS = ("OpenImages", "openimages30k", "OpenImages30k", "OpenImages_images")
MASK_STEMS = (*STEMS, "OpenImages_annotations")


class OpenImages(Pictures):
    """Pictures with instance masks. Items of an evaluation split carry `mask` and `ignore`, Bool[H,W].

    Attributes:
        mask_names: picture -> (its instance masks, its ignore mask or ""); empty for the training split.
        masks: where the masks are.
    """

    mask_names: dict[str, tuple[tuple[str, ...], str]]
    masks: Source

    def _instances(self, i: int) -> list[Tensor]:
        """One mask an instance, all of the size of the first."""
        grids = [self.masks.mask(file) for file in self.mask_names[self.image_ids[i]][0]]
        height, width = grids[0].shape
        return [Frame(width, height).mask(grid) for grid in grids]

    def _mask(self, i: int) -> Tensor | None:
        return torch.stack(self._instances(i)).any(dim=0) if self.mask_names else None

    def ignore(self, i: int) -> Tensor:
        """Pixels of picture i that the evaluation leaves out, Bool[h,w]: marked to ignore and no object there."""
        self._guard()
        file = self.mask_names[self.image_ids[i]][1]
        objects = self._mask(i)
        assert objects is not None
        if not file:
            return torch.zeros_like(objects)
        height, width = objects.shape
        return Frame(width, height).mask(self.masks.mask(file)) & ~objects

    def _boxes(self, i: int) -> Tensor:
        """One half-open box an instance, in pixels of the picture."""
        grids = self._instances(i) if self.mask_names else []
        height, width = grids[0].shape if grids else (1, 1)
        return Frame(*self.image_size(i)).boxes(
            torch.cat([mask_box(g) for g in grids] or [torch.zeros(0, 4)]), (width, height)
        )

    def item(self, i: int, frame: Frame) -> dict[str, Any]:
        """The item with `mask` and `ignore` moved into the frame."""
        item = super().item(i, frame)
        if self.may_see_boxes and self.mask_names:
            item["ignore"] = frame.mask(self.ignore(i))
        return item


def mask_box(mask: Tensor) -> Tensor:
    """The tight half-open box of a mask Bool[H,W], Float[1,4]; an empty mask has no box, Float[0,4]."""
    if not mask.any():
        return torch.zeros(0, 4)
    (ys, xs) = (mask.any(dim=d).nonzero() for d in (1, 0))
    return torch.tensor([[xs[0].item(), ys[0].item(), xs[-1].item() + 1, ys[-1].item() + 1]], dtype=torch.float32)


def locate_source(name: str, root: Path) -> Source:
    """The archive or folder of the pictures and masks; raises DataMissing."""
    return find(name, root, STEMS, "test")


def read(name: str, split: str, root: Path) -> OpenImages:
    """Split train (29,819, no masks), val (2,500) or test (5,000)."""
    metadata = find("wsol-metadata", root, METADATA_STEMS, METADATA_MARKER)
    source = locate_source(name, root)
    known = read_metadata(metadata, name, split)
    files = mask_files(metadata, split)
    source.require(known.image_ids, remedy(name))
    folders = sorted(
        {(int(label), path.split("/")[1]) for path, label in zip(known.image_ids, known.labels, strict=True)}
    )
    data = OpenImages(name, split, source, known.image_ids, known.labels, [f"/m/{folder}" for _, folder in folders])
    data.mask_names = files
    if files:
        data.masks = find(name, root, MASK_STEMS, next(iter(files.values()))[0][0])
        data.masks.require([m for masks, ignore in files.values() for m in (*masks, ignore) if m], remedy(name))
    return data
