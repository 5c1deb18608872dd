"""Stores that anybody may have written or anything may have damaged: refused, or right."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.test_hostile import (
    MOST_MEMORY,
    MUTATIONS,
    ODD,
    edited,
    manifest_in,
    mutate_bytes,
    scratch_on,
    split,
    with_manifest,
)
from trimtab.errors import TrimtabError

NUM_MUTATIONS = {"bytes": 1_500, "json": 1_700, "objects": 1_000, "paths": 850}
"""Mutated stores by what is mutated; 5,050 in all."""

FACTOR = int(os.environ.get("TRIMTAB_TEST_MUTATIONS", "1"))
"""How many times as many, for a longer run by hand."""

VERBS = {"list": 4, "checkout": 5, "verify": 3, "quick": 2, "remove": 1, "gc": 2, "add": 1}
"""Verb -> how often it is chosen."""

Files = dict[str, bytes]


class World(NamedTuple):
    """A store, and what must come of it.

    Attributes:
        base: The base.
        new: A checkpoint that is not in the store.
        files: The files of the store.
        contents: Name -> the files of the checkpoint; of `new` too.
    """

    base: Path
    new: Path
    files: Files
    contents: dict[str, Files]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Three objects, of which one is against another, and four names."""
    folder = scratch_on(tmp_path_factory.mktemp("store"))
    bits = random_bits("BF16", (4, 30), 0)
    tied = random_bits("F32", (3,), 1)
    base = write_folder(folder / "base", {"w": ("BF16", bits), "n": ("F32", tied)})
    store = trimtab.Store.create(folder / "store", base)
    contents = {}
    for number, name in enumerate(("one", "two", "three", "new")):
        tuned = {"w": ("BF16", moved(bits, 0.3, number)), "n": ("F32", tied)}
        write_folder(folder / name, tuned, config={"number": number})
        contents[name] = content_of(folder / name)
        if name != "new":
            against = "one" if name == "two" else "base"
            store.add(folder / name, name, against=against, max_rank=0, threads=1)
    store.add(folder / "one", "twin", against="base", max_rank=0, threads=1)
    contents["twin"] = contents["one"]
    files = content_of(folder / "store")
    yield World(base, folder / "new", files, contents)
    shutil.rmtree(folder)


def reset(folder: Path, files: Files) -> None:
    """Make a folder hold these files and nothing else; what is right stays, which is quicker."""
    right = set()
    folders = ("", "names", "objects")
    for at in folders:
        place = folder / at
        if place.is_symlink() or not place.is_dir():
            remove(place)
            place.mkdir(parents=True)
        for entry in list(os.scandir(place)):
            name = f"{at}/{entry.name}".lstrip("/")
            size = entry.stat().st_size if entry.is_file(follow_symlinks=False) else -1
            wanted = files.get(name)
            if wanted and size == len(wanted) and Path(entry.path).read_bytes() == wanted:
                right.add(name)
            elif name not in folders or not entry.is_dir(follow_symlinks=False):
                remove(Path(entry.path))
    for name in files.keys() - right:
        (folder / name).write_bytes(files[name])


def paths_in(store: Path) -> set[str]:
    """What is in a store, apart from drafts and locks."""
    found: set[str] = set()
    for folder in (store, store / "names", store / "objects"):
        if folder.is_dir():
            found |= {str(path.relative_to(store)) for path in folder.iterdir()}
    return {name for name in found if not Path(name).name.startswith(".")}


def of_kind(files: Files, start: str) -> list[str]:
    return [name for name in files if name.startswith(start)]


def change_bytes(store: Path, files: Files, dice: random.Random) -> None:
    """Flipped, cut, inserted or moved bytes in any file, or a file that is gone or empty."""
    kind = dice.choice(("store.json", "names/", "objects/", "objects/"))
    name = dice.choice(of_kind(files, kind))
    match dice.randrange(12):
        case 0:
            (store / name).unlink()
        case 1:
            (store / name).write_bytes(b"")
        case _:
            (store / name).write_bytes(mutate_bytes(files[name], dice))


