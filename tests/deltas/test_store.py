"""A store of checkpoints: nobody ever reads a wrong one, whoever writes, cleans up or is killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import pytest

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.test_deltas import pair
from trimtab.deltas import apply, store_objects
from trimtab.deltas import store as store_module
from trimtab.errors import CheckpointError, DeltaError, OutputExistsError


def base_and_run(folder: Path, steps: int = 3, rows: int = 20) -> tuple[Path, list[Path]]:
    """A base and the checkpoints of a run from it: each moves a little more of the weights."""
    weight = random_bits("BF16", (rows, 30), 0)
    base = write_folder(folder / "base", {"w": ("BF16", weight)})
    run = []
    for step in range(1, steps + 1):
        weight = moved(weight, 0.3, step)
        run.append(write_folder(folder / f"step-{step}", {"w": ("BF16", weight)}))
    return base, run


def store_of(folder: Path, base: Path, *checkpoints: Path, **options: Any) -> trimtab.Store:
    store = trimtab.Store.create(folder, base)
    for checkpoint in checkpoints:
        store.add(checkpoint, checkpoint.name, threads=1, **options)
    return store


def check_out(store: trimtab.Store, name: str, output: Path, **options: Any) -> dict[str, bytes]:
    store.checkout(name, output, threads=1, **options)
    content = content_of(output)
    shutil.rmtree(output)
    return content


def test_making_a_store_reports_the_bytes_of_its_base(tmp_path: Path) -> None:
    base, _ = pair(tmp_path)
    seen: list[tuple[int, int]] = []
    trimtab.Store.create(tmp_path / "store", base, progress=lambda *done: seen.append(done))
    assert [total for _, total in seen] == [sum(done for done, _ in seen)] * 2


def test_every_checkpoint_comes_back_from_the_smaller_delta(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path, steps=4, rows=100)
    store = store_of(tmp_path / "store", base, *run)
    entries = store.entries()
    assert [entry.name for entry in entries] == [folder.name for folder in run]
    assert [entry.against for entry in entries] == ["base", "step-1", "step-2", "step-3"]
    assert [entry.num_deltas for entry in entries] == [1, 2, 3, 4]
    again = store_of(tmp_path / "flat", base, *run, against="base").entries()
    assert all(a.num_bytes < b.num_bytes for a, b in zip(entries[1:], again[1:], strict=True))
    assert {entry.against for entry in again} == {"base"}
    for folder in run:
        assert check_out(store, folder.name, tmp_path / "out") == content_of(folder)
    assert store.verify() == store.verify(decodes=False) == 4
    with trimtab.DeltaFile(tmp_path / "store/objects" / f"{entries[3].hash}.delta") as last:
        assert (last.manifest.position, last.manifest.root) == (4, store.base.content_hash)
    unlike = write_folder(
        tmp_path / "unlike", {"w": ("BF16", moved(random_bits("BF16", (100, 30), 0), 0.05, 9))}
    )
    assert store.add(unlike, "unlike").against == "base"


def test_equal_files_are_one_object_and_another_config_is_another(tmp_path: Path) -> None:
    """Both have the same tensors, thus the same content hash."""
    base, (tuned, _, _) = base_and_run(tmp_path)
    store = store_of(tmp_path / "store", base, tuned)
    same = store.add(shutil.copytree(tuned, tmp_path / "same"), "same")
    assert same.hash == store.entries()[0].hash and len(store._objects.hashes()) == 1
    assert same.against == "base"
    other = shutil.copytree(tuned, tmp_path / "other")
    (other / "config.json").write_text('{"a": 2}')
    for against in ("step-1", "base"):
        entry = store.add(other, "other", against=against, force=True)
        assert entry.against == "step-1"  # the object that is there is kept
    third = shutil.copytree(other, tmp_path / "third")
    (third / "config.json").write_text('{"a": 3}')
    assert store.add(third, "third", against="other").num_deltas == 3
    for folder, name in ((tuned, "same"), (other, "other"), (third, "third")):
        assert check_out(store, name, tmp_path / "out") == content_of(folder)
    unchanged = write_folder(
        tmp_path / "unchanged", {"w": ("BF16", random_bits("BF16", (20, 30), 0))}
    )
    store.add(unchanged, "unchanged")
    assert check_out(store, "unchanged", tmp_path / "out") == content_of(unchanged)
    assert store.verify() == 4


def test_gc_follows_chains(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path)
    store = store_of(tmp_path / "store", base, run[0])
    store.add(run[1], "step-2", against="step-1")
    store.add(run[2], "step-3", against="base")
    store.remove("step-1")
    store.remove("step-3")
    before = {hash: store._objects.path(hash).stat().st_size for hash in store._objects.hashes()}
    num_objects, num_bytes = store.gc()
    gone = before.keys() - set(store._objects.hashes())
    assert (num_objects, num_bytes) == (1, sum(before[hash] for hash in gone))
    (entry,) = store.entries()
    assert is_hash(entry.against) and entry.num_deltas == 2
    assert check_out(store, "step-2", tmp_path / "out") == content_of(run[1])
    store.remove("step-2")
    assert store.gc()[0] == 2 and store.gc() == (0, 0) and store.verify() == 0


def is_hash(text: str) -> bool:
    return len(text) == 32 and set(text) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "/x", ".x", "-x", "x\n", "x" * 101, "\0", "ä", "base", "auto"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    base, (tuned, *_) = base_and_run(tmp_path, steps=1)
    store = store_of(tmp_path / "store", base)
    before = content_of(tmp_path)
    with pytest.raises(DeltaError, match="cannot be"):
        store.add(tuned, name)
    for call in (store.remove, lambda name: store.checkout(name, tmp_path / "out")):
        with pytest.raises(DeltaError, match=r"cannot be|no checkpoint"):
            call(name)
    assert content_of(tmp_path) == before


def test_one_sentence_for_each_mistake(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path)
    store = store_of(tmp_path / "store", base, run[0])
    with pytest.raises(DeltaError, match=r"not a store: it has no store\.json"):
        trimtab.Store(tmp_path / "base")
    with pytest.raises(OutputExistsError, match="exists already"):
        trimtab.Store.create(tmp_path / "store", base)
    with pytest.raises(OutputExistsError, match=r"step-1\.json exists already"):
        store.add(run[1], "step-1")
    with pytest.raises(DeltaError, match="no checkpoint 'x': it has step-1"):
        store.add(run[1], "y", against="x")
    with pytest.raises(DeltaError, match=r"its content hash is .* give the base .*/base as it was"):
        store.add(run[1], "y", base=run[2], against="base")
    with pytest.raises(DeltaError, match=r"w has xxh3-128 .* give the base .*/base$"):
        store.checkout("step-1", tmp_path / "out", base=run[2])
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(
        CheckpointError, match=r"no such file or folder; give the store's base with"
    ):
        store.checkout("step-1", tmp_path / "out")
    store.add(run[1], "y", base=tmp_path / "elsewhere")
    assert check_out(store, "y", tmp_path / "out", base=tmp_path / "elsewhere") == content_of(
        run[1]
    )
    assert not (tmp_path / "out").exists() and store.names() == ("step-1", "y")
    for text, words in (
        ("{", "not JSON"),
        ("[]", "damaged store"),
        ('{"format_version": 2}', "install a newer one"),
        (json.dumps({"format": "x", "format_version": 1, "base": {}}), "damaged store"),
    ):
        (tmp_path / "store/store.json").write_text(text)
        with pytest.raises(DeltaError, match=words):
            trimtab.Store(tmp_path / "store")


def test_damage_is_found_and_nothing_wrong_comes_out(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path, steps=2)
    store = store_of(tmp_path / "store", base, run[0])
    store.add(run[1], "step-2", against="step-1")
    first, second = (store._objects.path(entry.hash) for entry in store.entries())
    content = first.read_bytes()
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        first.write_bytes(damaged)
        for name, folder in (("step-1", run[0]), ("step-2", run[1])):
            try:
                assert check_out(store, name, tmp_path / "out") == content_of(folder)
            except DeltaError:
                assert not (tmp_path / "out").exists()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DeltaError, match=r"it holds the checkpoint .*needed by step-1, step-2"):
        store.verify()
    first.write_bytes(content[:100])
    with pytest.raises(DeltaError, match="needed by step-1, step-2"):
        store.verify(decodes=False)
    with pytest.raises(DeltaError):
        store.gc()
    assert len(store._objects.hashes()) == 2
    assert store.add(run[0], "again", against="base").hash == first.stem  # mends it
    assert store.verify() == 2
    second.unlink()
    with pytest.raises(DeltaError, match=r"no such file .*needed by step-2"):
        store.verify()
    (tmp_path / "store/names/step-2.json").write_text('{"hash": "../../x", "date": ""}')
    with pytest.raises(DeltaError, match="expected 32 hexadecimal digits"):
        store.checkout("step-2", tmp_path / "out")


def test_a_chain_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (store_module, store_objects):
        monkeypatch.setattr(module, "MAX_CHAIN", 3)
    base, (tuned,) = base_and_run(tmp_path, steps=1, rows=2)
    store = store_of(tmp_path / "store", base, tuned)
    for number in (2, 3):
        (tuned / "config.json").write_text(json.dumps({"a": number}))
        entry = store.add(tuned, f"n{number}", against=store.entries()[-1].name, threads=1)
    assert entry.num_deltas == 3
    assert check_out(store, entry.name, tmp_path / "out") == content_of(tuned)
    (tuned / "config.json").write_text("{}")
    with pytest.raises(DeltaError, match="3 deltas from the base, the most that there may be"):
        store.add(tuned, "more", against=entry.name)
    assert store.add(tuned, "more").against == "base"


def test_what_is_decoded_already_is_used_where_it_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, run = base_and_run(tmp_path)
    store = store_of(tmp_path / "store", base, run[0])
    written: list[str] = []

    def counted(replay: Any, file: Any, *more: Any, **options: Any) -> None:
        written.append(file.path)
        apply.write_file(replay, file, *more, **options)

    monkeypatch.setattr(store_objects, "write_file", counted)
    options: dict[str, Any] = {"against": "step-1", "threads": 1, "force": True, "max_rank": 0}
    for folder, expected in ((run[0], []), (run[1], ["model.safetensors"]), (tmp_path / "x", 3)):
        store.add(run[2], "new", decoded=folder, verify=True, **options)
        assert written == expected or len(written) == expected
        assert check_out(store, "new", tmp_path / "out") == content_of(run[2])
        assert store.manifest("new").position == 2
        written.clear()
        store.remove("new")
        store.gc()
    assert content_of(run[0]).keys() == {"config.json", "tokenizer.json", "model.safetensors"}


def test_verified_as_it_is_added(tmp_path: Path) -> None:
    """An object that is there already is decoded too: only its manifest is read otherwise."""
    base, run = base_and_run(tmp_path, steps=1)
    store = store_of(tmp_path / "store", base, run[0], max_rank=0)
    (path,) = (store.folder / "objects").iterdir()
    content = path.read_bytes()
    with trimtab.DeltaFile(path) as delta:
        part = delta._parts["tensors"]
        place = part.offset + part.num_bytes // 2
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    store.add(run[0], "again", threads=1, against="base")
    with pytest.raises(DeltaError, match="w"):
        store.add(run[0], "verified", threads=1, against="base", verify=True)
    assert store.names() == ("again", "step-1")
    path.unlink()
    store.add(run[0], "verified", threads=1, against="base", verify=True)
    assert store.verify() == 1


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path, steps=2)
    store = store_of(tmp_path / "store", base, run[0])
    outside = tmp_path / "outside.json"
    shutil.copy(store.folder / "names/step-1.json", outside)
    (store.folder / "names/x.json").symlink_to(outside)
    for call in (
        lambda: store.add(run[1], "x", force=True),
        lambda: store.checkout("x", tmp_path / "out"),
        lambda: store.remove("x"),
        store.entries,
        store.gc,
    ):
        with pytest.raises(DeltaError, match=r"x\.json: expected a file, found a link: remove it"):
            call()
    (store.folder / "names/x.json").unlink()
    (store.folder / ".lock").symlink_to(tmp_path / "lock")
    with pytest.raises(DeltaError, match=r"\.lock: cannot be changed"):
        store.gc()
    (store.folder / ".lock").unlink()
    for name in ("objects", "names"):
        (store.folder / name).rename(tmp_path / name)
        (store.folder / name).symlink_to(tmp_path / name)
        with pytest.raises(DeltaError, match=f"{name}: expected a folder, found a link"):
            trimtab.Store(store.folder)
        (store.folder / name).unlink()
        (tmp_path / name).rename(store.folder / name)
    assert not (tmp_path / "lock").exists() and store.verify() == 1
    assert outside.read_bytes() == (store.folder / "names/step-1.json").read_bytes()


def test_what_is_removed_while_it_is_read(tmp_path: Path) -> None:
    """The sibling that `add` makes a delta against, and the checkpoint that is checked out."""
    base, run = base_and_run(tmp_path)
    store = store_of(tmp_path / "store", base, run[0])

    def removes(*_: int) -> None:
        if store.names() == ("step-1",):
            store.remove("step-1")
            assert store.gc()[0]

    with pytest.raises(DeltaError, match="was removed meanwhile: add again"):
        store.add(run[1], "x", against="step-1", threads=1, progress=removes)
    assert store.names() == () and store.verify() == 0
    store.add(run[0], "step-1", threads=1)
    assert store.add(run[1], "x", threads=1, progress=removes).against == "base"
    assert check_out(store, "x", tmp_path / "out") == content_of(run[1])
    store.remove("x")
    store.add(run[0], "step-1", threads=1)
    # Its objects are open: the checkout has all of it.
    assert check_out(store, "step-1", tmp_path / "out", progress=removes) == content_of(run[0])
    assert store.names() == () and store.gc() == (0, 0)


LOOP = """
import shutil, sys, time
from pathlib import Path
import trimtab
from tests.deltas.building import content_of

