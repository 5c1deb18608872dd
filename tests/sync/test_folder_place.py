"""A folder as the place of published versions: atomic to readers, and not trusted."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.test_outputs import room
from trimtab.errors import OutputExistsError, SyncError, WriteError
from trimtab.sync.places import FolderPlace, open_place
from trimtab.sync.untrusted import LocalCopy


@pytest.fixture
def place(tmp_path: Path) -> FolderPlace:
    return FolderPlace(tmp_path / "run")


def test_where_a_folder_is_opened(tmp_path: Path) -> None:
    for where in (tmp_path, str(tmp_path), f"file://{tmp_path}", f"local://{tmp_path}"):
        place = open_place(where)
        assert isinstance(place, FolderPlace)
        assert str(place) == str(tmp_path)
        assert repr(place) == f"FolderPlace({str(tmp_path)!r})"
    with pytest.raises(SyncError, match="is a folder, which takes no options: found key, token"):
        open_place(tmp_path, token="t", key="k")


def test_a_folder_that_is_not_there_is_empty_until_something_is_put(place: FolderPlace) -> None:
    assert place.read("chain.json", 10) is None
    assert list(place.names()) == list(place.names("followers")) == []
    place.remove("chain.json")
    assert not place.folder.exists()
    place.put("followers/a.json", b"{}")
    assert list(place.names("followers")) == ["a.json"]
    assert list(place.names()) == []  # folders are no files


def test_strangers_files_and_drafts_are_not_listed(place: FolderPlace) -> None:
    place.put("b.delta", b"b")
    place.put("a.delta", b"a")
    for name in (".a.delta.0123abcd.tmp", "a file", "a~"):
        (place.folder / name).write_bytes(b"x")
    (place.folder / "link").symlink_to("a.delta")
    os.mkfifo(place.folder / "pipe")
    assert list(place.names()) == ["a.delta", "b.delta"]


def test_what_a_killed_publisher_left_is_removed(place: FolderPlace) -> None:
    place.put("chain.json", b"{}")
    for name in ("a.delta.0123abcd", "b.delta.4567abcd"):
        (place.folder / f".{name}.tmp").write_bytes(b"half")
    with (place.folder / ".b.delta.4567abcd.tmp").open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        again = FolderPlace(place.folder)
        again.put("followers/f.json", b"{}")  # of somebody else
        assert len(list(place.folder.glob(".*.tmp"))) == 2
        again.put("v000001.delta", b"x")
    assert [path.name for path in place.folder.glob(".*.tmp")] == [".b.delta.4567abcd.tmp"]


@pytest.mark.parametrize("what", ["file", "folder", "pipe", "device"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    place: FolderPlace, tmp_path: Path, what: str
) -> None:
    place.put("x", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    name = "followers/secret"
    if what == "file":
        name = "secret"
        (place.folder / name).symlink_to(outside / name)
    elif what == "folder":
        (place.folder / "followers").symlink_to(outside)
    else:
        name = what
        if what == "pipe":
            os.mkfifo(place.folder / name)
        else:
            (place.folder / name).symlink_to("/dev/zero")
    why = "expected a file, found a pipe" if what == "pipe" else "is a link, which may lead anywh"
    with pytest.raises(SyncError, match=why):
        place.read(name, 100)
    with pytest.raises(SyncError, match=why):
        place.fetch(name, tmp_path / "copy", 6)
    assert not (tmp_path / "copy").exists()
    if what != "pipe":
        for write in (place.put, place.claim):
            with pytest.raises(SyncError, match=why):
                write(name, b"mine")
        with pytest.raises(SyncError, match=why):
            place.remove(name)
    if what == "folder":
        with pytest.raises(SyncError, match=why):
            list(place.names("followers"))
    assert (outside / "secret").read_bytes() == b"secret"


def test_the_folder_itself_may_be_a_link(place: FolderPlace, tmp_path: Path) -> None:
    place.put("x", b"x")
    (tmp_path / "link").symlink_to(place.folder)
    assert FolderPlace(tmp_path / "link").read("x", 1) == b"x"


def test_a_file_that_vanishes_while_it_is_read_is_not_there(
    place: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, whose server removes a file that another client reads."""
    monkeypatch.setattr("trimtab.sync.places.PAUSES", (0.0, 0.0))
    place.put("x", b"new")
    opened = FolderPlace._opened
    failures: list[int] = []

    def fails(self: FolderPlace, name: str) -> Any:
        if failures:
            raise OSError(failures.pop(), "no such handle")
        return opened(self, name)

    monkeypatch.setattr(FolderPlace, "_opened", fails)
    failures[:] = [errno.ESTALE]
    assert place.read("x", 9) == b"new"  # replaced: its name leads to the new one
    failures[:] = [errno.ESTALE, errno.ESTALE]
    assert place.read("x", 9) is None
    failures[:] = [errno.ENOENT]
    assert not place.fetch("x", tmp_path / "copy", 3)
    assert not (tmp_path / "copy").exists()
    failures[:] = [errno.EIO]
    with pytest.raises(SyncError, match="run: x cannot be read: no such handle: try again once"):
        place.read("x", 9)


