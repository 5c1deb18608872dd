"""Deltas that anybody may have written or anything may have damaged: refused, or harmless."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

import trimtab
from tests.deltas.building import content_of, moved, random_bits, write_folder
from tests.deltas.killing import killed_at_every_step
from tests.deltas.test_deltas import made
from trimtab.checkpoints.safetensors import file_start
from trimtab.deltas.apply import write_file
from trimtab.deltas.chain import Replay, in_sequence
from trimtab.deltas.file import DeltaFile
from trimtab.errors import CheckpointError, DeltaError
from trimtab.outputs import is_draft

MOST_MEMORY = 4 << 20
"""Bytes that reading any of the deltas here may take. They and their base are far smaller."""

NUM_MUTATIONS = {"bytes": 10_000, "parts": 3_500, "header": 4_000, "manifest": 3_500}
"""Mutated files by what is mutated; 21,000 in all."""

Mutation = Callable[[bytes, random.Random], bytes]


def tensors(seed: int, rows: int = 6) -> dict[str, tuple[str, Any]]:
    """Of every way to store one: coded, with new rows, unchanged, whole, empty."""
    w, e = random_bits("BF16", (6, 40), 0), random_bits("F32", (5, 8), 1)
    return {
        "w": ("BF16", np.concatenate([moved(w, 0.2, seed), w])[:rows]),
        "e": ("F32", moved(e, 0.3, seed)),
        "q": ("F8_E4M3", moved(random_bits("F8_E4M3", (4, 8), 2), 0.3, seed)),
        "n": ("BF16", random_bits("BF16", (16,), 3)),
        f"only{seed}": ("I64", random_bits("I64", (2,), seed)),
        "z": ("F16", random_bits("F16", (0, 3), 4)),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[Path]]:
    """Three checkpoints in folders, and the two deltas from each to the next."""
    folder = tmp_path_factory.mktemp("hostile")
    folders = [
        write_folder(folder / f"v{seed}", tensors(seed, rows), config={"step": seed})
        for seed, rows in enumerate((6, 8, 7))
    ]
    first = made(folders[0], folders[1], folder / "1.delta")
    return folders, [first, made(folders[1], folders[2], folder / "2.delta", after=first)]


def split(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metadata of a delta file, what it holds of each tensor and file, and its manifest."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__")
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    found = {name: data[start + a : start + b] for name, (a, b) in spans.items()}
    parts, at = {}, 0
    for entry in manifest_in(found)["tensors"]:
        if size := entry["num_stored"]:
            parts[f"tensor:{entry['name']}"] = found["tensors"][at : at + size]
            at += size
    return metadata, parts | {name: part for name, part in found.items() if name != "tensors"}


def joined(metadata: dict[str, str], parts: dict[str, bytes]) -> bytes:
    """The inverse of `split`."""
    tensors = b"".join(part for name, part in parts.items() if name.startswith("tensor:"))
    found = {name: part for name, part in parts.items() if not name.startswith("tensor:")}
    if tensors:
        found = {"tensors": tensors, **found}
    start = file_start({name: ("U8", (len(part),)) for name, part in found.items()}, metadata)
    return start + b"".join(found.values())


def with_manifest(parts: dict[str, bytes], manifest: Any) -> bytes:
    """A delta with another manifest, whose hash is right, and what it holds in the order of it."""
    packed = zstandard.ZstdCompressor(level=1).compress(json.dumps(manifest).encode())
    metadata = {"format": "trimtab.delta", "format_version": "1"}
    metadata["manifest_hash"] = xxhash.xxh3_128_hexdigest(packed)
    listed = manifest.get("tensors") if isinstance(manifest, dict) else None
    entries = listed if isinstance(listed, list) else []
    named = [f"tensor:{entry.get('name')}" for entry in entries if isinstance(entry, dict)]
    first = {name: parts[name] for name in named if name in parts}
    return joined(metadata, first | {**parts, "manifest": packed})


def manifest_in(parts: dict[str, bytes]) -> Any:
    return json.loads(zstandard.ZstdDecompressor().decompress(parts["manifest"]))


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flipped, cut, inserted or moved bytes, anywhere."""
    raw = bytearray(data)
    place = dice.randrange(len(raw))
    match dice.randrange(6):
        case 0 | 1:
            for _ in range(dice.choice((1, 1, 2, 8))):
                raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        case 2:
            del raw[place:]
        case 3:
            raw += dice.randbytes(dice.randrange(1, 20))
        case 4:
            raw[place:place] = dice.randbytes(dice.randrange(1, 9))
        case _:
            other = dice.randrange(len(raw))
            raw[place : place + 8] = raw[other : other + 8]
    return bytes(raw)


