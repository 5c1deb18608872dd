"""Deltas of Fireworks: read and written as its own package does, and arc_v3 refused."""

from __future__ import annotations

import json
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file

from tests.deltas.exchange.pairs import (
    INDEX,
    bits_in,
    bytes_of,
    contents,
    random_bits,
    save,
    saved_pair,
)
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange.arc import open_arc_v2, write_arc_v2
from trimtab.deltas.exchange.importing import detect_format, import_delta
from trimtab.errors import CheckpointError, DeltaError

WHY = "fireworks-delta-compression is not installed: it is in the extra dev"


def write(base: Path, tuned: Path, folder: Path) -> Path:
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        write_arc_v2(ours, theirs, folder)
    return folder


@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_dtype_and_value_comes_back(tmp_path: Path, num_shards: int) -> None:
    base, tuned = saved_pair(tmp_path, num_shards=num_shards)
    delta = write(base, tuned, tmp_path / "delta")
    assert contents(delta).keys() == contents(base).keys()
    new = bits_in(tuned)
    with open_checkpoint(base) as opened, open_arc_v2(opened, delta) as theirs:
        found = dict(theirs)
    assert found.keys() == new.keys()
    assert all(np.array_equal(found[name], new[name]) for name in new)
    result = import_delta(base, delta, tmp_path / "result")
    assert (result.format, result.version, result.unchecked) == ("arc_v2", None, ())
    assert contents(tmp_path / "result") == contents(tuned)


def test_its_bytes(tmp_path: Path) -> None:
    old, new = (np.array(bits, dtype=np.uint16) for bits in ([1, 2], [1, 0x8002]))
    base = save(tmp_path / "base", {"same": ("BF16", old), "x": ("BF16", old)})
    tuned = save(tmp_path / "tuned", {"same": ("BF16", old), "x": ("BF16", new)})
    raw = (write(base, tuned, tmp_path / "delta") / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {
        "same": str(zlib.adler32(old.tobytes())),
        "x": str(zlib.adler32(new.tobytes())),
    }
    for name, bits in {"same": old, "x": new}.items():
        begin, end = header[name]["data_offsets"]
        assert header[name]["dtype"] == "U8"
        frame = raw[8 + length :][begin:end]
        assert zstandard.ZstdDecompressor().decompress(frame) == (old ^ bits).tobytes()


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of their own
def test_deltas_that_fireworks_reads_and_writes(tmp_path: Path) -> None:
    fireworks = pytest.importorskip("fireworks_delta_compression.compression", reason=WHY)
    base, tuned = saved_pair(tmp_path)
    ours = write(base, tuned, tmp_path / "ours")
    for path in sorted(base.glob("*.safetensors")):
        want = load_file(tuned / path.name)
        found = fireworks.delta_decompress_dict_from_file(
            src=load_file(path), diff_file=str(ours / path.name), compression_format="arc_v2"
        )
        assert found.keys() == want.keys()
        for name, tensor in want.items():
            assert found[name].dtype == tensor.dtype
            assert found[name].shape == tensor.shape
            one, other = (t.reshape(-1).view(torch.uint8) for t in (found[name], tensor))
            assert torch.equal(one, other)
        copy = shutil.copyfile(path, tmp_path / path.name)
        fireworks.delta_decompress_inplace(
            base_path=str(copy), diff_path=str(ours / path.name), compression_format="arc_v2"
        )
        assert copy.read_bytes() == (tuned / path.name).read_bytes()

    with ThreadPoolExecutor(1) as executor:
        fireworks.delta_compress_dirs(
            *(str(base), str(tuned), str(tmp_path / "theirs"), "arc_v2"), executor=executor
        )
    assert detect_format(tmp_path / "theirs") == "arc_v2"
    assert contents(tmp_path / "theirs").keys() == contents(ours).keys()
    import_delta(base, tmp_path / "theirs", tmp_path / "result")
    assert contents(tmp_path / "result") == contents(tuned)


def test_one_file_of_a_base_of_one_file(tmp_path: Path) -> None:
    fireworks = pytest.importorskip("fireworks_delta_compression.compression", reason=WHY)
    base, tuned = saved_pair(tmp_path, num_shards=1)
    fireworks.delta_compress_files_to_file(
        src=str(base / "model.safetensors"),
        dst=str(tuned / "model.safetensors"),
        diff_file=str(tmp_path / "diff.safetensors"),
        compression_format="arc_v2",
    )
    import_delta(base, tmp_path / "diff.safetensors", tmp_path / "result")
    assert contents(tmp_path / "result") == contents(tuned)
    (tmp_path / "two").mkdir()
    two, _ = saved_pair(tmp_path / "two")
    with pytest.raises(DeltaError, match=r"one file, and .* has 2 files of weights"):
        import_delta(two, tmp_path / "diff.safetensors", tmp_path / "other")


@pytest.mark.parametrize(
    ("format", "sentence"),
    [
        ("arc_v3", "arc_v3 is not read: its envelope is a pickle, which runs code"),
        ("arc_v1", r"arc_v1 \(zlib\) is not read: write the delta as arc_v2"),
    ],
)
def test_arc_v3_is_refused_by_name(tmp_path: Path, format: str, sentence: str) -> None:
    fireworks = pytest.importorskip("fireworks_delta_compression.compression", reason=WHY)
    base, tuned = saved_pair(tmp_path, num_shards=1)
    fireworks.delta_compress_files_to_file(
        src=str(base / "model.safetensors"),
        dst=str(tuned / "model.safetensors"),
        diff_file=str(tmp_path / "diff.safetensors"),
        compression_format=format,
    )
    for asked in (None, "arc_v2"):
        with pytest.raises(DeltaError, match=sentence):
            import_delta(
                *(base, tmp_path / "diff.safetensors", tmp_path / "result"),
                format=asked,
            )


@pytest.mark.parametrize("payload", [b"ARC3_ENVELOPE\0\x80\x05.", b"\x40" + bytes(7) + b"{}"])
def test_both_payloads_of_arc_v3_are_known(tmp_path: Path, payload: bytes) -> None:
    base = save(tmp_path / "base", {"x": ("BF16", random_bits("BF16", (3,), 0))})
    file = tmp_path / "delta.safetensors"
    bits = np.frombuffer(payload, dtype=np.uint8)
    file.write_bytes(bytes_of({"x": ("U8", bits)}, ["x"], {"x": "1"}))
    with pytest.raises(DeltaError, match="arc_v3 is not read"):
        import_delta(base, file, tmp_path / "result")
    with pytest.raises(DeltaError, match="arc_v3 is not read"):
        import_delta(base, file, tmp_path / "result", format="arc_v3")  # type: ignore[arg-type]


def test_every_tensor_has_to_be_there(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path)
    delta = write(base, tuned, tmp_path / "delta")
    first, second = sorted(delta.glob("*.safetensors"))
    shutil.copyfile(first, second)
    with pytest.raises(DeltaError, match=r"tensors of the base's .*: all, layers.* in one"):
        import_delta(base, delta, tmp_path / "result")
    second.unlink()
    with pytest.raises(DeltaError, match="no such file"):
        import_delta(base, delta, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_a_base_of_other_files_is_refused(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path, num_shards=1)
    with (
        open_checkpoint(base / "model.safetensors") as ours,
        open_checkpoint(tuned) as theirs,
        pytest.raises(CheckpointError, match="expected the folder of a model"),
    ):
        write_arc_v2(ours, theirs, tmp_path / "delta")
    assert not (base / INDEX).exists()
