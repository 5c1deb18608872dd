"""slime's folders: what is written comes back, byte by byte as others write and read them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.building import entry, file_bytes
from tests.deltas.exchange.pairs import (
    INDEX,
    bits_in,
    contents,
    pair,
    random_bits,
    save,
    saved_pair,
)
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange import payloads, slime
from trimtab.deltas.exchange.importing import import_delta
from trimtab.deltas.exchange.payloads import CHECKSUMS, Checksum
from trimtab.deltas.exchange.slime import ENCODINGS, Encoding, open_slime, write_slime
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import (
    DeltaError,
    MissingExtraError,
    OutputExistsError,
    TensorMismatchError,
)


def write(base: Path, tuned: Path, folder: Path, **settings: Any) -> Path:
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        write_slime(ours, theirs, folder, **settings)
    return folder


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("checksum", CHECKSUMS)
def test_every_dtype_and_value_comes_back(
    tmp_path: Path,
    encoding: Encoding,
    checksum: Checksum,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slime, "SHARD_BYTES", 3000)
    monkeypatch.setattr(slime, "CHUNK_POSITIONS", 16)
    monkeypatch.setattr(payloads, "CHUNK_BYTES", 64)
    monkeypatch.setattr("trimtab.checkpoints.weights.CHUNK_ELEMENTS", 64)
    base, tuned = saved_pair(tmp_path)
    delta = write(base, tuned, tmp_path / "delta", encoding=encoding, checksum=checksum)
    assert len(list(delta.glob("*.safetensors"))) > 1
    with open_checkpoint(base) as opened, open_slime(opened, delta) as theirs:
        found = dict(theirs)
    old, new = bits_in(base), bits_in(tuned)
    assert found.keys() == {name for name in new if not np.array_equal(old[name], new[name])}
    for name, bits in found.items():
        assert bits.shape == new[name].shape
        assert np.array_equal(bits, new[name])
    result = import_delta(base, delta, tmp_path / "result")
    assert (result.format, result.version, result.unchecked) == ("slime", "000001", ())
    assert contents(tmp_path / "result") == contents(tuned)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 7), max_size=3),
    seed=st.integers(0, 1000),
    density=st.sampled_from([0.0, 0.05, 1.0]),
    encoding=st.sampled_from(ENCODINGS),
)
def test_any_tensor_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    shape: list[int],
    seed: int,
    density: float,
    encoding: Encoding,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    old, new = (random_bits(dtype, tuple(shape), seed + i) for i in range(2))
    new = np.where(np.random.default_rng(seed).random(old.shape) < density, new, old)
    base = save(folder / "base", {"x": (dtype, old)})
    tuned = save(folder / "tuned", {"x": (dtype, new)})
    delta = write(base, tuned, folder / "delta", encoding=encoding)
    import_delta(base, delta, folder / "result")
    assert contents(folder / "result") == contents(tuned)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_its_bytes(tmp_path: Path, encoding: Encoding) -> None:
    old = np.array([1, 2, 3, 0x8000], dtype=np.uint16)
    new = np.array([1, 2, 4, 0x0000], dtype=np.uint16)
    base = save(tmp_path / "base", {"same": ("BF16", old), "x": ("BF16", old)})
    tuned = save(tmp_path / "tuned", {"same": ("BF16", old), "x": ("BF16", new)})
    delta = write(
        *(base, tuned, tmp_path / "delta"), encoding=encoding, version=3, base_version="anchor"
    )
    file = "model-00000-of-00001.safetensors"
    assert {path.name for path in delta.iterdir()} == {file, INDEX}
    assert json.loads((delta / INDEX).read_text()) == {
        "metadata": {
            "version": "000003",
            "base_version": "anchor",
            "delta_encoding": encoding,
            "compression_format": "zstd",
            "checksum_format": "adler32",
        },
        "weight_map": {"x": file},
    }
    raw = (delta / file).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    frame = raw[8 + length :]
    assert header == {
        "__metadata__": {"x": f"{zlib.adler32(new.tobytes()):08x}"},
        "x": {"dtype": "U8", "shape": [len(frame)], "data_offsets": [0, len(frame)]},
    }
    assert zstandard.ZstdDecompressor().decompress(frame) == (
        (old ^ new).tobytes()
        if encoding == "xor"
        # Bytes 4 and 7 change: from 03 to 04, and from 80 to 00.
        else bytes([2, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0, 4, 0])
    )


def test_checksums_that_others_compute(tmp_path: Path) -> None:
    blake3 = pytest.importorskip("blake3")
    base, tuned = saved_pair(tmp_path)
    new = bits_in(tuned)
    hashes: dict[Checksum, Callable[[bytes], str]] = {
        "xxh3-128": xxhash.xxh3_128_hexdigest,
        "blake3": lambda data: blake3.blake3(data).hexdigest(),
        "adler32": lambda data: f"{zlib.adler32(data):08x}",
    }
    for checksum, compute in hashes.items():
        delta = write(base, tuned, tmp_path / checksum, checksum=checksum)
        raw = next(delta.glob("*.safetensors")).read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert header["__metadata__"] == {
            name: compute(new[name].tobytes()) for name in header if name != "__metadata__"
        }


def test_nothing_changed(tmp_path: Path) -> None:
    tensors, _ = pair()
    base = save(tmp_path / "base", tensors)
    delta = write(base, base, tmp_path / "delta")
    assert [path.name for path in delta.iterdir()] == [INDEX]
    result = import_delta(base, delta, tmp_path / "result")
    assert result.num_in_delta == 0
    assert contents(tmp_path / "result") == contents(base)


def test_overwrite_may_be_applied_again_and_xor_may_not(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path)
    for encoding in ENCODINGS:
        write(base, tuned, tmp_path / encoding, encoding=encoding)
    import_delta(tuned, tmp_path / "overwrite", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tuned)
    with pytest.raises(DeltaError, match=r"the result has checksum .*: the base is not the one"):
        import_delta(tuned, tmp_path / "xor", tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_versions(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path)
    delta = write(base, tuned, tmp_path / "delta", version=3, base_version=2)
    import_delta(base, delta, tmp_path / "unknown")  # a base that names no version
    import_delta(base, delta, tmp_path / "same", base_version="2")
    with pytest.raises(DeltaError, match=r"delta of version '000002', and the base is .* '000001'"):
        import_delta(base, delta, tmp_path / "other", base_version=1)
    index = json.loads((base / INDEX).read_text())
    index["metadata"] = {"version": "000001", "checksum_format": "adler32", "total_size": 5}
    (base / INDEX).write_text(json.dumps(index))
    with pytest.raises(DeltaError, match="the base is version '000001': apply the deltas between"):
        import_delta(base, delta, tmp_path / "other")
    index["metadata"]["version"] = "000002"
    (base / INDEX).write_text(json.dumps(index))
    import_delta(base, delta, tmp_path / "result")
    renewed = json.loads((tmp_path / "result" / INDEX).read_text())
    assert renewed["metadata"] == {"version": "000003", "total_size": 5}
    assert renewed["weight_map"] == index["weight_map"]


def test_other_tensors_are_refused(tmp_path: Path) -> None:
    bits = random_bits("BF16", (3,), 0)
    base = save(tmp_path / "base", {"a": ("BF16", bits), "b": ("BF16", bits)})
    tuned = save(tmp_path / "tuned", {"a": ("F16", bits), "c": ("BF16", bits)})
    with pytest.raises(TensorMismatchError) as error:
        write(base, tuned, tmp_path / "delta")
    assert str(error.value) == (
        f"{tuned} cannot be a delta of {base} in slime's format, which holds the same tensors "
        "in both: a is BF16 [3] in the base and F16 [3] in the tuned; b is only in the base; c is "
        "only in the tuned"
    )


def test_settings_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned = saved_pair(tmp_path)
    with pytest.raises(DeltaError, match="'add': expected xor, overwrite"):
        write(base, tuned, tmp_path / "delta", encoding="add")
    with pytest.raises(DeltaError, match="'md5': expected adler32, xxh3-128, blake3"):
        write(base, tuned, tmp_path / "delta", checksum="md5")
    (tmp_path / "delta").mkdir()
    with pytest.raises(OutputExistsError):
        write(base, tuned, tmp_path / "delta")
    monkeypatch.setitem(__import__("sys").modules, "blake3", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trimtab\[blake3\]'"):
        write(base, tuned, tmp_path / "other", checksum="blake3")


def test_a_tensor_too_large_for_positions(tmp_path: Path) -> None:
    for name, byte in (("base", b"\0"), ("tuned", b"\1")):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "model.safetensors").open("wb") as file:
            num = (1 << 32) + 1
            file.write(file_bytes({"x": entry("U8", [num], 0, num)}))
            file.write(byte)
            file.truncate(file.tell() + num - 1)
    with open_checkpoint(tmp_path / "base") as base, open_checkpoint(tmp_path / "tuned") as tuned:
        pieces = slime._overwrite_pieces(base.tensors["x"], tuned.tensors["x"], 1)
        with pytest.raises(DeltaError, match="positions of 32 bits: use `xor`"):
            next(pieces)


def test_deltas_that_cwtrain_reads_and_writes(tmp_path: Path) -> None:
    """cwtrain is CoreWeave's own code: it writes what its servers read."""
    pytest.importorskip("cwtrain", reason="cwtrain is not installed: see the Makefile")
    from cwtrain.hotload import inspect_snapshot
    from cwtrain.hotload.delta import write_delta
    from cwtrain.hotload.mirror import WeightMirror

    base, tuned = saved_pair(tmp_path)
    ours = write(base, tuned, tmp_path / "ours", version=1, base_version=0)
    assert inspect_snapshot(ours).is_incremental
    mirror = WeightMirror.create(base, tmp_path / "mirror", version="0", workers=1)
    report = mirror.apply_delta(ours)
    assert (report.version, report.base_version) == ("000001", "000000")
    assert report.tensors_changed == len(json.loads((ours / INDEX).read_text())["weight_map"])
    new = bits_in(tuned)
    found = bits_in(tmp_path / "mirror")
    assert found.keys() == new.keys()
    assert all(np.array_equal(found[name], new[name]) for name in new)

    write_delta(base, tuned, tmp_path / "theirs", version="000001", base_version="000000")
    import_delta(base, tmp_path / "theirs", tmp_path / "result", base_version=0)
    assert contents(tmp_path / "result") == contents(tuned)
    theirs = json.loads((tmp_path / "theirs" / INDEX).read_text())
    assert theirs["metadata"] == json.loads((ours / INDEX).read_text())["metadata"]


def test_a_checkpoint_that_cwtrain_anchors_is_a_base(tmp_path: Path) -> None:
    pytest.importorskip("cwtrain", reason="cwtrain is not installed: see the Makefile")
    from cwtrain.hotload import inspect_snapshot
    from cwtrain.hotload.delta import write_full_snapshot

    base, tuned = saved_pair(tmp_path)
    write_full_snapshot(base, tmp_path / "anchor")
    delta = write(tmp_path / "anchor", tuned, tmp_path / "delta")
    import_delta(tmp_path / "anchor", delta, tmp_path / "result")
    new, found = bits_in(tuned), bits_in(tmp_path / "result")
    assert all(np.array_equal(found[name], new[name]) for name in new)
    info = inspect_snapshot(tmp_path / "result")
    assert not info.is_incremental
    assert "checksum_format" not in info.index_metadata  # those of the anchor are in its headers