def change_json(store: Path, files: Files, dice: random.Random) -> None:
    """Another JSON in `store.json` or the file of a name."""
    name = dice.choice([*of_kind(files, "store"), *of_kind(files, "names/")])
    value = json.loads(files[name])
    for _ in range(dice.choice((1, 1, 2, 3))):
        value = edited(value, dice)
    text = json.dumps(value)
    match dice.randrange(12):
        case 0:
            hash = Path(dice.choice(of_kind(files, "objects/"))).stem
            text = json.dumps({"hash": hash, "date": dice.choice(("", "2", "\x1b[2J", "9" * 999))})
        case 1:
            text = "[" * 100_000
        case 2:
            text = text[:-1] + ', "hash": "0"}'
        case 3:
            text = text.replace('"', "\ufeff", 1)
        case 4:
            text = "9" * 10_000
        case 5:
            text = text[:-1] + f', "x": {dice.choice(("NaN", "1e999", "-0", "[" * 2000))}' + "}"
    (store / name).write_text(text)


def change_objects(store: Path, files: Files, dice: random.Random) -> None:
    """Objects of other checkpoints, of damaged deltas, or of chains that lead elsewhere."""
    objects = of_kind(files, "objects/")
    name, other = dice.choice(objects), dice.choice(objects)
    match dice.randrange(8):
        case 0:
            (store / name).write_bytes(files[other])
        case 1:
            (store / name).rename(store / "objects" / f"{dice.getrandbits(128):032x}.delta")
        case 2 | 3:  # made against another object, itself, or what there is not
            _, parts = split(files[name])
            manifest = manifest_in(parts)
            manifest["base"]["id"] = dice.choice(
                [other, name, "objects/../x.delta", *map(str, ODD)]
            )
            manifest["position"] = dice.choice([1, 2, 33, 2**40, manifest["position"]])
            (store / name).write_bytes(with_manifest(parts, manifest))
            if dice.random() < 0.5:  # and that one against it
                _, parts = split(files[other])
                manifest = manifest_in(parts)
                manifest["base"]["id"] = name
                (store / other).write_bytes(with_manifest(parts, manifest))
        case _:
            kind = dice.choice(("parts", "header", "manifest", "manifest"))
            (store / name).write_bytes(MUTATIONS[kind](files[name], dice))


def change_paths(store: Path, files: Files, dice: random.Random) -> None:
    """Links, folders, pipes and long files where files are expected, and names that mean more."""
    outside = store.parent / "outside"
    places = [*files, *files, "names", "objects", ".lock", "names/new.json", "objects/x.delta"]
    places += ["objects/" + "0" * 32 + ".delta", ".add.00000000.tmp", "names/.x.00000000.tmp"]
    places += ["names/base.json", "names/..json", "names/a\nb.json", "names/" + "a" * 101 + ".json"]
    place = store / dice.choice(places)
    match dice.randrange(9):
        case 0:
            old = place.read_bytes() if place.is_file() else b""
            remove(place)
            (outside / "same").write_bytes(old)
            place.symlink_to(outside / "same")
        case 1:
            remove(place)
            place.symlink_to(dice.choice([outside, outside / "a", outside / "not-there", place]))
        case 2:
            remove(place)
            place.symlink_to(store / dice.choice([*files]))
        case 3:
            remove(place)
            place.mkdir()
            (place / "x").touch()
        case 4:
            remove(place)
            os.mkfifo(place)
        case 5:
            remove(place)
        case 6:
            remove(place)
            place.touch()
            os.truncate(place, dice.choice((1 << 21, 1 << 40)))  # sparse
        case 7:
            remove(place)
            place.write_bytes(files[dice.choice([*files])])
        case _:  # a folder of objects or names that is elsewhere
            place = store / dice.choice(("objects", "names"))
            shutil.copytree(place, outside / place.name)
            remove(place)
            place.symlink_to(outside / place.name)


def remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


CHANGES: dict[str, Callable[[Path, Files, random.Random], None]] = {
    "bytes": change_bytes,
    "json": change_json,
    "objects": change_objects,
    "paths": change_paths,
}


def around(scratch: Path) -> dict[str, Any]:
    """Everything beside the store: paths, with the bytes of files and the ends of links."""
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk(scratch):
        for name in [*files, *folders]:
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path)] = path.readlink()
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
        folders[:] = [name for name in folders if Path(folder, name) != scratch / "store"]
    return found


def work(verb: str, scratch: Path, world: World, dice: random.Random) -> None:
    """Do something with a store, and check what came of it."""
    folder = scratch / "store"
    store = trimtab.Store(folder)
    name = dice.choice([*world.contents])
    if verb == "list":
        assert repr(store)
        for entry in store.entries():
            assert entry.name in store.names() and 0 < entry.num_deltas <= 32
    elif verb == "checkout":
        check_out(store, name, scratch, world)
    elif verb in ("verify", "quick"):
        store.verify(decodes=verb == "verify", threads=1)
        if verb == "verify":
            for each in store.names():
                check_out(store, each, scratch, world)
    elif verb == "remove":
        before = paths_in(folder)
        store.remove(name)
        assert before - paths_in(folder) == {f"names/{name}.json"}
    elif verb == "gc":
        before = paths_in(folder)
        store.gc()
        assert all(path.startswith("objects/") for path in before - paths_in(folder))
        store.entries()  # everything that a name needs is there
    else:
        before = paths_in(folder)
        force = dice.random() < 0.5
        against = dice.choice(("auto", "base", "one", "two"))
        options: dict[str, Any] = {"max_rank": 0, "threads": 1, "force": force}
        target = dice.choice(("new", "one"))
        store.add(world.new, target, against=against, **options)
        assert check_out(store, target, scratch, world) == world.contents["new"]
        assert before <= paths_in(folder)


def check_out(store: trimtab.Store, name: str, scratch: Path, world: World) -> Files:
    """Check a checkpoint out; whatever its name was made to stand for, it is a whole one."""
    store.checkout(name, scratch / "out", threads=1)
    result = content_of(scratch / "out")
    shutil.rmtree(scratch / "out")
    assert result in world.contents.values()
    return result


@contextmanager
def bounded(traces: bool) -> Iterator[None]:
    """Check the memory that is allocated; that slows everything down."""
    if not traces:
        yield
        return
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes")
@pytest.mark.parametrize("kind", CHANGES)
def test_mutated_stores_are_refused_or_right(world: World, kind: str) -> None:
    """Every verb refuses in one sentence, or does what it does with a sound store.

    Nothing outside the store is written, and a checkpoint that comes out is one of those that were
    added.
    """
    dice = random.Random(kind)
    scratch = world.base.parent / kind
    (scratch / "outside").mkdir(parents=True)
    (scratch / "outside" / "a").write_bytes(next(iter(world.files.values())))
    first = around(scratch).keys() | {str(scratch / "store")}
    refused = right = 0
    for number in range(NUM_MUTATIONS[kind] * FACTOR):
        reset(scratch / "store", world.files)
        CHANGES[kind](scratch / "store", world.files, dice)
        (verb,) = dice.choices([*VERBS], [*VERBS.values()])
        before = around(scratch)
        try:
            with bounded(number % 16 == 0):
                work(verb, scratch, world, dice)
        except TrimtabError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), (verb, error)
        else:
            right += 1
        after = around(scratch)
        assert {path: value for path, value in after.items() if "/store" not in path} == {
            path: value for path, value in before.items() if "/store" not in path
        }, verb
        if after.keys() - first:
            for name in ("objects", "names", "same"):
                remove(scratch / "outside" / name)
    assert refused > right / 2 and right > 20
