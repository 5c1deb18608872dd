"""What every place of versions does alike: a folder, memory, a real S3 server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from tests.sync.conftest import SECRET
from tests.test_outputs import room
from trimtab.errors import MissingExtraError, OutputExistsError, SyncError, WriteError
from trimtab.sync.object_place import ObjectPlace
from trimtab.sync.places import FolderPlace, Place, open_place

KINDS = ("folder", "memory", "s3")
NAMES = ("chain.json", "v000001.delta", "followers/a.json", "followers/b.json", "deep/er/x")


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A new, empty place of each kind."""
    return open_kind(request, request.param, tmp_path)


def open_kind(request: pytest.FixtureRequest, kind: str, folder: Path) -> Place:
    if kind == "folder":
        return open_place(folder / uuid4().hex)
    if kind == "memory":
        return open_place(f"memory://{uuid4().hex}/run")
    options = request.getfixturevalue("s3_options")
    return open_place(f"{request.getfixturevalue('bucket')}/{uuid4().hex}", **options)


class Beside(RuleBasedStateMachine):
    """A place beside a dict of what was put there."""

    place: Place
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.expected: dict[str, bytes] = {}
        for name in NAMES:
            self.place.remove(name)

    @rule(name=st.sampled_from(NAMES), content=st.binary(max_size=30), from_file=st.booleans())
    def put(self, name: str, content: bytes, from_file: bool) -> None:
        path = self.folder / "put"
        path.write_bytes(content)
        self.place.put(name, path if from_file else content)
        self.expected[name] = content

    @rule(name=st.sampled_from(NAMES), content=st.binary(max_size=30))
    def claim(self, name: str, content: bytes) -> None:
        expected = self.expected.setdefault(name, content) == content
        assert self.place.claim(name, content) is expected

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.place.remove(name)
        self.expected.pop(name, None)

    @rule(name=st.sampled_from(NAMES), limit=st.integers(0, 35))
    def read(self, name: str, limit: int) -> None:
        expected = self.expected.get(name)
        if expected is not None and len(expected) > limit:
            with pytest.raises(SyncError, match=f"{name} is too long: expected at most {limit} b"):
                self.place.read(name, limit)
        else:
            assert self.place.read(name, limit) == expected

    @rule(name=st.sampled_from(NAMES), num_bytes=st.integers(0, 30), is_right=st.booleans())
    def fetch(self, name: str, num_bytes: int, is_right: bool) -> None:
        target, expected = self.folder / "fetched", self.expected.get(name)
        if expected is not None and not is_right and num_bytes != len(expected):
            with pytest.raises(SyncError, match=f"{name} has .* bytes: expected {num_bytes}: it "):
                self.place.fetch(name, target, num_bytes)
        else:
            size = num_bytes if expected is None else len(expected)
            assert self.place.fetch(name, target, size) is (expected is not None)
        assert target.exists() is (
            expected is not None and (is_right or num_bytes == len(expected))
        )
        if target.exists():
            assert target.read_bytes() == expected
            target.unlink()

    @rule(folder=st.sampled_from(("", "followers", "deep", "deep/er", "nowhere")))
    def names(self, folder: str) -> None:
        start = f"{folder}/" if folder else ""
        rest = (name[len(start) :] for name in self.expected if name.startswith(start))
        assert list(self.place.names(folder)) == sorted(n for n in rest if "/" not in n)


def test_every_kind_behaves_as_a_dict(place: Place, tmp_path: Path) -> None:
    kind = type("Machine", (Beside,), {"place": place, "folder": tmp_path})
    many = 8 if str(place).startswith("s3") else 25
    run_state_machine_as_test(
        kind, settings=settings(max_examples=many, stateful_step_count=20, deadline=None)
    )


