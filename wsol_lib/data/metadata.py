"""Boxes, sizes and labels of the common evaluation (Choe et al., CVPR 2020), without the pictures."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from wsol_lib.data.dataset import Supervision
from wsol_lib.data.pictures import check_known, find
from wsol_lib.data.source import Source, data_root, locate
from wsol_lib.types import DataCorrupt, SupervisionError

STEMS = ("wsol-metadata", "wsolevaluation", "wsolevaluation-master")
MARKER = "metadata/CUB/test/image_ids.txt"
FOLDERS = {"cub": "CUB", "ilsvrc": "ILSVRC", "openimages30k": "OpenImages"}


class Metadata(NamedTuple):
    """Annotations of one split, in the official order.

    Attributes:
        image_ids: N relative paths of pictures.
        labels: Int[N].
        image_sizes: Int[N,2], (width, height); -1 where upstream gives none (OpenImages).
        boxes: N tensors Float[M,4] in original pixels, both corners cut at W-1, H-1; empty for OpenImages.
    """

    image_ids: tuple[str, ...]
    labels: Tensor
    image_sizes: Tensor
    boxes: list[Tensor]


def load_metadata(
    name: str, split: str, *, root: str | Path | None = None, supervision: Supervision = "image"
) -> Metadata:
    """Boxes, sizes and labels of "cub" or "ilsvrc", for floors and for chapters that need no picture.

    Splits: cub train, val (CUBv2), test; ilsvrc val (ImageNetV2), test (the ILSVRC2012 validation set).

    Raises:
        ValueError: unknown data set or split.
        SupervisionError: the training split is asked for without `supervision="oracle"`.
        DataMissing: the metadata are not on this machine.
    """
    check_known("data set", name, ("cub", "ilsvrc"))
    check_known(f"split of {name}", split, ("train", "val", "test") if name == "cub" else ("val", "test"))
    if split == "train" and supervision != "oracle":
        raise SupervisionError(f'the training boxes of {name} are read only with supervision="oracle"')
    return read_metadata(find("wsol-metadata", data_root(root), STEMS, MARKER), name, split)


def find_metadata(root: Path) -> Source | None:
    """The source of the metadata below root, or None."""
    return locate(root, STEMS, MARKER)


def read_metadata(source: Source, name: str, split: str) -> Metadata:
    """One split of the metadata in a source.

    Raises:
        DataCorrupt: a line names a picture that `image_ids.txt` does not list, or a picture has no label.
    """
    folder = f"metadata/{FOLDERS[name]}/{split}"
    image_ids = tuple(source.lines(f"{folder}/image_ids.txt"))
    labels = _table(source, f"{folder}/class_labels.txt")
    _same_pictures(source.where(folder), image_ids, labels)
    sizes = _table(source, f"{folder}/image_sizes.txt")
    boxes = {} if name == "openimages30k" else _table(source, f"{folder}/localization.txt")
    return Metadata(
        image_ids,
        torch.tensor([int(labels[i][0][0]) for i in image_ids]),
        torch.tensor([[int(v) for v in sizes[i][0]] if i in sizes else [-1, -1] for i in image_ids]).reshape(-1, 2),
        [torch.tensor([[float(v) for v in row] for row in boxes.get(i, [])]).reshape(-1, 4) for i in image_ids],
    )


def mask_files(source: Source, split: str) -> dict[str, tuple[tuple[str, ...], str]]:
    """OpenImages: picture -> (its instance masks, its ignore mask or "")."""
    rows = _table(source, f"metadata/OpenImages/{split}/localization.txt")
    return {picture: (tuple(row[0] for row in lines), lines[0][1]) for picture, lines in rows.items()}


def _table(source: Source, name: str) -> dict[str, list[list[str]]]:
    rows = defaultdict(list)
    for line in source.lines(name):
        key, *values = line.split(",")
        rows[key].append(values)
    return dict(rows)


def _same_pictures(where: str, image_ids: tuple[str, ...], labels: dict[str, list[list[str]]]) -> None:
    stray = set(image_ids) ^ set(labels)
    if stray:
        raise DataCorrupt(f"{where}: image_ids.txt and class_labels.txt disagree on {min(stray)}; get it again")