def mutate_parts(data: bytes, dice: random.Random) -> bytes:
    """Frames that are swapped, cut, extended or flipped, in a file that is sound otherwise."""
    metadata, parts = split(data)
    name, other = dice.choice([*parts]), dice.choice([*parts])
    part = bytearray(parts[name])
    match dice.randrange(6):
        case 0:
            parts[name], parts[other] = parts[other], parts[name]
        case 1:
            parts[name] = bytes(part[: dice.randrange(len(part))])
        case 2:
            parts[name] += dice.randbytes(dice.randrange(1, 9))
        case 3:
            del parts[name]
        case _:
            for _ in range(dice.choice((1, 1, 4))):
                part[dice.randrange(len(part))] ^= 1 << dice.randrange(8)
            parts[name] = bytes(part)
    return joined(metadata, parts)


def mutate_header(data: bytes, dice: random.Random) -> bytes:
    """Another JSON in the header of the file."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(edited(json.loads(data[8:start]), dice)).encode()
    return len(header).to_bytes(8, "little") + header + data[start:]


def mutate_manifest(data: bytes, dice: random.Random) -> bytes:
    """Another JSON as manifest, hashed again; the parts are often made as long as it says."""
    _, parts = split(data)
    manifest = manifest_in(parts)
    for _ in range(dice.choice((1, 1, 2, 3))):
        manifest = edited(manifest, dice)
    if dice.random() < 0.7 and isinstance(manifest, dict):
        for kind, key, names in (("tensor", "name", "tensors"), ("file", "path", "files")):
            entries = manifest.get(names)
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict):
                    fit(parts, f"{kind}:{entry.get(key)}", stored(entry))
    return with_manifest(parts, manifest)


def stored(entry: dict[str, Any]) -> int:
    """Bytes that an edited entry asks for; fewer if it asks for too much."""
    try:
        if "num_content" in entry:
            num = entry["num_stored"]
        else:
            size = trimtab.elements.dtypes.DTYPES[entry["dtype"]].num_bytes
            rest = math.prod(entry["shape"]) - entry["num_common"]
            num = sum(entry["frames"]) + rest * size
        return min(max(int(num), 0), 1 << 16)
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0


def fit(parts: dict[str, bytes], name: str, num_bytes: int) -> None:
    parts[name] = parts.get(name, b"")[:num_bytes].ljust(num_bytes, b"\1")
    if not num_bytes:
        del parts[name]


ODD: list[Any] = [
    *(0, 1, 2, 7, -1, 255, 2**31, 2**32, 2**62, 2**63 - 1, 2**64, 10**30, 0.5, 1e308),
    *(None, True, [], {}, "", "w", "e", "../x", "/x", "config.json", "config.json/x", "a/b"),
    *("a" * 300, "\ud800", "\0", ".hidden", "BF16", "U8", "F4", "weights", "other"),
    *([2**40], [0], [1] * 70, [2**62, 2**62], [2**40, 0], [-1], [[[[]]]], ["w", "w"]),
]


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key of a JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places_in(inner)


def edited(value: Any, dice: random.Random) -> Any:
    """A JSON of which one place is another: odd, a copy of another, gone, or doubled."""
    value = json.loads(json.dumps(value))
    places = [*places_in(value)]
    if not places:
        return value
    container, key = dice.choice(places)
    other, other_key = dice.choice(places)
    match dice.randrange(5):
        case 0 | 1:
            container[key] = dice.choice(ODD)
        case 2:
            container[key] = json.loads(json.dumps(other[other_key]))
        case 3:
            del container[key]
        case _ if isinstance(container, list):
            container.insert(dice.randrange(len(container) + 1), container[key])
        case _ if type(container[key]) is int:
            container[key] += dice.choice((-8, -2, -1, 1, 2, 8))
        case _:
            container[str(dice.choice(ODD))] = container[key]
    return value


MUTATIONS: dict[str, Mutation] = {
    "bytes": mutate_bytes,
    "parts": mutate_parts,
    "header": mutate_header,
    "manifest": mutate_manifest,
}


@contextmanager
def replayed(base: trimtab.Checkpoint, paths: list[Path]) -> Iterator[Replay]:
    with ExitStack() as stack:
        yield Replay(base, in_sequence([stack.enter_context(DeltaFile(path)) for path in paths]))


def applied(base: trimtab.Checkpoint, paths: list[Path]) -> dict[str, bytes]:
    """What `apply_delta` writes, in memory."""
    result = {}
    with replayed(base, paths) as replay:
        for file in replay.manifest.files:
            target = BytesIO()
            write_file(replay, file, target, threads=1)
            result[file.path] = target.getvalue()
    return result


def scratch_on(tmp_path: Path) -> Path:
    """A folder in memory, where there is one: the disk is not what is tested."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK):
        return memory / f"trimtab-{os.getpid()}-{tmp_path.name}"
    return tmp_path / "scratch"


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutations_are_refused_or_harmless(
    world: tuple[list[Path], list[Path]], tmp_path: Path, kind: str
) -> None:
    """A delta is mutated that is alone, or the first or the second of a chain.

    A manifest that is edited and hashed again may lawfully call a file otherwise or leave one out;
    but no bytes are other ones than the tuned checkpoint has.
    """
    folders, (first, second) = world
    dice = random.Random(kind)
    scratch = scratch_on(tmp_path)
    scratch.mkdir()
    mutated = scratch / "mutated.delta"
    cases = [  # the mutated delta, the chain, its result
        *[(first.read_bytes(), [mutated], content_of(folders[1]))] * 6,
        (first.read_bytes(), [mutated, second], content_of(folders[2])),
        (second.read_bytes(), [first, mutated], content_of(folders[2])),
    ]
    refused = harmless = 0
    try:
        with trimtab.open_checkpoint(folders[0]) as base:
            for original, paths, expected in cases:
                mutated.write_bytes(original)
                assert applied(base, paths) == expected
            for number in range(NUM_MUTATIONS[kind]):
                original, paths, expected = dice.choice(cases)
                mutated.write_bytes(MUTATIONS[kind](original, dice))
                if number % 8 == 0:  # it slows everything down
                    tracemalloc.start()
                try:
                    result = applied(base, paths)
                except (DeltaError, CheckpointError) as error:
                    refused += 1
                    assert str(error) and "\n" not in str(error)
                else:
                    harmless += 1
                    if kind == "manifest":
                        assert {*result.values()} <= {*expected.values()}
                    else:
                        assert result == expected
                if tracemalloc.is_tracing():
                    assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
                    tracemalloc.stop()
    finally:
        tracemalloc.stop()
        shutil.rmtree(scratch)
    assert refused > 3 * harmless


