"""Where the files of a data set are: a folder, or a zip archive read in place."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from wsol_lib.data.dataset import read_picture
from wsol_lib.types import DataCorrupt

DAMAGE = (OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)  # what reading a file or a member raises


class Source:
    """Files of a data set by their official relative names ("val/images/val_0.JPEG").

    Attributes:
        path: the folder or the archive, for messages.
    """

    path: Path

    def open(self, name: str) -> BinaryIO:
        """An open binary stream of the file; seekable."""
        raise NotImplementedError

    def listing(self, folder: str) -> tuple[str, ...]:
        """Sorted names of what lies directly in the folder (empty where there is no such folder)."""
        raise NotImplementedError

    def where(self, name: str) -> str:
        """How to name the file in a message."""
        raise NotImplementedError

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        parent, _, leaf = name.rpartition("/")
        return leaf in self.listing(parent)

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            DataCorrupt: there is no such file, or its bytes are damaged; the text names it.
        """
        try:
            with self.open(name) as stream:
                return stream.read()
        except DAMAGE as error:
            raise DataCorrupt(f"cannot read {self.where(name)}: {error}") from error

    def lines(self, name: str) -> list[str]:
        """The lines of a text file that are not empty."""
        return [line for line in self.read(name).decode("utf-8").splitlines() if line.strip()]

    def picture(self, name: str) -> Image.Image:
        """The RGB picture in a file. Raises DataCorrupt as `read` and `read_picture` do."""
        return read_picture(self.where(name), BytesIO(self.read(name)))

    def mask(self, name: str) -> Tensor:
        """The mask in a grey picture, Bool[H,W]: brighter than half. Raises DataCorrupt as `picture` does."""
        return torch.from_numpy(np.asarray(self.picture(name).convert("L")) > 127)

    def picture_size(self, name: str) -> tuple[int, int]:
        """(width, height) of a picture, from its header only."""
        try:
            with self.open(name) as stream, Image.open(stream) as picture:
                return picture.size
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise DataCorrupt(f"cannot read the picture {self.where(name)}: {error}") from error

    def require(self, names: Iterable[str], remedy: str) -> None:
        """Check that all files are there, so that a half-copied data set is never used.

        Raises:
            DataCorrupt: some are missing; the text counts them, names the first and gives the remedy.
        """
        folders: dict[str, set[str]] = {}
        missing = []
        names = tuple(names)
        for name in names:
            parent, _, leaf = name.rpartition("/")
            if parent not in folders:
                folders[parent] = set(self.listing(parent))
            if leaf not in folders[parent]:
                missing.append(name)
        if missing:
            raise DataCorrupt(
                f"{self.path} is incomplete: {len(missing)} of {len(names)} files are missing, "
                f"the first is {missing[0]}; {remedy}"
            )


class Folder(Source):
    """Files in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, name: str) -> BinaryIO:
        """An open binary stream of the file."""
        return (self.path / name).open("rb")

    def listing(self, folder: str) -> tuple[str, ...]:
        """Sorted names of what lies directly in the folder."""
        place = self.path / folder
        return tuple(sorted(os.listdir(place))) if place.is_dir() else ()

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.path / name).exists()

    def where(self, name: str) -> str:
        """The path of the file."""
        return str(self.path / name)


class Zip(Source):
    """Files in a zip archive, below `prefix`; nothing is unpacked.

    Every process opens the archive for itself, so that the workers of a data loader do not share a file position.
    """

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path, self.prefix = path, prefix
        self._handle: tuple[int, zipfile.ZipFile] | None = None

    @property
    def archive(self) -> zipfile.ZipFile:
        """The open archive of this process.

        Raises:
            DataCorrupt: the file is no whole zip archive.
        """
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), open_zip(self.path))
        return self._handle[1]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "prefix": self.prefix, "_handle": None}

    def open(self, name: str) -> BinaryIO:
        """An open binary stream of the member."""
        return self.archive.open(self.prefix + name)  # type: ignore[return-value]

    @cached_property
    def _folders(self) -> dict[str, tuple[str, ...]]:
        children = defaultdict(set)
        for name in self.archive.namelist():
            if name.startswith(self.prefix):
                parts = PurePosixPath(name[len(self.prefix) :]).parts
                for depth, part in enumerate(parts):
                    children["/".join(parts[:depth])].add(part)
        return {folder: tuple(sorted(names)) for folder, names in children.items()}

    def listing(self, folder: str) -> tuple[str, ...]:
        """Sorted names of what lies directly in the folder."""
        return self._folders.get(folder.strip("/"), ())

    def where(self, name: str) -> str:
        """The path of the archive and the name in it."""
        return f"{self.path}:{self.prefix}{name}"


def open_zip(path: Path) -> zipfile.ZipFile:
    """An open zip archive.

    Raises:
        DataCorrupt: the file is no whole zip archive: a download that broke off, or another format.
    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataCorrupt(f"{path} is not a whole zip archive ({error}): delete it and get it again") from error


def data_root(root: str | Path | None = None) -> Path:
    """Where data sets are looked for: the argument, else $WSOL_DATA, else data/ of a checkout, else ~/.cache/wsol."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("WSOL_DATA"):
        return Path(os.environ["WSOL_DATA"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    return checkout / "data" if (checkout / "pyproject.toml").is_file() else Path.home() / ".cache" / "wsol"


def locate(root: Path, stems: Sequence[str], marker: str) -> Source | None:
    """The first folder `root/stem` or archive `root/stem.zip` that holds the file `marker`, or None.

    The marker may lie at the top or one folder down, since archives have a top folder of their own; names in the
    returned source count from where the marker's name does.
    """
    for stem in stems:
        found = _in_folder(root / stem, marker) or _in_zip(root / f"{stem}.zip", marker)
        if found is not None:
            return found
    return None


def _in_folder(folder: Path, marker: str) -> Folder | None:
    if not folder.is_dir():
        return None
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return next((Folder(place) for place in (folder, *inner) if (place / marker).exists()), None)


def _in_zip(path: Path, marker: str) -> Zip | None:
    if not path.is_file():
        return None
    whole = Zip(path)
    prefixes = ("", *(f"{name}/" for name in whole.listing("")))
    return next((Zip(path, prefix) for prefix in prefixes if whole.exists(prefix + marker)), None)
