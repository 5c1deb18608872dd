"""Checkpoint folders for deltas, built byte by byte."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import file_start
from trimtab.elements.dtypes import DTYPES

Arrays = Mapping[str, tuple[str, NDArray[Any]]]
"""Name -> safetensors dtype, and bits."""


def write_weights(path: Path, arrays: Arrays) -> None:
    """A safetensors file of any dtypes."""
    start = file_start({n: (dtype, bits.shape) for n, (dtype, bits) in arrays.items()}, {"a": "b"})
    path.write_bytes(start + b"".join(bits.tobytes() for _, bits in arrays.values()))


def write_folder(folder: Path, *shards: Arrays, config: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of one file, or of shards with an index; with a config and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {"a": 1}))
    (folder / "tokenizer.json").write_text(json.dumps({"words": ["a", "b"] * 100}))
    if len(shards) == 1:
        write_weights(folder / "model.safetensors", shards[0])
        return folder
    weight_map: dict[str, str] = {}
    for number, arrays in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_weights(folder / name, arrays)
        weight_map |= dict.fromkeys(arrays, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def random_bits(dtype: str, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
    """Any bits of a dtype: NaNs, infinities and both zeros among them."""
    bits = DTYPES[dtype].bits
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * bits.itemsize)
    if dtype == "BOOL":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, bits).reshape(shape).copy()


def moved(bits: NDArray[Any], share: float, seed: int) -> NDArray[Any]:
    """Bits of which a share moved by a few steps, and one by anything."""
    rng = np.random.default_rng(seed)
    result = bits.copy()
    flat = result.reshape(-1)
    where = rng.random(flat.size) < share
    flat[where] ^= rng.integers(1, 4, where.sum()).astype(bits.dtype)
    if flat.size and bits.dtype.itemsize > 1:
        flat[rng.integers(flat.size)] ^= np.asarray(0x8001, bits.dtype)
    return result


def content_of(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file that is not hidden."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }
