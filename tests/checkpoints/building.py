"""Checkpoint files built byte by byte, so that tests do not trust a library to make them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import read_safetensors
from trimtab.checkpoints.tensors import DataFile, FilePool, StoredTensor

NUMPY_TO_SAFETENSORS = {"u1": "F8_E4M3", "u2": "BF16", "u4": "F32", "u8": "F64"}


def file_bytes(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A safetensors file with any header and any data."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensors_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A valid safetensors file of unsigned integers, stored as the float of that width."""
    header, data = {}, b""
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": NUMPY_TO_SAFETENSORS[array.dtype.str[1:]],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return file_bytes(header, data)


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@contextmanager
def opened(path: Path) -> Iterator[list[StoredTensor]]:
    """The tensors of one safetensors file."""
    with closing(FilePool()) as pool:
        yield read_safetensors(DataFile(path, pool))


def random_bits(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint16]:
    """bf16 elements of any bit pattern."""
    return np.random.default_rng(seed).integers(0, 2**16, shape, dtype=np.uint16)
