"""Download, check and unpack: nothing half-written is ever taken for complete.

A download grows in `NAME.part` and gets its name when its hash is right; an archive is unpacked into a hidden folder
beside its place, which gets its name when all is there.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import stat
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import IO, Any

from tqdm import tqdm

from wsol_lib.data.pictures import check_known
from wsol_lib.types import DataCorrupt, DataMissing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without a byte
MARKER = ".wsol-complete"  # in every folder unpacked here; holds the archive's name and SHA-256


@dataclass(frozen=True)
class Remote:
    """One downloadable file.

    Attributes:
        file: its name on disk, perhaps below a folder.
        url: where it is; "" means that only the reader can get it.
        size: bytes, 0 where unknown.
        sha256, md5: published digests, "" where unknown.
        cuts: SHA-256 of known parts of it that may stand in its place.
        optional: whether the data set can be used without it.
        unpack: folder that the archive is unpacked into; "" keeps the file as it is.
    """

    file: str
    url: str = ""
    size: int = 0
    sha256: str = ""
    md5: str = ""
    cuts: tuple[str, ...] = ()
    unpack: str = ""
    optional: bool = False

    @property
    def published(self) -> bool:
        """Whether there is a digest to compare with."""
        return bool(self.sha256 or self.md5 or self.cuts)

    @property
    def target(self) -> str:
        """What is there when the file has been got: the folder, or the file."""
        return self.unpack or self.file


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a data set; `manual` tells how to get it by hand where there is no URL."""

    name: str
    title: str
    licence: str
    terms: str
    citation: str
    layout: str
    files: tuple[Remote, ...]
    manual: str = ""
    homepage: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files, as far as known."""
        return sum(remote.size for remote in self.files)


@cache
def manifest() -> dict[str, Entry]:
    """Everything that can be downloaded, by name."""
    table = tomllib.loads(files("wsol_lib.data").joinpath("manifest.toml").read_text("utf-8"))
    return {name: _entry(name, fields) for name, fields in table.items()}


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    remotes = tuple(Remote(**(row | {"cuts": tuple(row.get("cuts", ()))})) for row in fields.pop("files", []))
    return Entry(name=name, files=remotes, **fields)


def get(name: str, root: Path, given: Path | None = None) -> Iterator[str]:
    """Bring a data set under root, saying file by file what is done.

    Args:
        name: a name of the manifest.
        root: folder of data sets.
        given: a file, or a folder of files, to take instead of a download.

    Raises:
        ValueError: unknown name.
        DataMissing: a file can only be got by hand, the network fails, or the disk is full.
        DataCorrupt: a hash is wrong or an archive is unsafe.
    """
    check_known("downloadable data set", name, manifest())
    entry = manifest()[name]
    root.mkdir(parents=True, exist_ok=True)
    if not entry.files:
        raise DataMissing(f"{name} cannot be downloaded by a program: {entry.manual}")
    for remote in entry.files:
        if is_complete(root, remote):
            yield f"{root / remote.target} is there already"
        elif given is not None:
            yield _take(entry, remote, given, root)
        else:
            yield _fetch(entry, remote, root)


def is_complete(root: Path, remote: Remote) -> bool:
    """Whether the file, or the folder unpacked from it, is there whole."""
    target = root / remote.target
    return (target / MARKER).is_file() if remote.unpack else target.is_file()


def _take(entry: Entry, remote: Remote, given: Path, root: Path) -> str:
    name = PurePosixPath(remote.file).name
    archive = given / name if given.is_dir() else given
    if not archive.is_file() or (len(entry.files) > 1 and archive.name != name):
        if remote.optional:
            return f"{name} is not in {given}: left out, {entry.name} can be used without it"
        raise DataMissing(
            f"{entry.name} needs {name}, which {given} does not hold: give a folder that holds it, "
            "or set WSOL_DATA to the folder where it lies unpacked"
        )
    print_known(archive, check(archive, remote), remote)
    if remote.unpack:
        return f"unpacked {unpack(archive, root / remote.unpack)}"
    return f"copied {_copy(archive, root / remote.file)}"


def _fetch(entry: Entry, remote: Remote, root: Path) -> str:
    if not remote.url:
        raise DataMissing(f"{entry.name} cannot be downloaded by a program: {entry.manual}")
    if remote.unpack:
        _refuse_foreign(root / remote.unpack)
    archive = root / remote.file
    if not archive.is_file():
        download(remote, archive)
    if not remote.unpack:
        return f"downloaded {archive}"
    folder = unpack(archive, root / remote.unpack)
    archive.unlink()
    return f"downloaded and unpacked {folder}"


def _copy(source: Path, target: Path) -> Path:
    need_space(target.parent, source.stat().st_size)
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, part)
    os.replace(part, target)
    return target


def download(remote: Remote, target: Path, *, quiet: bool = False) -> Path:
    """Download a file, going on where an earlier attempt broke off, and check its hash before it gets its name.

    Raises:
        DataMissing: offline, not found, broken off, or the disk is too full; what has come is kept in `NAME.part`.
        DataCorrupt: the hash is wrong; the part is deleted.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _network_errors(remote.url, part):
        _stream(remote, part, quiet)
    try:
        digest = check(part, remote)
    except DataCorrupt:
        part.unlink()
        raise
    os.replace(part, target)
    print_known(target, digest, remote)
    return target


