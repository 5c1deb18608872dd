"""Indices and values: what safetensors loads of them makes the tuned tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.deltas.exchange.pairs import (
    bits_in,
    bytes_of,
    contents,
    random_bits,
    save,
    saved_pair,
)
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange import index_value
from trimtab.deltas.exchange.importing import import_delta
from trimtab.deltas.exchange.index_value import (
    open_index_value,
    write_index_value,
)
from trimtab.errors import DeltaError, OutputExistsError


def write(base: Path, tuned: Path, path: Path, **settings: Any) -> Path:
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        write_index_value(ours, theirs, path, **settings)
    return path


def test_every_dtype_and_value_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_value, "CHUNK_POSITIONS", 16)
    monkeypatch.setattr("trimtab.checkpoints.weights.CHUNK_ELEMENTS", 16)
    base, tuned = saved_pair(tmp_path)
    path = write(base, tuned, tmp_path / "delta.safetensors")
    old, new = bits_in(base), bits_in(tuned)
    with open_checkpoint(base) as opened, open_index_value(opened, path) as theirs:
        found = dict(theirs)
    assert found.keys() == {name for name in new if not np.array_equal(old[name], new[name])}
    assert all(np.array_equal(found[name], new[name]) for name in found)
    result = import_delta(base, path, tmp_path / "result")
    assert (result.format, result.version, result.unchecked) == ("index_value", None, ())
    assert contents(tmp_path / "result") == contents(tuned)


def test_what_torch_makes_of_it(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path, num_shards=1)
    delta = load_file(write(base, tuned, tmp_path / "delta.safetensors"))
    tensors = load_file(base / "model.safetensors")
    for name, tensor in load_file(tuned / "model.safetensors").items():
        width = tensor.element_size()
        flat = tensors[name].reshape(-1).view(torch.uint8).reshape(-1, width)
        if f"{name}.indices" in delta:
            indices, values = delta[f"{name}.indices"], delta[f"{name}.values"]
            assert indices.dtype == torch.int32
            assert values.dtype == tensor.dtype
            flat[indices.long()] = values.view(torch.uint8).reshape(-1, width)
        want = tensor.reshape(-1).view(torch.uint8).reshape(-1, width)
        assert torch.equal(flat, want)


def test_an_existing_file(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path)
    path = write(base, tuned, tmp_path / "delta.safetensors")
    content = path.read_bytes()
    with pytest.raises(OutputExistsError):
        write(base, base, path)
    assert path.read_bytes() == content
    write(base, base, path, force=True)
    import_delta(base, path, tmp_path / "result")
    assert contents(tmp_path / "result") == contents(base)


BASE = {"x": ("BF16", random_bits("BF16", (2, 3), 0)), "y": ("F32", random_bits("F32", (3,), 1))}


def indices(*values: int, dtype: type = np.int32) -> tuple[str, np.ndarray]:
    return "I64" if dtype is np.int64 else "I32", np.array(values, dtype=dtype).view(
        np.uint64 if dtype is np.int64 else np.uint32
    )


def of_bf16(*values: int) -> tuple[str, np.ndarray]:
    return "BF16", np.array(values, dtype=np.uint16)


def test_files_of_others_have_no_checksum(tmp_path: Path) -> None:
    base = save(tmp_path / "base", BASE)
    tensors = {"x.indices": indices(1, 5, dtype=np.int64), "x.values": of_bf16(7, 8)}
    path = tmp_path / "delta.safetensors"
    path.write_bytes(bytes_of(tensors, tensors))
    result = import_delta(base, path, tmp_path / "result")
    assert result.unchecked == ("x",)
    want = BASE["x"][1].copy()
    want.reshape(-1)[[1, 5]] = 7, 8
    assert np.array_equal(bits_in(tmp_path / "result")["x"], want)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"x.indices": indices(0, 6), "x.values": of_bf16(1, 2)}, "ascending indices from 0 to 5"),
        ({"x.indices": indices(-1, 2), "x.values": of_bf16(1, 2)}, "ascending indices from 0 to 5"),
        ({"x.indices": indices(2, 2), "x.values": of_bf16(1, 2)}, "ascending indices from 0 to 5"),
        ({"x.indices": indices(3, 2), "x.values": of_bf16(1, 2)}, "ascending indices from 0 to 5"),
        (
            {"x.indices": indices(0, 1), "x.values": of_bf16(1)},
            r"x.values is BF16 \[1\], expected BF16 \[2\]",
        ),
        (
            {"x.indices": indices(0), "x.values": ("F16", np.zeros(1, np.uint16))},
            r"x.values is F16 \[1\], expected BF16 \[1\]",
        ),
        (
            {"x.indices": of_bf16(1), "x.values": of_bf16(1)},
            r"x.indices is BF16 \[1\], expected a vector of I32 or I64",
        ),
        ({"z.indices": indices(0), "z.values": of_bf16(1)}, "z is not a tensor of"),
        ({"x.indices": indices(0)}, "x.values: expected NAME.indices and NAME.values"),
        ({"x.values": of_bf16(0)}, "x.values: expected NAME.indices and NAME.values"),
        (
            {"x.indices": indices(*range(7)), "x.values": of_bf16(*range(7))},
            "has 7 indices, and the tensor has 6 elements",
        ),
    ],
)
def test_what_does_not_fit(tmp_path: Path, tensors: Any, sentence: str) -> None:
    base = save(tmp_path / "base", BASE)
    path = tmp_path / "delta.safetensors"
    path.write_bytes(bytes_of(tensors, tensors, {}))
    with pytest.raises(DeltaError, match=sentence):
        import_delta(base, path, tmp_path / "result")
    assert not (tmp_path / "result").exists()


def test_another_base_is_found(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path, num_shards=1)
    path = write(base, tuned, tmp_path / "delta.safetensors")
    raw = bytearray((base / "model.safetensors").read_bytes())
    raw[-1] ^= 1  # of an element that the delta does not set
    (base / "model.safetensors").write_bytes(raw)
    with open_checkpoint(base) as opened, open_index_value(opened, path) as delta:
        names = set(delta.names)
    if "same" in names:
        raise AssertionError("the last tensor is to be left alone by the delta")
    import_delta(base, path, tmp_path / "unnoticed")  # what is not in the delta is not checked
    with open_checkpoint(base) as opened:
        start = opened.tensors["layers.F32.bits"].offset
    raw[start : start + 4] = bytes(4)
    (base / "model.safetensors").write_bytes(raw)
    with pytest.raises(DeltaError, match=r"layers\.F32\.bits: the result has checksum"):
        import_delta(base, path, tmp_path / "result")