HOSTILE = (
    *("", ".", "..", "/", "/etc/passwd", "../x", "a/../x", "a//b", "a/", "./a", ".hidden", "a/.b"),
    *("a\\b", "C:x", "a b", "a\n", "é", "a*", "[a]", "a?", "a#b", "a%2e", "~", "$HOME", "a\0"),
    *("-rf", "s3://other/x", "x" * 300, "a/b/c/d/e", "a?versionId=1"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_are_refused(name: str, tmp_path: Path) -> None:
    for place in (open_place(tmp_path / "run"), open_place("memory://hostile/run")):
        acts: tuple[Callable[[], object], ...] = (
            partial(place.read, name, 9),
            partial(place.fetch, name, tmp_path / "copy", 9),
            partial(place.put, name, b"x"),
            partial(place.claim, name, b"x"),
            partial(place.remove, name),
            partial(next, place.names(name or ".")),
        )
        for act in acts:
            with pytest.raises(SyncError, match="is no name of a file there: expected let") as e:
                act()
            assert str(e.value).isprintable()
        assert list(place.names()) == []
    assert list(tmp_path.iterdir()) == []


@given(name=st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_name_at_all_leads_out(name: str, tmp_path: Path) -> None:
    place = FolderPlace(tmp_path / "run")
    try:
        path = place._path(name)
    except SyncError:
        return
    assert path.resolve().is_relative_to(place.folder.resolve())
    assert path != place.folder


def test_a_file_of_many_pieces(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(251)) * 4000
    for module in ("places", "object_place"):
        monkeypatch.setattr(f"trimtab.sync.{module}.PIECE", 100_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    if not str(place).startswith("s3"):  # a part there has at least 5 MB
        place.put("x", source)
    else:
        place.put("x", content)
    assert place.fetch("x", target, len(content))
    assert target.read_bytes() == content


def test_a_large_file_is_streamed(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts to S3, and in pieces from it and from a folder: memory does not hold it."""
    monkeypatch.setattr("trimtab.sync.object_place.PARALLEL", 1)
    for module in ("places", "object_place"):
        monkeypatch.setattr(f"trimtab.sync.{module}.PIECE", 5 << 20)
    source = tmp_path / "source"
    with source.open("wb") as file:
        for n in range(36):
            file.write(bytes([n]) * (1 << 20))
    size = source.stat().st_size
    for kind, most in (("folder", 12 << 20), ("s3", 28 << 20)):
        place, target = open_kind(request, kind, tmp_path), tmp_path / f"target-{kind}"
        peaks = []
        acts: tuple[Callable[[], object], ...] = (
            partial(place.put, "x", source),
            partial(place.fetch, "x", target, size),
        )
        for act in acts:
            tracemalloc.start()
            try:
                act()
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert max(peaks) < most
        assert target.read_bytes() == source.read_bytes()


def test_no_room_for_what_is_fetched(place: Place, tmp_path: Path) -> None:
    place.put("x", bytes(5000))
    target = tmp_path / "copy"
    with room(1000), pytest.raises(WriteError, match="copy cannot be written: file too large: mak"):
        place.fetch("x", target, 5000)
    assert not target.exists()
    target.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match="copy exists already"):
        place.fetch("x", target, 5000)
    assert target.read_bytes() == b"old"


def test_a_follower_of_a_store_sees_the_newest_at_once(
    bucket: str, s3_options: dict[str, Any]
) -> None:
    """Listings, sizes and contents come from no cache, whatever the process asked before."""
    writer, reader = (open_place(f"{bucket}/run", **s3_options) for _ in range(2))
    for n in range(5):
        assert reader.read("chain.json", 99) == (f"{n - 1}".encode() if n else None)
        writer.put("chain.json", f"{n}".encode())
        writer.put(f"v{n}", bytes(n))
        assert list(reader.names()) == ["chain.json", *(f"v{n}" for n in range(n + 1))]
        assert reader.read("chain.json", 99) == f"{n}".encode()


def test_a_bucket_itself_may_be_the_place(bucket: str, s3_options: dict[str, Any]) -> None:
    place = open_place(f"{bucket}/", **s3_options)
    place.put("x", b"x")
    place.put("followers/a.json", b"{}")
    assert list(place.names()) == ["x"]
    assert list(place.names("followers")) == ["a.json"]


def test_the_environment_says_where_a_store_is(
    bucket: str, s3_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_options["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    open_place(f"{bucket}/run").put("x", b"x")
    assert open_place(f"{bucket}/run", **s3_options).read("x", 1) == b"x"


def test_a_missing_bucket_is_named(s3_options: dict[str, Any]) -> None:
    place = open_place("s3://no-such-bucket/run", **s3_options)
    for act in (partial(place.read, "x", 9), partial(place.put, "x", b"x")):
        with pytest.raises(SyncError, match=r"no-such-bucket/run: x cannot be .*: make it"):
            act()


def test_a_store_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    monkeypatch.setattr("trimtab.sync.object_place.PAUSE", 0.0)
    options = {"config_kwargs": {"retries": {"max_attempts": 0}}, "key": "k", "secret": SECRET}
    place = open_place("s3://bucket/run", endpoint_url="http://127.0.0.1:9", **options)
    with pytest.raises(SyncError, match=r"bucket/run: x cannot be read: .*: check the network"):
        place.read("x", 9)


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    for url, error, why in (
        ("nope://x", SyncError, "nope://x cannot be opened: Protocol not known: nope"),
        ("simplecache::memory://x", SyncError, "expected one URL, found a chain: a cache hides"),
        ("gs://bucket/run", MissingExtraError, "gs:// needs gcsfs: run `pip install gcsfs`"),
    ):
        if url.startswith("gs") and find_spec("gcsfs"):
            continue
        with pytest.raises(error, match=why):
            open_place(url)


def test_the_extra_for_s3_is_named(tmp_path: Path) -> None:
    (tmp_path / "s3fs.py").write_text("import no_such_module\n")
    code = "from trimtab.sync.places import open_place; open_place('s3://b/r')"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code.replace("open_place(", "open_place(", 1)]
    (tmp_path / "s3fs.py").write_text("raise ModuleNotFoundError('no', name='s3fs')\n")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith(
        "s3:// needs s3fs: run `pip install 'trimtab[s3]'`"
    )


def test_secrets_are_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-session-token")
    options = {"client_kwargs": {"aws_secret_access_key": SECRET}, "use_ssl": True}
    place = ObjectPlace("memory://user:password@host/run?sig=abcdef", **options)
    assert str(place) == "memory://host/run"
    assert repr(place) == "ObjectPlace('memory://host/run')"

    def fails(*_: object, **__: object) -> bytes:
        raise PermissionError(f"refused: {SECRET} with a-session-token is not True\nmore")

    monkeypatch.setattr(place._files, "cat_file", fails)
    with pytest.raises(SyncError) as caught:
        place.read("x", 9)
    text = "".join(traceback.format_exception(caught.value))
    assert "memory://host/run: x cannot be read: refused: *** with *** is not True more: g" in text
    assert SECRET not in text
    assert "password" not in text


class Proxy(threading.Thread):
    """Between a client and a server: each connection ends after so many bytes of answers."""

    def __init__(self, server: tuple[str, int], budgets: Iterator[int]) -> None:
        super().__init__(daemon=True)
        self.server, self.budgets = server, budgets
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.num_cut = 0

    def run(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            upstream = socket.create_connection(self.server)
            threading.Thread(target=self.requests, args=(client, upstream), daemon=True).start()
            threading.Thread(target=self.answers, args=(client, upstream), daemon=True).start()

    def requests(self, client: socket.socket, upstream: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(1 << 16):
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_WR)

    def answers(self, client: socket.socket, upstream: socket.socket) -> None:
        left = next(self.budgets)
        with suppress(OSError), client, upstream:
            while data := upstream.recv(1 << 16):
                client.sendall(data[:left])
                left -= len(data)
                if left <= 0:
                    self.num_cut += 1
                    client.shutdown(socket.SHUT_RDWR)
                    return


def test_a_network_that_cuts_connections(
    bucket: str, s3_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are lost or cut anywhere; what was claimed although the answer was lost, is ours."""
    monkeypatch.setattr("trimtab.sync.object_place.PIECE", 5000)
    random = Random(15)
    host, port = s3_options["endpoint_url"].removeprefix("http://").split(":")
    budgets = (random.choice((0, 100, 1000, 6000, 10**6)) for _ in iter(int, 1))
    proxy = Proxy((host, int(port)), budgets)
    proxy.start()
    through = f"http://127.0.0.1:{proxy.listening.getsockname()[1]}"
    place = open_place(f"{bucket}/run", **{**s3_options, "endpoint_url": through})
    direct = open_place(f"{bucket}/run", **s3_options)
    content = random.randbytes(30_000)
    for n in range(3):
        assert place.claim(f"claims/{n}", f"mine {n}".encode())
        assert not place.claim(f"claims/{n}", b"yours")
        place.put(f"v{n}", content)
        assert direct.read(f"v{n}", 30_000) == content
        assert place.fetch(f"v{n}", tmp_path / f"v{n}", 30_000)
        assert (tmp_path / f"v{n}").read_bytes() == content
        assert list(place.names()) == [f"v{m}" for m in range(n + 1)]
        place.remove(f"claims/{n}")
    proxy.listening.close()
    assert proxy.num_cut > 3


READER = """
import json, sys
from trimtab.sync.places import open_place

place = open_place(sys.argv[1], **json.loads(sys.argv[2]))
num = 0
while (content := place.read("chain.json", 30_000)) != b"end":
    assert content == content[:1] * len(content), len(content)
    num += 1
    if num == 30:
        place.put("followers/reader.json", b"{}")
"""


def test_a_reader_of_a_store_sees_each_file_whole(bucket: str, s3_options: dict[str, Any]) -> None:
    place, n = open_place(f"{bucket}/run", **s3_options), 0
    place.put("chain.json", b"0")
    command = [sys.executable, "-c", READER, f"{bucket}/run", json.dumps(s3_options)]
    with subprocess.Popen(command) as reader:
        while place.read("followers/reader.json", 9) is None and reader.poll() is None:
            place.put("chain.json", bytes([n % 251]) * (1 + n * 997 % 30_000))
            n += 1
        place.put("chain.json", b"end")
    assert reader.returncode == 0
    assert n > 10
