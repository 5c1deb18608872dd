"""Tensors as the bits that the compiled passes read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements import step_kernels
from trimtab.elements.dtypes import Bits, DType

__all__ = ["CHUNK", "MAGNITUDES", "STORED", "as_bits", "buffer", "stored_bits"]

CHUNK = 1 << 19
"""Elements looked at at once: what is read and compared stays in a processor's cache."""

STORED: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
}
"""Dtypes that are tracked, by their safetensors names."""

MAGNITUDES: Mapping[int, Any] = {
    1: np.uint8(0xFF),
    2: np.uint16(0x7FFF),
    4: np.uint32(0x7FFFFFFF),
    8: np.uint64(0x7FFFFFFFFFFFFFFF),
}
"""Bytes of an element -> its bits that are 0 in +0.0 and -0.0; of one byte, all."""

UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}

_local = threading.local()


def as_bits(values: Tensor) -> tuple[NDArray[Any], Any]:
    """Flat values as integers on the CPU, and the bits of these that are 0 where a value is 0."""
    if values.device.type != "cpu":  # one byte to an element travels faster than two or four
        values = (values != 0).cpu()
    if values.dtype == torch.bool:
        values = values.view(torch.uint8)
    size = values.element_size()
    return values.contiguous().view(UNSIGNED[size]).numpy(), MAGNITUDES[size]


def stored_bits(elements: Tensor | NDArray[Any], dtype: DType) -> Bits:
    """Elements rounded to the dtype in which they are stored, as bits, valid until the next call.

    Args:
        elements: Flat, at most `CHUNK`: a tensor, or the bits of fp32 or of `dtype`.
        dtype: To round to, to nearest and ties to even.
    """
    if isinstance(elements, Tensor):
        if elements.device.type != "cpu":
            elements = elements.to(STORED[dtype.name]).cpu()
        elements = as_bits(elements)[0]
    if elements.dtype == dtype.bits:
        return elements
    if dtype.name == "BF16":
        out = buffer("now", dtype.bits, elements.size)
        step_kernels.round_to_bf16(elements, out)
        return out
    return dtype.encode(elements.view(np.float32))


def buffer(name: str, dtype: np.dtype[Any], size: int) -> NDArray[Any]:
    """Memory of the calling thread for at most `CHUNK` elements of at most 4 bytes."""
    kept: NDArray[np.uint8] | None = getattr(_local, name, None)
    if kept is None:
        kept = np.empty(4 * CHUNK, np.uint8)
        setattr(_local, name, kept)
    return kept[: size * dtype.itemsize].view(dtype)