def forged(delta: Path, change: Callable[[Any, dict[str, bytes]], None]) -> Path:
    """A delta with another manifest and other parts."""
    _, parts = split(delta.read_bytes())
    manifest = manifest_in(parts)
    change(manifest, parts)
    target = delta.with_suffix(".forged")
    target.write_bytes(with_manifest(parts, manifest))
    return target


def called(name: str) -> Callable[[Any, dict[str, bytes]], None]:
    """One more file, of the content of config.json."""

    def change(manifest: Any, parts: dict[str, bytes]) -> None:
        (entry,) = (file for file in manifest["files"] if file["path"] == "config.json")
        manifest["files"].append(entry | {"path": name})
        parts[f"file:{name}"] = parts["file:config.json"]

    return change


def twice(manifest: Any, parts: dict[str, bytes]) -> None:
    """The weights once more, which costs next to nothing in the delta."""
    (entry,) = (file for file in manifest["files"] if file["kind"] == "weights")
    manifest["files"].append(entry | {"path": "again.safetensors"})
    parts["file:again.safetensors"] = parts["file:model.safetensors"]


def named(name: str) -> Callable[[Any, dict[str, bytes]], None]:
    def change(manifest: Any, parts: dict[str, bytes]) -> None:
        (entry,) = (tensor for tensor in manifest["tensors"] if tensor["name"] == "z")
        entry["name"] = name

    return change


