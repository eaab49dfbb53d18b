"""CUB-200-2011: 200 species of birds; CUBv2 as the validation split; `cub-50`, the first 50 species.

Boxes are published as x, y, width, height with a 0-based corner; they are given as x, y, x+w, y+h, and cut at the
image, which 14 of them overreach. Masks need the separate archive of segmentations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from wsol_lib.data.metadata import MARKER as METADATA_MARKER
from wsol_lib.data.metadata import STEMS as METADATA_STEMS
from wsol_lib.data.metadata import find_metadata, read_metadata
from wsol_lib.data.pictures import Pictures, cut_at_image, find, read_sizes, remedy
from wsol_lib.data.source import Source, locate
from wsol_lib.types import DataCorrupt, DataMissing

STEMS = ("CUB_200_2011", "cub", "CUB")
MARKER = "train_test_split.txt"
V2_STEMS = ("CUBV2", "cubv2", "CUBv2")
FIRST_CLASS = "001.Black_footed_Albatross"
MASK_STEMS = ("segmentations", "cub-segmentations", "CUB_200_2011", "cub")


class Cub(Pictures):
    """Birds with a box each, and with masks where the segmentations are on this machine."""

    masks: tuple[Source, tuple[str, ...]] | None = None  # the source and N names of PNG files

    def _mask(self, i: int) -> Tensor | None:
        if self.masks is None:
            return None
        source, names = self.masks
        return source.mask(names[i])  # grey levels: the part of 5 annotators who call the pixel bird

    def subset(self, indices: Sequence[int] | Tensor) -> Cub:
        """The given birds with their boxes and masks."""
        part = super().subset(indices)
        assert isinstance(part, Cub)
        if self.masks is not None:
            part.masks = (self.masks[0], tuple(self.masks[1][int(i)] for i in indices))
        return part


def locate_source(name: str, root: Path) -> Source:
    """The archive or folder of "cub" (all 200 species) or "cub-50" (which the whole set contains).

    Raises:
        DataMissing: it is not there, or what is there holds fewer species.
    """
    source = find(name, root, ("cub-50", *STEMS) if name == "cub-50" else STEMS, MARKER)
    if name == "cub" and len(source.lines("classes.txt")) < 200:
        raise DataMissing(f"{source.path} holds fewer than 200 species: {remedy('cub')}, or load cub-50")
    return source


def read(name: str, split: str, root: Path) -> Pictures:
    """ "cub": train (5,994), val (CUBv2, 1,000), test (5,794); "cub-50": train (1,500), test (1,389)."""
    return _read_v2(name, root) if split == "val" else _read_official(name, split, root)


def _read_official(name: str, split: str, root: Path) -> Cub:
    source = locate_source(name, root)
    count = 50 if name == "cub-50" else 200
    folders = [line.split()[1] for line in source.lines("classes.txt")][:count]
    label, is_train = _column(source, "image_class_labels.txt"), _column(source, "train_test_split.txt")
    wanted = "1" if split == "train" else "0"
    images = {
        i: path for i, path in _column(source, "images.txt").items() if is_train[i] == wanted and int(label[i]) <= count
    }
    paths = [f"images/{path}" for path in images.values()]
    source.require(paths, remedy(name))
    sizes = _sizes(source, root, split, paths)
    data = Cub(
        name, split, source, paths, [int(label[i]) - 1 for i in images], [species(f) for f in folders],
        boxes=cut_at_image(_official_boxes(source, images), sizes, paths, name),
        image_sizes=sizes, image_ids=list(images.values()),
    )  # fmt: skip
    data.masks = _find_masks(source, root, data.image_ids)
    return data


def species(folder: str) -> str:
    """The name in a class folder: "001.Black_footed_Albatross" gives "Black footed Albatross"."""
    return folder.split(".", 1)[-1].replace("_", " ")


def _column(source: Source, file: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in source.lines(file))


def _official_boxes(source: Source, images: dict[str, str]) -> list[Tensor]:
    rows = {
        i: torch.tensor([float(v) for v in row.split()]) for i, row in _column(source, "bounding_boxes.txt").items()
    }
    return [torch.cat([rows[i][:2], rows[i][:2] + rows[i][2:]])[None] for i in images]  # x, y, w, h -> corners


def _sizes(source: Source, root: Path, split: str, paths: list[str]) -> Tensor:
    """Sizes from the metadata where they are (no file is opened); the resized cut, known by sizes.txt, has its own."""
    metadata = None if source.exists("sizes.txt") else find_metadata(root)
    if metadata is None:
        return read_sizes(source, paths)
    known = read_metadata(metadata, "cub", split)
    row = dict(zip(known.image_ids, known.image_sizes.tolist(), strict=True))
    if any(path.removeprefix("images/") not in row for path in paths):
        return read_sizes(source, paths)
    return torch.tensor([row[path.removeprefix("images/")] for path in paths])


def _find_masks(source: Source, root: Path, image_ids: Sequence[str]) -> tuple[Source, tuple[str, ...]] | None:
    """Masks fit the original pictures only, so the resized cut goes without."""
    if source.exists("sizes.txt"):
        return None
    inside = source if source.exists("segmentations") else None
    below = (
        inside or locate(root, MASK_STEMS, f"segmentations/{FIRST_CLASS}") or locate(root, MASK_STEMS[:2], FIRST_CLASS)
    )
    if below is None:
        return None
    top = "segmentations/" if below.exists("segmentations") else ""
    names = tuple(f"{top}{image_id.rsplit('.', 1)[0]}.png" for image_id in image_ids)
    below.require(names, "get the segmentations again")
    return below, names


def _read_v2(name: str, root: Path) -> Pictures:
    metadata = find("wsol-metadata", root, METADATA_STEMS, METADATA_MARKER)
    known = read_metadata(metadata, "cub", "val")
    source = find("cub-v2", root, V2_STEMS, known.image_ids[0].split("/")[0])
    source.require(known.image_ids, remedy("cub-v2"))
    classes = {
        int(label): species(path.split("/")[0]) for path, label in zip(known.image_ids, known.labels, strict=True)
    }
    if sorted(classes) != list(range(200)):
        raise DataCorrupt(f"the CUBv2 list in {metadata.path} does not name all 200 species: {remedy('wsol-metadata')}")
    return Pictures(
        name, "val", source, known.image_ids, known.labels, [classes[k] for k in range(200)],
        boxes=cut_at_image(known.boxes, known.image_sizes, known.image_ids, name), image_sizes=known.image_sizes,
    )  # fmt: skip