role, folder, work, *checkpoints = sys.argv[1:]
store, work = trimtab.Store(folder), Path(work)
expected = [content_of(Path(path)) for path in checkpoints]
done = 0
while not (work / "stop").exists():
    if role in "ab":  # two writers with a name of their own, and one that both give
        for name in (role, "both"):
            for path in checkpoints:
                store.add(path, name, force=True, threads=1)
    elif role == "gc":
        store.gc()
    elif names := store.names():
        for name in names:
            store.checkout(name, work / role)
            assert content_of(work / role) in expected
            shutil.rmtree(work / role)
        store.entries()
    done += 1
    (work / f"{role}.{done}").touch()
"""

ROLES = ("a", "b", "read", "read-too", "gc")


@pytest.mark.slow
def test_two_add_while_two_read_and_one_cleans_up(tmp_path: Path) -> None:
    base, run = base_and_run(tmp_path, steps=2, rows=6)
    store = store_of(tmp_path / "store", base)
    work = tmp_path / "work"
    work.mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, role, store.folder, work, *run],
            stderr=subprocess.PIPE,
            text=True,
        )
        for role in ROLES
    ]
    try:
        while any(process.poll() is None for process in processes) and not all(
            (work / f"{role}.2").exists() for role in ROLES
        ):
            sleep(0.05)
            if any(process.poll() for process in processes):
                break
    finally:
        (work / "stop").touch()
        errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(ROLES), errors
    assert store.names() == ("a", "b", "both")
    assert store.verify() >= 1
    assert {path.name for path in store.folder.iterdir()} == {"store.json", "objects", "names"}


KILLED = """
import os, shutil, sys
import concurrent.futures.thread, json, xxhash, zstandard
import trimtab

