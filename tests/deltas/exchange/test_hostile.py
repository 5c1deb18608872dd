"""Deltas that anybody may have written: refused with a sentence, or harmless; nothing is filled."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

import trimtab
from tests.deltas.exchange.pairs import (
    INDEX,
    Tensors,
    bits_in,
    bytes_of,
    contents,
    random_bits,
    save,
)
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange.arc import write_arc_v2
from trimtab.deltas.exchange.importing import FORMATS, detect_format, import_delta, open_delta
from trimtab.deltas.exchange.index_value import write_index_value
from trimtab.deltas.exchange.payloads import Adler32
from trimtab.deltas.exchange.slime import ENCODINGS, write_slime
from trimtab.errors import DeltaError

FILE = "model-00000-of-00001.safetensors"


def tensors(seed: int) -> Tensors:
    return {
        "a": ("BF16", random_bits("BF16", (4, 5), 0)),
        "b": ("BF16", random_bits("BF16", (6,), seed)),
        "c": ("F32", random_bits("F32", (3, 3), seed)),
        "d": ("U8", random_bits("U8", (), seed)),
    }


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", tensors(1))


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    return save(tmp_path / "tuned", tensors(2))


def deltas_of(base: Path, tuned: Path, folder: Path) -> dict[str, tuple[str, Path]]:
    """Name -> format and path."""
    folder.mkdir()
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        for encoding in ENCODINGS:
            write_slime(ours, theirs, folder / encoding, encoding=encoding)
        write_arc_v2(ours, theirs, folder / "arc_v2")
        write_index_value(ours, theirs, folder / "index_value.safetensors")
    return {
        "xor": ("slime", folder / "xor"),
        "overwrite": ("slime", folder / "overwrite"),
        "arc_v2": ("arc_v2", folder / "arc_v2"),
        "index_value": ("index_value", folder / "index_value.safetensors"),
    }


def mutated(data: bytes, dice: random.Random) -> bytes:
    raw = bytearray(data)
    match dice.randrange(5):
        case 0:
            raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        case 1:
            raw[dice.randrange(len(raw))] = dice.choice([0, 0x22, 0x30, 0x39, 0x7D, 0xFF])
        case 2:
            del raw[dice.randrange(len(raw)) :]
        case 3:
            at = dice.randrange(len(raw))
            raw[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        case _:
            at, other = dice.randrange(len(raw)), dice.randrange(len(raw))
            raw[at : at + 8] = raw[other : other + 8]
    return bytes(raw)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xor", "overwrite", "arc_v2", "index_value"])
def test_mutations_are_refused_or_harmless(
    tmp_path: Path, base: Path, tuned: Path, kind: str
) -> None:
    format, path = deltas_of(base, tuned, tmp_path / "deltas")[kind]
    want, old = bits_in(tuned), bits_in(base)
    dice = random.Random(kind)
    files = (
        [path] if path.is_file() else sorted({*path.glob("*.safetensors"), *path.glob("*x.json")})
    )
    originals = {file: file.read_bytes() for file in files}
    refused = 0
    tracemalloc.start()
    with open_checkpoint(base) as opened:
        for _ in range(1500):
            file = dice.choice(files)
            file.write_bytes(mutated(originals[file], dice))
            try:
                with open_delta(opened, path, format) as delta:
                    for name, bits in delta:
                        # What has no checksum any more says so.
                        assert np.array_equal(bits, want[name]) or name in delta.unchecked
                        assert bits.shape == old[name].shape
            except DeltaError as error:
                refused += 1
                assert str(error)
            file.write_bytes(originals[file])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > 700
    assert peak < 8 << 20


def slime_of(folder: Path, payloads: dict[str, bytes], **changes: Any) -> Path:
    """A folder of slime with any payloads; changes are of the index."""
    folder.mkdir()
    vectors = {name: ("U8", np.frombuffer(data, np.uint8)) for name, data in payloads.items()}
    (folder / FILE).write_bytes(bytes_of(vectors, vectors, dict.fromkeys(vectors, "00000001")))
    index: dict[str, Any] = {
        "metadata": {
            "version": "000001",
            "base_version": "000000",
            "delta_encoding": changes.pop("encoding", "xor"),
            "compression_format": "zstd",
            "checksum_format": "adler32",
        },
        "weight_map": dict.fromkeys(payloads, FILE),
    }
    (folder / INDEX).write_text(json.dumps(index | changes))
    return folder


def packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def words(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


@pytest.mark.parametrize(
    ("payload", "encoding", "sentence"),
    [
        (packed(bytes(11)), "xor", "b: its payload is too short for the tensor of the base"),
        (packed(bytes(13)), "xor", "b: its payload is too long for the tensor of the base"),
        (packed(bytes(12)) + packed(b"\0"), "xor", "b: its payload is too long"),
        (packed(bytes(12)) + b"\0", "xor", "b: its payload cannot be decompressed"),
        (packed(bytes(12))[:-1], "xor", "b: its payload is too short"),
        (b"", "xor", "b: its payload is too short"),
        (b"no frame", "xor", "b: its payload cannot be decompressed"),
        (packed(bytes(12)), "xor", "b: the result has checksum [0-9a-f]{8}, expected '00000001'"),
        (packed(words(13, *range(13)) + bytes(13)), "overwrite", "13 changed bytes, .* has 12"),
        (packed(words(2**32 - 1)), "overwrite", "b: has 4294967295 changed bytes"),
        (packed(words(2, 0, 12) + b"ab"), "overwrite", "do not ascend, or not below 12"),
        (packed(words(2, 3, 3) + b"ab"), "overwrite", "do not ascend"),
        (packed(words(2, 3, 2) + b"ab"), "overwrite", "do not ascend"),
        (packed(words(2, 3, 4) + b"a"), "overwrite", "too short"),
        (packed(words(2, 3, 4) + b"abc"), "overwrite", "too long"),
        (packed(words(2, 3)), "overwrite", "too short"),
        (packed(b"\0"), "overwrite", "too short"),
    ],
)
def test_payloads_that_do_not_fit(
    tmp_path: Path, base: Path, payload: bytes, encoding: str, sentence: str
) -> None:
    delta = slime_of(tmp_path / "delta", {"b": payload}, encoding=encoding)
    with pytest.raises(DeltaError, match=sentence):
        import_delta(base, delta, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_a_frame_may_not_ask_for_memory(tmp_path: Path, base: Path) -> None:
    # 12 bytes are declared as 2^40, or come with a window of 2^27.
    zeros = bytes.fromhex("0200") + b"\0"  # an empty block, not the last
    huge = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + zeros * 9
    wide = b"\x28\xb5\x2f\xfd\x00" + bytes([(27 - 10) << 3]) + zeros * 9
    for number, payload in enumerate((huge, wide)):
        delta = slime_of(tmp_path / f"delta{number}", {"b": payload})
        with pytest.raises(DeltaError, match=r"cannot be decompressed .*too much memory"):
            import_delta(base, delta, tmp_path / "result")


def test_a_bomb_is_not_unpacked(tmp_path: Path, base: Path) -> None:
    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    piece = bytes(1 << 20)
    bomb = b"".join(compressor.compress(piece) for _ in range(256)) + compressor.flush()
    assert len(bomb) < 1 << 15
    delta = slime_of(tmp_path / "delta", {"b": bomb})
    tracemalloc.start()
    with pytest.raises(DeltaError, match=r"cannot be decompressed|too long"):
        import_delta(base, delta, tmp_path / "result")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "shard",
    [
        "../base/model.safetensors",
        "/etc/model.safetensors",
        "sub/x.safetensors",
        "..",
        "a\\b.safetensors",
        "c:x.safetensors",
        "x.bin",
        ".x.safetensors",
        "",
        3,
        None,
        ["model.safetensors"],
    ],
)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, base: Path, shard: Any) -> None:
    delta = slime_of(tmp_path / "delta", {"b": packed(bytes(12))}, weight_map={"b": shard})
    with pytest.raises(DeltaError, match=r"expected names of \.safetensors files in its folder"):
        import_delta(base, delta, tmp_path / "result")


METADATA = {
    "version": "1",
    "base_version": "0",
    "delta_encoding": "xor",
    "checksum_format": "adler32",
}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metadata": METADATA | {"delta_encoding": "sum"}}, "'sum' with .* expected xor or overw"),
        ({"metadata": METADATA | {"compression_format": "lz4"}}, "compression_format 'lz4'"),
        ({"metadata": METADATA | {"checksum_format": "md5"}}, "'md5': expected adler32"),
        ({"metadata": METADATA | {"checksum_format": None}}, "'none': expected adler32"),
        ({"metadata": {"delta_encoding": "xor"}}, "has no base_version and no version"),
        ({"metadata": []}, "not a delta of a known format|expected an object"),
        ({"weight_map": []}, "expected an object with metadata and weight_map"),
        ({"weight_map": {}}, None),
        ({"weight_map": {"b": FILE, "c": FILE}}, "c are in one of them only"),
        ({"weight_map": {"a": FILE}}, "a, b are in one of them only"),
        ({"weight_map": {"b": "absent.safetensors"}}, "absent.safetensors: no such file"),
    ],
)
def test_what_an_index_says(
    tmp_path: Path, base: Path, changes: dict[str, Any], sentence: str | None
) -> None:
    delta = slime_of(tmp_path / "delta", {"b": packed(bytes(12))}, **changes)
    if sentence is None:  # what no index names is not read
        import_delta(base, delta, tmp_path / "result")
        return
    with pytest.raises(DeltaError, match=sentence):
        import_delta(base, delta, tmp_path / "result", format="slime")


def test_what_a_file_holds(tmp_path: Path, base: Path) -> None:
    frame = np.frombuffer(packed(bytes(12)), np.uint8)
    for number, (name, tensor, metadata, sentence) in enumerate(
        [
            ("z", ("U8", frame), {"z": "1"}, "z is not a tensor of"),
            ("b", ("I8", frame), {"b": "1"}, "b is I8 .* expected a vector of compressed bytes"),
            ("b", ("U8", frame[None]), {"b": "1"}, r"b is U8 \[1, \d+\], expected a vector"),
            ("b", ("U8", frame), {}, "b has no checksum in the header"),
        ]
    ):
        delta = slime_of(tmp_path / f"delta{number}", {name: b""})
        (delta / FILE).write_bytes(bytes_of({name: tensor}, [name], metadata))
        with pytest.raises(DeltaError, match=sentence):
            import_delta(base, delta, tmp_path / "result")


def test_a_delta_that_is_not_published(tmp_path: Path, base: Path, tuned: Path) -> None:
    _, delta = deltas_of(base, tuned, tmp_path / "deltas")["xor"]
    (delta / INDEX).unlink()
    with pytest.raises(
        DeltaError, match=r"has no model\.safetensors\.index\.json, which is written"
    ):
        import_delta(base, delta, tmp_path / "result")


def test_folders_and_files_that_are_no_delta(tmp_path: Path, base: Path, tuned: Path) -> None:
    refuse: list[tuple[Path, str]] = [
        (tmp_path / "absent", "no such file or folder"),
        (base, "not a delta of a known format .*: model.safetensors holds other tensors"),
        (base / "config.json", "not a valid safetensors file"),
    ]
    (tmp_path / "empty").mkdir()
    refuse.append((tmp_path / "empty", r"holds no \.safetensors files"))
    (tmp_path / "chain" / "weight_v000001").mkdir(parents=True)
    refuse.append((tmp_path / "chain", "holds weight_v000001: give one of these folders"))
    trimtab.make_delta(base, tuned, tmp_path / "ours.delta")
    refuse.append((tmp_path / "ours.delta", "a delta of trimtab: `trimtab delta apply` applies it"))
    for path, sentence in refuse:
        with pytest.raises(DeltaError, match=sentence):
            import_delta(base, path, tmp_path / "result")
    with pytest.raises(DeltaError, match="'zip': expected slime, arc_v2, index_value"):
        import_delta(base, base, tmp_path / "result", format="zip")  # type: ignore[arg-type]
    anchor = shutil.copytree(base, tmp_path / "anchor")
    index = {"metadata": {}, "weight_map": {"b": "model.safetensors"}}
    (anchor / INDEX).write_text(json.dumps(index))
    with pytest.raises(DeltaError, match="a whole checkpoint and not a delta; use it as it is"):
        import_delta(base, anchor, tmp_path / "result", format="slime")


def test_a_delta_is_no_base(tmp_path: Path, base: Path, tuned: Path) -> None:
    _, delta = deltas_of(base, tuned, tmp_path / "deltas")["xor"]
    with pytest.raises(DeltaError, match="a delta, not a base: give the whole checkpoint below it"):
        import_delta(delta, delta, tmp_path / "result")


def test_each_format_is_detected(tmp_path: Path, base: Path, tuned: Path) -> None:
    found = deltas_of(base, tuned, tmp_path / "deltas").values()
    assert all(detect_format(path) == format for format, path in found)
    assert {format for format, _ in found} == set(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_the_checksum_of_an_empty_tensor_is_checked(tmp_path: Path, format: str) -> None:
    empty: Tensors = {
        "x": ("BF16", np.zeros((0, 2), np.uint16)),
        "y": ("U8", np.zeros(1, np.uint8)),
    }
    base = save(tmp_path / "base", empty)
    payload = packed(b"")
    write: dict[str, Callable[[], Path]] = {
        "slime": lambda: slime_of(tmp_path / "delta", {"x": payload}),
        "arc_v2": lambda: _arc(tmp_path / "delta.safetensors", payload),
        "index_value": lambda: _indices(tmp_path / "delta.safetensors"),
    }
    path = write[format]()
    if format == "slime":  # Adler-32 of nothing is 1
        import_delta(base, path, tmp_path / "result")
        assert contents(tmp_path / "result") == contents(base)
        return
    with pytest.raises(DeltaError, match="x: the result has checksum"):
        import_delta(base, path, tmp_path / "result")


def _arc(path: Path, payload: bytes) -> Path:
    frame = ("U8", np.frombuffer(payload, np.uint8))
    other = ("U8", np.frombuffer(packed(b"\0"), np.uint8))
    digest = str(int(Adler32().hexdigest(), 16))
    metadata = {"x": "2", "y": str(0x00010001)}
    assert digest == "1"
    path.write_bytes(bytes_of({"x": frame, "y": other}, ["x", "y"], metadata))
    return path


def _indices(path: Path) -> Path:
    nothing: Tensors = {
        "x.indices": ("I32", np.zeros(0, np.uint32)),
        "x.values": ("BF16", np.zeros(0, np.uint16)),
    }
    path.write_bytes(bytes_of(nothing, nothing, {"x.xxh3-128": "0"}))
    return path