def _stream(remote: Remote, part: Path, quiet: bool) -> None:
    done = part.stat().st_size if part.exists() else 0
    if remote.size and done == remote.size:
        return
    request = urllib.request.Request(remote.url, headers={"Range": f"bytes={done}-"} if done else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        done = done if answer.status == 206 else 0  # any other server sends the whole file again
        total = done + int(answer.headers.get("Content-Length") or 0)
        need_space(part.parent, total - done)
        with part.open("ab" if done else "wb") as file, _bar(total, done, remote.file, quiet) as bar:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if part.stat().st_size < total:
        raise DataMissing(f"the download of {remote.url} broke off: run the same command again, it goes on from there")


def _bar(total: int, done: int, name: str, quiet: bool) -> Any:
    return tqdm(total=total or None, initial=done, unit="B", unit_scale=True, desc=name, disable=quiet)


@contextmanager
def _network_errors(url: str, part: Path) -> Iterator[None]:
    """Turn what the network does into one sentence each; a part that already is the whole file is no error."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise DataMissing(
                f"{url} answers {error.code} {error.reason}: get the file by hand and use --from PATH"
            ) from error
        if error.headers.get("Content-Range", "").rpartition("/")[2] != str(part.stat().st_size):
            part.unlink()
            raise DataCorrupt(f"the part of {url} on disk was longer than the file: deleted, run again") from error
    except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise DataMissing(
            f"cannot reach {url} ({reason}): run the same command again with a network, or use --from PATH"
        ) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DataMissing(f"the disk is full: make room in {part.parent}, or give another --root") from error


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file in hexadecimal."""
    with path.open("rb") as file:
        hasher = hashlib.new(algorithm)
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def check(path: Path, remote: Remote) -> str:
    """SHA-256 of a file, compared with what is published.

    Raises:
        DataCorrupt: it has another hash.
    """
    found = digest(path)
    if found in remote.cuts:
        return found
    pairs = [(remote.sha256, found), (remote.md5, digest(path, "md5") if remote.md5 else "")]
    wrong = next(((want, have) for want, have in pairs if want and want != have), None)
    if wrong:
        raise DataCorrupt(
            f"{path.name} has the wrong hash ({wrong[1][:12]}..., expected {wrong[0][:12]}...): "
            "it is damaged or another version; get it again"
        )
    return found


def print_known(path: Path, digest: str, remote: Remote) -> None:
    """Print the SHA-256 where the manifest has none to compare with, so that it can be recorded."""
    if not remote.sha256 and digest not in remote.cuts:
        how = "only its MD5 is published" if remote.md5 else "no hash of it is published"
        print(f"SHA-256 of {path.name}: {digest} ({how}; record this one)")


def need_space(folder: Path, size: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        DataMissing: fewer than `size` bytes are free.
    """
    place = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise DataMissing(
            f"{folder} needs {size / 1e6:.0f} MB and has {free / 1e6:.0f} MB free: make room or give another --root"
        )


@dataclass(frozen=True)
class Member:
    """A plain file in an archive: its checked relative name, its size in bytes, and what opens it."""

    name: str
    size: int
    handle: Any


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar archive into a new folder, which appears only when it is complete.

    Only plain files are written, without their permissions or owners.

    Raises:
        DataCorrupt: the archive is damaged, or holds a link, a device, an absolute name or "..".
        DataMissing: the disk is too full, or the folder exists and was not unpacked by this function.
    """
    if (folder / MARKER).is_file():
        return folder
    _refuse_foreign(folder)
    hidden = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        _unpack_into(archive, hidden)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    (hidden / MARKER).write_text(f"{archive.name} {digest(archive)}\n")
    os.replace(hidden, folder)
    return folder


def _refuse_foreign(folder: Path) -> None:
    if folder.exists():
        raise DataMissing(f"{folder} exists but was not unpacked whole by wsol: move it away and run again")


def _unpack_into(archive: Path, hidden: Path) -> None:
    with _open_archive(archive) as opened:
        members = list(_members(opened, archive))
        need_space(hidden, sum(member.size for member in members))
        for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
            target = hidden / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _open_member(opened, member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file, CHUNK)


@contextmanager
def _open_archive(path: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    try:
        with zipfile.ZipFile(path) if path.suffix == ".zip" else tarfile.open(path) as opened:
            yield opened
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise DataMissing(f"the disk is full: make room for {path.name} or give another --root") from error
        raise DataCorrupt(f"cannot unpack {path} ({error}): it is damaged, get it again") from error


def _members(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path) -> Iterator[Member]:
    if isinstance(opened, zipfile.ZipFile):
        for info in opened.infolist():
            mode = info.external_attr >> 16
            plain = not stat.S_IFMT(mode) or stat.S_ISREG(mode)
            if not info.is_dir():
                yield Member(_safe(info.filename, plain, archive), info.file_size, info)
    else:
        for member in opened:
            if not member.isdir():
                yield Member(_safe(member.name, member.isreg(), archive), member.size, member)


def _safe(name: str, plain: bool, archive: Path) -> str:
    path = PurePosixPath(name.replace("\\", "/"))
    if not plain or path.is_absolute() or ".." in path.parts or ":" in str(path).split("/")[0]:
        raise DataCorrupt(f"{archive} is refused: its member {name!r} is a link or device, or leads out of the folder")
    return str(path)


def _open_member(opened: zipfile.ZipFile | tarfile.TarFile, member: Member) -> IO[bytes]:
    if isinstance(opened, zipfile.ZipFile):
        return opened.open(member.handle)
    stream = opened.extractfile(member.handle)
    assert stream is not None  # only plain files become members
    return stream
