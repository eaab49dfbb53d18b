"""Data sets: `load` gives pictures with labels; boxes and masks are for evaluation only."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsol_lib.data.dataset import Supervision, View, WsolDataset, by_class, collate
from wsol_lib.data.metadata import load_metadata
from wsol_lib.data.pictures import check_known
from wsol_lib.data.source import data_root
from wsol_lib.types import WsolError

__all__ = ["SPLITS", "WsolDataset", "available", "collate", "data_root", "datasets", "load", "load_metadata"]


@dataclass(frozen=True)
class Reader:
    """Which module and function read a data set, and its splits."""

    module: str
    splits: tuple[str, ...]
    function: str = "read"


ALL, NO_VAL = ("train", "val", "test"), ("train", "test")
READERS = {
    "tiny-imagenet": Reader("tiny_imagenet", ("train", "val")),
    "cub": Reader("cub", ALL),
    "cub-50": Reader("cub", NO_VAL),
    "ilsvrc": Reader("ilsvrc", ALL),
    "ilsvrc-mini": Reader("ilsvrc", ("test",)),
    "openimages30k": Reader("openimages", ALL),
    "flowers": Reader("fine_grained", ALL, "read_flowers"),
    "aircraft": Reader("fine_grained", ALL, "read_aircraft"),
    "cars": Reader("fine_grained", NO_VAL, "read_cars"),
    "dogs": Reader("fine_grained", NO_VAL, "read_dogs"),
}
SPLITS = {"scenes": ALL} | {name: reader.splits for name, reader in READERS.items()}
SCENES = {"train": 2000, "val": 500, "test": 500}  # pictures of a split unless n is given


def datasets() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(SPLITS)


def available(name: str, root: str | Path | None = None) -> bool:
    """Whether the data set is on this machine.

    Raises:
        ValueError: unknown data set.
    """
    check_known("data set", name, SPLITS)
    if name == "scenes":
        return True
    try:
        where(name, root)
    except WsolError:
        return False
    return True


def where(name: str, root: str | Path | None = None) -> Path:
    """The folder or archive that a data set is read from.

    Raises:
        ValueError: unknown data set, or "scenes", which no file holds.
        DataMissing: it is not there; the text says how to get it.
    """
    check_known("data set on disk", name, READERS)
    module = import_module(f"wsol_lib.data.{READERS[name].module}")
    path: Path = module.locate_source(name, data_root(root)).path
    return path


def load(
    name: str,
    split: str,
    *,
    size: int | None = None,
    root: str | Path | None = None,
    view: View | None = None,
    supervision: Supervision = "image",
    per_class: int | None = None,
    **options: Any,
) -> WsolDataset:
    """One split of a data set.

    Args:
        name: one of `datasets()`.
        split: "train", "val" or "test", as far as the data set has it (`SPLITS`).
        size: squash each picture to size x size pixels; for "scenes", the size they are drawn at (default 64).
        root: folder of folders and archives; see `data_root`.
        view: decides the frame instead of `size`: a `metrics.Protocol`, for evaluation.
        supervision: "oracle" shows boxes and masks of the training split too, for upper bounds.
        per_class: only so many pictures of each class, the first ones in the official order; None keeps all.
        options: for "scenes" `n`, `seed` and the knobs of `scenes.make`; other data sets take none.

    Raises:
        ValueError: unknown data set or split, or both size and view.
        DataMissing: it is not on this machine; the text says what to run.
        DataCorrupt: a file is damaged or missing; the text names it.
    """
    check_known("data set", name, SPLITS)
    check_known(f"split of {name}", split, SPLITS[name])
    check_known("supervision", supervision, ("image", "oracle"))
    if size is not None and view is not None and name != "scenes":
        raise ValueError("give size= or view=, not both: a view decides the size itself")
    if name == "scenes":
        data = _load_scenes(split, 64 if size is None else size, **options)
    else:
        reader = READERS[name]
        module = import_module(f"wsol_lib.data.{reader.module}")
        data = getattr(module, reader.function)(name, split, data_root(root), **options)
        data.size = size
    data.view, data.supervision = view, supervision
    return data if per_class is None else data.subset(first_of_each_class(data.labels, per_class))


def first_of_each_class(labels: Tensor, n: int) -> list[int]:
    """Positions of the first n pictures of each class, in their order.

    Raises:
        ValueError: n is less than 1.
    """
    if n < 1:
        raise ValueError(f"per_class is at least 1, not {n}")
    return sorted(torch.cat([members[:n] for members in by_class(labels, torch.arange(len(labels)))]).tolist())


def _load_scenes(split: str, size: int, *, n: int | None = None, seed: int = 0, **knobs: Any) -> WsolDataset:
    """Scenes of a split; the splits of all worlds have seeds of their own: 3 seed, 3 seed + 1, 3 seed + 2."""
    from wsol_lib.data import scenes

    n = SCENES[split] if n is None else n
    data: WsolDataset = scenes.make(n, 3 * seed + ALL.index(split), size=size, split=split, **knobs)
    return data