def test_a_file_that_grows_or_shrinks_while_it_is_read(
    place: FolderPlace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.sync.places.PIECE", 4)
    place.put("x", b"0123456789")
    target = tmp_path / "copy"
    for change, found in (("ab", "more"), ("wb", "4")):
        write = LocalCopy.write

        def changed(self: Any, piece: bytes, change: str = change, write: Any = write) -> None:
            write(self, piece)
            with (place.folder / "x").open(change) as file:
                file.write(b"1" if change == "ab" else b"")

        with monkeypatch.context() as patch:
            patch.setattr(LocalCopy, "write", changed)
            with pytest.raises(SyncError, match=f"x has {found} bytes while it was read: exp"):
                place.fetch("x", target, 10)
        assert not target.exists()
        place.put("x", b"0123456789")
    assert place.fetch("x", target, 10)
    assert target.read_bytes() == b"0123456789"


def test_no_room_on_either_side(place: FolderPlace, tmp_path: Path) -> None:
    place.put("x", bytes(500))
    big = tmp_path / "big"
    big.write_bytes(bytes(5000))
    with room(1000):
        for content in (bytes(5000), big):
            with pytest.raises(WriteError, match="run/x cannot be written: file too large: make"):
                place.put("x", content)
        with pytest.raises(WriteError):
            place.claim("y", bytes(5000))
    assert place.read("x", 500) == bytes(500)
    assert [path.name for path in place.folder.iterdir()] == ["x"]
    place.put("x", big)
    with room(1000), pytest.raises(WriteError, match="copy cannot be written: file too large"):
        place.fetch("x", tmp_path / "copy", 5000)
    assert not (tmp_path / "copy").exists()


def test_the_target_of_a_fetch_is_never_replaced(place: FolderPlace, tmp_path: Path) -> None:
    place.put("x", b"new")
    target = tmp_path / "copy"
    target.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="copy exists already: expected a new file"):
        place.fetch("x", target, 3)
    assert target.read_bytes() == b"old"
    with pytest.raises(SyncError, match="not-there/copy cannot be written: no such file"):
        place.fetch("x", tmp_path / "not-there/copy", 3)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of root, if this is root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_rights_are_said() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        place = FolderPlace(f"{folder}/run")
        place.put("x", b"x")
        (place.folder / "x").chmod(0)
        place.folder.chmod(0o555)
        with as_nobody():
            with pytest.raises(SyncError, match="x cannot be read: permission denied: this user"):
                place.read("x", 1)
            with pytest.raises(SyncError, match="x cannot be removed: permission denied: this u"):
                place.remove("x")
            with pytest.raises(SyncError, match="y cannot be written: permission denied: this u"):
                place.put("y", b"y")
        place.folder.chmod(0o755)


def test_what_is_in_the_way_is_named(place: FolderPlace) -> None:
    place.put("followers", b"a file")
    place.put("folder/x", b"x")
    for name, why in (("followers/a.json", "file exists"), ("folder", "is a directory")):
        for write in (place.put, place.claim):
            with pytest.raises(SyncError, match=f"{name} cannot be written: {why}: expected a fi"):
                write(name, b"new")
    assert place.read("followers/a.json", 9) is None
    with pytest.raises(SyncError, match="expected a file, found a folder"):
        place.read("folder", 9)


WRITER = """
import sys
from trimtab.sync.places import FolderPlace

place = FolderPlace(sys.argv[1])
for n in range(150):
    place.put("chain.json", bytes([n % 251]) * (1 + n * 997 % 30_000))
    place.put(f"v{n % 5}", b"v")
    place.remove(f"v{(n + 2) % 5}")
"""


def test_a_reader_beside_a_writer_sees_each_file_whole(tmp_path: Path) -> None:
    place, seen = FolderPlace(tmp_path / "run"), set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(place)]) as writer:
        while writer.poll() is None:
            content = place.read("chain.json", 30_000)
            if content is not None:
                assert content == content[:1] * len(content)
                seen.add(len(content))
            assert set(place.names()) <= {"chain.json", *(f"v{n}" for n in range(5))}
            for n in range(5):
                if place.fetch(f"v{n}", tmp_path / "copy", 1):
                    (tmp_path / "copy").unlink()
    assert writer.returncode == 0
    assert len(seen) > 10


CLAIMER = """
import os, sys
from trimtab.sync.places import open_place

place = open_place(sys.argv[1])
for n in range(40):
    print(int(place.claim(f"claims/v{n}", f"{os.getpid()} {n}".encode())))
"""


def test_one_of_several_processes_gets_a_claim(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "run")
    command = [sys.executable, "-c", CLAIMER, str(place)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    got = {process.pid: process.communicate()[0].split() for process in started}
    for n in range(40):
        winners = [pid for pid, answers in got.items() if answers[n] == "1"]
        assert len(winners) == 1
        assert place.read(f"claims/v{n}", 99) == f"{winners[0]} {n}".encode()
    assert place.claim("claims/v0", place.read("claims/v0", 99) or b"")  # its own
    assert not place.claim("claims/v0", b"another")
