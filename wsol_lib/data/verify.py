"""Reading a data set from end to end, to find what is damaged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from wsol_lib.data import READERS, SPLITS, load, where
from wsol_lib.data.fetch import check, manifest
from wsol_lib.data.pictures import check_known
from wsol_lib.types import DataCorrupt, DataMissing


def archive_hash(name: str, root: Path | None = None) -> str:
    """What the hash of the archive says, where the data set is read from one; raises DataCorrupt if it is wrong."""
    path = where(name, root)
    remote = next((r for r in manifest()[name].files if r.file == path.name), None)
    if remote is None or not remote.published:
        return f"{path}: no published hash to compare with"
    return f"{path}: SHA-256 {check(path, remote)} is as expected"


def damaged(name: str, root: Path | None = None) -> Iterator[str]:
    """One sentence for every picture, mask or split that cannot be read; a split that is not there is passed over.

    Raises:
        ValueError: unknown data set.
        DataMissing: no split is there.
    """
    check_known("data set on disk", name, READERS)
    absent = []
    for split in SPLITS[name]:
        try:
            yield from _damaged_items(name, split, root)
        except DataMissing as error:
            absent.append(error)
        except DataCorrupt as error:
            yield f"{split}: {error}"
    if len(absent) == len(SPLITS[name]):
        raise absent[0]


def _damaged_items(name: str, split: str, root: Path | None) -> Iterator[str]:
    data = load(name, split, root=root, supervision="oracle")
    for i in tqdm(range(len(data)), desc=f"{name} {split}", unit="picture", disable=None):
        try:
            data.picture(i)
            data.mask(i)
        except DataCorrupt as error:
            yield f"{split}: {error}"
