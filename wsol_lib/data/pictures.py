"""What the readers of real data sets share: pictures in a Source, boxes checked and cut at the image."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from wsol_lib.data.dataset import WsolDataset
from wsol_lib.data.source import Folder, Source, locate
from wsol_lib.types import DataCorrupt, DataMissing, nearest


class Pictures(WsolDataset):
    """Pictures by their names in a Source.

    Args:
        name, split: as given to `load`.
        source: where the files are.
        paths: N names of pictures in the source.
        labels: N class numbers.
        classes: names of the K classes.
        boxes: N tensors Float[M,4] in original pixels; None where a subclass finds them otherwise or there are none.
        image_sizes: Int[N,2]; None reads them from the headers of the pictures, when asked for.
        image_ids: N names; None takes the paths.
        wnids: WordNet numbers of the K classes, for ImageNet pictures.
    """

    def __init__(
        self,
        name: str,
        split: str,
        source: Source,
        paths: Sequence[str],
        labels: Sequence[int] | Tensor,
        classes: Sequence[str],
        *,
        boxes: list[Tensor] | None = None,
        image_sizes: Tensor | None = None,
        image_ids: Sequence[str] | None = None,
        wnids: Sequence[str] = (),
    ) -> None:
        self.name, self.split, self.source, self.paths = name, split, source, tuple(paths)
        self.labels, self.classes = torch.as_tensor(labels, dtype=torch.int64), tuple(classes)
        self.image_ids = tuple(paths if image_ids is None else image_ids)
        self.wnids = tuple(wnids)
        self._table, self._sizes = boxes, image_sizes

    @property
    def image_sizes(self) -> Tensor:  # type: ignore[override]
        """Int[N,2], (width, height) of the original pictures."""
        if self._sizes is None:
            self._sizes = read_sizes(self.source, self.paths)
        return self._sizes

    def image_size(self, i: int) -> tuple[int, int]:
        """(width, height) of the original picture i."""
        if self._sizes is None:
            return self.source.picture_size(self.paths[i])
        return super().image_size(i)

    def picture(self, i: int) -> Image.Image:
        """The original picture, RGB. Raises DataCorrupt where its file is damaged."""
        return self.source.picture(self.paths[i])

    def _boxes(self, i: int) -> Tensor:
        if self._table is None:
            raise DataMissing(
                f"no boxes of {self.name} {self.split} are on this machine: run `wsol data get {self.name}`"
            )
        return self._table[i]

    def subset(self, indices: Sequence[int] | Tensor) -> Pictures:
        """The same data set with only the given pictures, in the given order; `index` counts anew from 0."""
        chosen = [range(len(self))[int(i)] for i in indices]
        part = copy.copy(self)
        part.paths = tuple(self.paths[i] for i in chosen)
        part.image_ids = tuple(self.image_ids[i] for i in chosen)
        part.labels = self.labels[chosen]
        part._sizes = None if self._sizes is None else self._sizes[chosen]
        part._table = None if self._table is None else [self._table[i] for i in chosen]
        return part


def read_sizes(source: Source, paths: Sequence[str]) -> Tensor:
    """(width, height) of each picture, from the headers: Int[N,2]."""
    return torch.tensor([source.picture_size(path) for path in paths], dtype=torch.int64).reshape(-1, 2)


def cut_at_image(boxes: Sequence[Tensor], image_sizes: Tensor, image_ids: Sequence[str], name: str) -> list[Tensor]:
    """Boxes (N tensors Float[M,4]) cut at the edges of their pictures, Int[N,2]; one of width 0 is legal.

    Raises:
        DataCorrupt: a box lies outside its picture altogether, or ends before it begins; the text names the picture.
    """
    counts = [len(box) for box in boxes]
    owner = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor(counts, dtype=torch.int64))
    flat = torch.cat([*boxes, torch.zeros(0, 4)])
    limit = image_sizes[owner].to(flat).repeat(1, 2)  # [M,4]
    wrong = ((flat[:, 2:] < flat[:, :2]) | (flat[:, :2] >= limit[:, :2]) | (flat[:, 2:] < 0)).any(dim=1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        size = tuple(image_sizes[owner[first]].tolist())
        raise DataCorrupt(
            f"{name}: box {flat[first].tolist()} of {image_ids[int(owner[first])]} lies outside its picture of "
            f"{size[0]}x{size[1]} pixels: mend or remove its line in the box file"
        )
    return list(torch.minimum(flat.clamp(min=0), limit).split(counts))


def check_known(kind: str, word: str, known: Iterable[str]) -> None:
    """Refuse a word that is not known.

    Raises:
        ValueError: the text names the nearest known word, or all of them.
    """
    known = tuple(known)
    if word not in known:
        raise ValueError(f"there is no {kind} {word!r}{nearest(word, known)}")


def class_number(numbers: Mapping[str, int], key: str, where: str) -> int:
    """The number of a class by its key.

    Raises:
        DataCorrupt: the class is unknown; the text names the nearest known one.
    """
    if key not in numbers:
        raise DataCorrupt(f"{where} names the unknown class {key!r}{nearest(key, numbers)}")
    return numbers[key]


def find(name: str, root: Path, stems: Sequence[str], marker: str) -> Source:
    """The source of a data set below root.

    Raises:
        DataMissing: it is not there; the text names the command that gets it.
    """
    source = locate(root, stems, marker)
    if source is None:
        raise DataMissing(f"{name} is not in {root}: {remedy(name)}, or set WSOL_DATA to the folder that holds it")
    return source


def find_folder(name: str, root: Path, stems: Sequence[str], marker: str) -> Folder:
    """As `find`, for what can only be read from a folder."""
    source = find(name, root, stems, marker)
    if not isinstance(source, Folder):
        raise DataMissing(
            f"{name} is read from a folder: unpack {source.path} with `wsol data get {name} --from {source.path}`"
        )
    return source


def remedy(name: str) -> str:
    """What to run to get the data set, or to mend it."""
    return f"run `wsol data get {name}`"