def shaped(*shape: int) -> Callable[[Any, dict[str, bytes]], None]:
    def change(manifest: Any, parts: dict[str, bytes]) -> None:
        (entry,) = (tensor for tensor in manifest["tensors"] if tensor["name"] == "z")
        entry["shape"] = list(shape)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (called("config.json/x"), "a file of the name 'config.json', and files in a folder of it"),
        (called("Config.json/x/y"), "a file of the name 'config.json', and files in a folder"),
        (called("a" * 256), "path is 'a.*', which is hidden or too long"),
        (called(".trimtab-delta/ready.json"), "which is hidden or too long"),
        (called(".git/config"), "which is hidden or too long"),
        (called(".hidden"), "which is hidden or too long"),
        (called("a\0b"), "is a name with unprintable characters"),
        (called("a\\b"), "leads out of the folder"),
        (twice, r"of weights have \d+ bytes of tensors, and the tensors have"),
        (named("z\n"), "is a name with unprintable characters"),
        (shaped(*[1] * 65, 0), "is no shape of a tensor"),
        (shaped(2**62, 2**62, 0), "is no shape of a tensor"),
    ],
)
def test_names_and_sizes_that_no_delta_has(
    world: tuple[list[Path], list[Path]], tmp_path: Path, change: Any, message: str
) -> None:
    folders, deltas = world
    delta = forged(deltas[0], change)
    base = tmp_path / "base"
    shutil.copytree(folders[0], base)
    with pytest.raises(DeltaError, match=message):
        trimtab.apply_delta(base, delta, tmp_path / "out")
    with pytest.raises(DeltaError, match=message):
        trimtab.apply_in_place(base, delta)
    assert content_of(base) == content_of(folders[0])
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


READS = 40
"""Times that each reader applies the delta that is being rewritten."""


def read_often(base: Path, delta: Path, lawful: list[dict[str, bytes]], ends: Event) -> None:
    """Apply a delta again and again; its file may be replaced at any moment."""
    read = 0
    with trimtab.open_checkpoint(base) as checkpoint:
        while read < READS:
            try:
                result = applied(checkpoint, [delta])
            except (DeltaError, CheckpointError) as error:
                # Replaced between two looks at it, and never half a file.
                assert "changed while it was being read" in str(error), error
            else:
                assert result in lawful
                read += 1
    assert not ends.is_set()  # the writer was at work all the time


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks readers")
def test_two_processes_read_while_one_writes(
    world: tuple[list[Path], list[Path]], tmp_path: Path
) -> None:
    folders, _ = world
    lawful = [content_of(folder) for folder in folders[1:]]
    delta = made(folders[0], folders[1], tmp_path / "x.delta")
    context = multiprocessing.get_context("fork")
    ends = context.Event()
    readers = [
        context.Process(target=read_often, args=(folders[0], delta, lawful, ends)) for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    num_written = 0
    while any(reader.is_alive() for reader in readers):
        made(folders[0], folders[1 + num_written % 2], delta, force=True, threads=1)
        num_written += 1
    ends.set()
    for reader in readers:
        reader.join()
        assert reader.exitcode == 0
    assert num_written > 2


MAKE = "trimtab.make_delta(folder + '/v0', folder + '/v1', folder + '/x.delta', {options})"
COMPACT = (
    "trimtab.compact_deltas(folder + '/v0', [folder + '/1.delta', folder + '/2.delta'], "
    "folder + '/x.delta', {options})"
)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills the children of a fork")
@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(("code", "result"), [(MAKE, 1), (COMPACT, 2)])
def test_killed_at_every_step(
    world: tuple[list[Path], list[Path]], tmp_path: Path, code: str, result: int, is_there: bool
) -> None:
    """The old delta or the new one is there, or none; what is left over goes at the next run."""
    folders, deltas = world
    start = tmp_path / "start"
    for source in folders:
        shutil.copytree(source, start / source.name)
    for path in deltas:
        shutil.copy(path, start)
    if is_there:
        shutil.copy(deltas[0], start / "x.delta")
    before = content_of(start)
    work = code.format(options="threads=1, force=True")
    killed, last = killed_at_every_step(start, tmp_path / "folders", work)
    assert len(killed) > 20
    wanted = content_of(folders[result])
    ends = set()
    for folder in [*killed, last]:
        found = content_of(folder)
        new = found.pop("x.delta", None)
        assert found == {name: data for name, data in before.items() if name != "x.delta"}
        if new == before.get("x.delta"):
            ends.add("old")
        else:
            ends.add("new")
            with trimtab.open_checkpoint(folder / "v0") as base:
                assert applied(base, [folder / "x.delta"]) == wanted
        drafts = [path for path in folder.iterdir() if path.name.startswith(".")]
        assert all(is_draft(path) for path in drafts) and len(drafts) < 2
        if drafts:
            exec(work, {"trimtab": trimtab, "folder": str(folder)})
            assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert ends == {"old", "new"}