start, folders, tuned, verb = sys.argv[1:]

def work(folder):
    if verb == "add":
        trimtab.Store(folder).add(tuned, "new", threads=1)
    else:
        trimtab.Store(folder).gc()

shutil.copytree(start, f"{folders}.warm")  # so that no child loads compiled kernels
work(f"{folders}.warm")

def run(folder, left):
    def audit(event, arguments):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            if folder in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), 9)
    sys.addaudithook(audit)
    work(folder)

for step in range(1000):
    folder = f"{folders}/{step}"
    shutil.copytree(start, folder)
    if not (child := os.fork()):
        try:
            run(folder, step)
        except BaseException as error:
            print(error)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -9:
        sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills the children of a fork")
@pytest.mark.parametrize("verb", ["add", "gc"])
def test_killed_at_every_step(tmp_path: Path, verb: str) -> None:
    """Killed before each call that opens, renames or removes: all that has a name is whole."""
    base, run = base_and_run(tmp_path, rows=2)
    store = store_of(tmp_path / "start", base, run[0])
    store.add(run[1], "step-2", against="step-1")
    if verb == "gc":
        store.add(run[2], "step-3", against="step-2")
        store.remove("step-3")
        (store.folder / ".add.00000000.tmp").mkdir()
        (store.folder / ".add.00000000.tmp" / "0.delta").write_bytes(b"left")
    old = {name: content_of(folder) for name, folder in (("step-1", run[0]), ("step-2", run[1]))}
    folders = tmp_path / "folders"
    folders.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, store.folder, folders, run[2], verb],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *killed, last = sorted(folders.iterdir(), key=lambda folder: int(folder.name))
    assert len(killed) > (30 if verb == "add" else 10)
    ends = set()
    for folder in (*killed, last):
        store = trimtab.Store(folder)
        names = set(store.names())
        ends.add(len(names))
        if verb == "add":
            assert names in ({*old}, {*old, "new"})
        else:
            assert names == {*old}
        store.verify()
        if "new" in names:
            assert check_out(store, "new", tmp_path / "out") == content_of(run[2])
        store.gc()
        assert len(store._objects.hashes()) == len(names)
        assert {path.name for path in folder.iterdir()} == {"store.json", "objects", "names"}
        assert not [path for path in (folder / "names").iterdir() if path.name.startswith(".")]
        assert check_out(store, "step-2", tmp_path / "out") == old["step-2"]
        if verb == "add" and "new" not in names and int(folder.name) % 8 == 0:
            store.add(run[2], "new", threads=1)
            assert check_out(store, "new", tmp_path / "out") == content_of(run[2])
    assert ends == ({2, 3} if verb == "add" else {2})
