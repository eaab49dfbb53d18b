"""Tiny-ImageNet: 200 classes of ImageNet at 64x64 pixels, one box a picture.

Boxes are inclusive at both ends, 0..63, as published: `x0 = x1` is a box one pixel wide. The official test split has
no labels; scores are reported on val.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from wsol_lib.data.pictures import Pictures, class_number, cut_at_image, find, remedy
from wsol_lib.data.source import Source

STEMS = ("tiny-imagenet-200", "tiny-imagenet")
MARKER = "wnids.txt"


def locate_source(name: str, root: Path) -> Source:
    """The archive or folder of the data set; raises DataMissing."""
    return find(name, root, STEMS, MARKER)


def read(name: str, split: str, root: Path) -> Pictures:
    """Split "train" (as many pictures a class as are there: 500 in the official archive) or "val" (10,000)."""
    source = locate_source(name, root)
    wnids = source.lines("wnids.txt")
    words = dict(line.split("\t", 1) for line in source.lines("words.txt"))
    number = {wnid: k for k, wnid in enumerate(wnids)}
    rows = list(_train_rows(source, wnids) if split == "train" else _val_rows(source))
    labels = [class_number(number, wnid, source.where(path)) for path, wnid, _ in rows]
    paths = [path for path, _, _ in rows]
    source.require(paths, remedy(name))
    sizes = torch.full((len(rows), 2), 64)
    return Pictures(
        name, split, source, paths, labels, [words.get(wnid, wnid).split(",")[0] for wnid in wnids],
        boxes=cut_at_image([torch.tensor([box]) for _, _, box in rows], sizes, paths, name),
        image_sizes=sizes, image_ids=[path.rsplit("/", 1)[-1] for path in paths], wnids=wnids,
    )  # fmt: skip


def _train_rows(source: Source, wnids: list[str]) -> Iterable[tuple[str, str, list[float]]]:
    for wnid in wnids:
        for line in source.lines(f"train/{wnid}/{wnid}_boxes.txt"):
            file, *box = line.split()
            yield f"train/{wnid}/images/{file}", wnid, [float(v) for v in box]


def _val_rows(source: Source) -> Iterable[tuple[str, str, list[float]]]:
    for line in source.lines("val/val_annotations.txt"):
        file, wnid, *box = line.split()
        yield f"val/images/{file}", wnid, [float(v) for v in box]
