"""Downloads against a server on this machine, unsafe archives, and the `wsol data` commands."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_data import tiny, zipped
from typer.testing import CliRunner

from wsol_lib.data import datasets, fetch
from wsol_lib.data.commands import app
from wsol_lib.data.fetch import MARKER, Entry, Remote, download, manifest, unpack
from wsol_lib.types import DataCorrupt, DataMissing

CONTENT = bytes(range(256)) * 40_000  # 10 MB: several chunks
SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Server(BaseHTTPRequestHandler):
    """Gives CONTENT; `limit` breaks the line after so many bytes, `ranges` says whether it knows Range."""

    limit: int | None = None
    ranges = True
    lengths = True
    requests: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        type(self).requests.append(wanted)
        if self.path != "/set.zip":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if self.lengths:
            self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start:][: self.limit])
        return None

    def log_message(self, *args: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    """A client that hangs up is no news."""

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@pytest.fixture
def server():
    class Fresh(Server):
        requests: list[str | None] = []  # noqa: RUF012

    with Quiet(("127.0.0.1", 0), Fresh) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        Fresh.url = f"http://127.0.0.1:{running.server_port}/set.zip"  # type: ignore[attr-defined]
        yield Fresh
        running.shutdown()


def remote(server, **fields) -> Remote:
    return Remote(file="set.zip", url=server.url, **fields)


# --- downloads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"sha256": SHA256}, {"md5": MD5}, {"sha256": SHA256, "md5": MD5, "size": len(CONTENT)}]
)
def test_download(server, tmp_path, fields, capsys):
    path = download(remote(server, **fields), tmp_path / "new" / "set.zip", quiet=True)
    assert path.read_bytes() == CONTENT and [p.name for p in path.parent.iterdir()] == ["set.zip"]
    assert (SHA256 in capsys.readouterr().out) == (
        "sha256" not in fields
    )  # printed where there is none to compare with


def test_a_killed_download_goes_on_where_it_stopped(server, tmp_path):
    target = tmp_path / "set.zip"
    server.limit = 3_000_001
    with pytest.raises(DataMissing, match=r"broke off: run the same command again"):
        download(remote(server, sha256=SHA256), target, quiet=True)
    assert not target.exists() and (tmp_path / "set.zip.part").stat().st_size == 3_000_001
    server.limit = None
    assert download(remote(server, sha256=SHA256), target, quiet=True).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=3000001-"]


def test_a_server_without_ranges_sends_all_again(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"old")
    server.ranges = False
    assert download(remote(server, sha256=SHA256), tmp_path / "set.zip", quiet=True).read_bytes() == CONTENT


def test_a_part_that_is_whole_only_gets_its_name(server, tmp_path):
    for fields in ({}, {"size": len(CONTENT)}):
        (tmp_path / "set.zip.part").write_bytes(CONTENT)
        assert download(remote(server, **fields), tmp_path / "set.zip", quiet=True).read_bytes() == CONTENT
    assert len(server.requests) == 1  # with a known size the server is not even asked


def test_a_part_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT + b"x")
    with pytest.raises(DataCorrupt, match=r"longer than the file: deleted, run again"):
        download(remote(server), tmp_path / "set.zip", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fields", [{"sha256": "0" * 64}, {"md5": "0" * 32}])
def test_wrong_hash(server, tmp_path, fields):
    with pytest.raises(DataCorrupt, match=r"wrong hash .*expected 000000000000"):
        download(remote(server, **fields), tmp_path / "set.zip", quiet=True)
    assert not list(tmp_path.iterdir())  # a damaged part would else be resumed for ever


def test_a_known_cut_may_stand_in(server, tmp_path):
    download(remote(server, md5="0" * 32, cuts=(SHA256,)), tmp_path / "set.zip", quiet=True)


def test_not_found(server, tmp_path):
    with pytest.raises(DataMissing, match=r"404 .*--from PATH"):
        download(Remote("set.zip", server.url + "x"), tmp_path / "set.zip", quiet=True)


def test_offline(tmp_path):
    with pytest.raises(DataMissing, match=r"cannot reach .*--from PATH"):
        download(Remote("set.zip", "http://127.0.0.1:9/set.zip"), tmp_path / "set.zip", quiet=True)


def test_without_content_length(server, tmp_path):
    server.lengths = False
    assert download(remote(server, sha256=SHA256), tmp_path / "set.zip", quiet=True).read_bytes() == CONTENT


def no_space(monkeypatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))


def test_full_disk(server, tmp_path, monkeypatch):
    no_space(monkeypatch)
    with pytest.raises(DataMissing, match=r"needs 10 MB and has 0 MB free: make room"):
        download(remote(server), tmp_path / "set.zip", quiet=True)
    with pytest.raises(DataMissing, match=r"make room"):
        unpack(tar_of(tmp_path / "a.tar", ("x", b"12345")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- archives ---------------------------------------------------------------------------------------------------------


def tar_of(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mode = len(member[1]), 0o4777
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def zip_of(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def special(kind: bytes, name: str = "innocent", link: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("innocent")
    info.external_attr = 0o120777 << 16
    return info


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_unpack(tmp_path, kind):
    maker = zip_of if kind.endswith("zip") else tar_of
    folder = unpack(
        maker(
            tmp_path / kind,
            ("top/a.txt", b"1"),
            ("top/b/c.txt", b"22"),
            ("empty/", b"") if maker is zip_of else ("d.txt", b""),
        ),
        tmp_path / "out",
    )  # type: ignore[arg-type]
    assert (folder / "top/b/c.txt").read_bytes() == b"22" and (folder / MARKER).read_text().startswith(kind)
    assert not (folder / "top/a.txt").stat().st_mode & 0o7111  # no permissions of the archive's choosing
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([kind, "out"])
    assert unpack(tmp_path / "not-even-there", folder) == folder  # complete: nothing to do


UNSAFE = {
    "zip slip": lambda p: zip_of(p, ("fine.txt", b""), ("../evil.txt", b"x")),
    "zip slip inside": lambda p: zip_of(p, ("a/../../evil.txt", b"x")),
    "zip backslash": lambda p: zip_of(p, ("..\\evil.txt", b"x")),
    "zip absolute": lambda p: zip_of(p, ("/tmp/evil.txt", b"x")),
    "zip drive": lambda p: zip_of(p, ("C:/evil.txt", b"x")),
    "zip link": lambda p: zip_of(p, (zip_link(), b"/etc/passwd")),
    "tar slip": lambda p: tar_of(p, ("fine.txt", b""), ("../evil.txt", b"x")),
    "tar absolute": lambda p: tar_of(p, ("/tmp/evil.txt", b"x")),
    "tar symlink": lambda p: tar_of(p, special(tarfile.SYMTYPE)),
    "tar hard link": lambda p: tar_of(p, special(tarfile.LNKTYPE)),
    "tar device": lambda p: tar_of(p, special(tarfile.CHRTYPE)),
    "tar pipe": lambda p: tar_of(p, special(tarfile.FIFOTYPE)),
    "tar write through a link": lambda p: tar_of(p, special(tarfile.SYMTYPE, "d", ".."), ("d/evil.txt", b"x")),
}


@pytest.mark.parametrize("case", UNSAFE)
def test_unsafe_archives_are_refused_and_leave_nothing(tmp_path, case):
    root = tmp_path / "root"
    root.mkdir()
    archive = UNSAFE[case](root / ("a.zip" if case.startswith("zip") else "a.tar"))
    with pytest.raises(DataCorrupt, match=r"is refused: its member .* is a link or device, or leads out"):
        unpack(archive, root / "out")
    assert [p.name for p in root.iterdir()] == [archive.name] and [p.name for p in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize("kind", ["a.zip", "a.tar", "a.tgz"])
def test_damaged_archives_are_one_sentence_and_leave_nothing(tmp_path, kind):
    maker = zip_of if kind.endswith("zip") else tar_of
    archive = maker(tmp_path / kind, ("a", b"x" * 5000), ("b", bytes(range(256)) * 50))  # type: ignore[arg-type]
    archive.write_bytes(archive.read_bytes()[: len(archive.read_bytes()) // 2])
    with pytest.raises(DataCorrupt, match=r"cannot unpack .*damaged, get it again"):
        unpack(archive, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == [kind]


def test_a_half_unpacked_folder_is_never_taken_for_complete(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "a.tar", ("a", b"1"), ("b", b"2"))
    opened = fetch._open_member

    def interrupted(handle, member):
        assert not (tmp_path / "out").exists()  # so that a power cut here leaves no half folder either
        if member.name == "b":
            raise KeyboardInterrupt
        return opened(handle, member)

    monkeypatch.setattr(fetch, "_open_member", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    (tmp_path / ".out.unpacking").mkdir()  # what a power cut leaves
    (tmp_path / ".out.unpacking" / "a").write_bytes(b"half")
    assert (unpack(archive, tmp_path / "out") / "a").read_bytes() == b"1"
    (tmp_path / "other").mkdir()
    with pytest.raises(DataMissing, match=r"other exists but was not unpacked whole by wsol: move it away"):
        unpack(archive, tmp_path / "other")


# --- the manifest and the commands ------------------------------------------------------------------------------------


def test_manifest_is_complete():
    table = manifest()
    assert set(datasets()) - {"scenes"} <= set(table)
    for entry in table.values():
        assert all((entry.title, entry.licence, entry.terms, entry.citation, entry.layout))
        assert entry.manual or all(r.url for r in entry.files)
        for r in entry.files:
            assert re.fullmatch(r"([0-9a-f]{64})?", r.sha256) and re.fullmatch(r"([0-9a-f]{32})?", r.md5)
            assert not r.url or r.url.startswith(("https://", "http://"))


def entry(server, *remotes: Remote, manual: str = "") -> dict[str, Entry]:
    return {"toy": Entry("toy", "t", "l", "t", "c", "l", remotes, manual)}


def test_get_downloads_and_unpacks_once(server, tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", ("top/a", b"1"))
    monkeypatch.setattr(f"{__name__}.CONTENT", archive.read_bytes())
    monkeypatch.setattr(fetch, "manifest", lambda: entry(server, remote(server, unpack="toy")))
    root = tmp_path / "root"
    assert list(fetch.get("toy", root)) == [f"downloaded and unpacked {root / 'toy'}"]
    assert (root / "toy/top/a").read_bytes() == b"1" and not (root / "set.zip").exists()
    assert list(fetch.get("toy", root)) == [f"{root / 'toy'} is there already"] and len(server.requests) == 1
    (root / "toy" / fetch.MARKER).unlink()  # a folder that the reader made
    with pytest.raises(DataMissing, match=r"toy exists but was not unpacked whole by wsol"):
        list(fetch.get("toy", root))
    assert len(server.requests) == 1  # and nothing is downloaded in vain


def test_get_from_files_at_hand(server, tmp_path, monkeypatch):
    one, two = zip_of(tmp_path / "one.zip", ("a", b"1")), zip_of(tmp_path / "two.zip", ("b", b"2"))
    sha = hashlib.sha256(one.read_bytes()).hexdigest()
    parts = (Remote("one.zip", sha256=sha), Remote("two.zip", unpack="two", optional=True))
    monkeypatch.setattr(fetch, "manifest", lambda: entry(server, *parts, manual="ask the owner"))
    with pytest.raises(DataMissing, match=r"cannot be downloaded by a program: ask the owner"):
        list(fetch.get("toy", tmp_path / "r0"))
    assert "left out" in list(fetch.get("toy", tmp_path / "r1", one))[1]
    assert (tmp_path / "r1/one.zip").read_bytes() == one.read_bytes()
    list(fetch.get("toy", tmp_path / "r2", tmp_path))
    assert (tmp_path / "r2/two/b").read_bytes() == b"2"
    with pytest.raises(DataMissing, match=r"toy needs one.zip"):
        list(fetch.get("toy", tmp_path / "r3", two))
    one.write_bytes(two.read_bytes())
    with pytest.raises(DataCorrupt, match=r"wrong hash"):
        list(fetch.get("toy", tmp_path / "r4", one))


def wsol(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, re.sub(r"\s+", " ", result.output)


def test_commands(tmp_path):
    zipped(tiny(tmp_path))
    code, shown = wsol("list", "--root", tmp_path)
    assert code == 0 and re.search(r"tiny-imagenet yes", shown) and re.search(r"ilsvrc no by hand", shown)
    assert wsol("where", "tiny-imagenet", "--root", tmp_path) == (0, f"{tmp_path}/tiny-imagenet-200.zip ")
    code, shown = wsol("where", "cub", "--root", tmp_path)
    assert code == 1 and "wsol data get cub" in shown and "Traceback" not in shown
    code, shown = wsol("get", "ilsvrc", "--root", tmp_path)
    assert code == 1 and "log in at https://image-net.org" in shown
    assert "did you mean 'cub'" in wsol("get", "cubb")[1]
    code, shown = wsol("subset", "tiny-imagenet", "--out", tmp_path / "out", "--root", tmp_path)
    assert code == 0 and (tmp_path / "out/tiny-imagenet-200.zip").is_file()
    code, shown = wsol("verify", "tiny-imagenet", "--root", tmp_path)
    assert code == 1 and "wrong hash" in shown  # a toy is not the official archive


def test_verify_names_every_damaged_file(tmp_path):
    top = tiny(tmp_path)
    assert wsol("verify", "tiny-imagenet", "--root", tmp_path)[0] == 0
    for file in ("val/images/val_0.JPEG", "train/n01/images/n01_0.JPEG"):
        (top / file).write_bytes(b"no picture")
    code, shown = wsol("verify", "tiny-imagenet", "--root", tmp_path)
    assert code == 1 and "val_0.JPEG" in shown and "n01_0.JPEG" in shown and "2 damaged" in shown
    assert wsol("verify", "cub", "--root", tmp_path)[0] == 1


@pytest.mark.parametrize("command", ["list", "get", "verify", "where", "subset"])
def test_help_says_something(command):
    code, shown = wsol(command, "--help")
    assert code == 0 and "--root" in shown
