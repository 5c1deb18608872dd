"""One tensor of a mask: a bit for each element, eight to a byte.

Bit `i % 8` of byte `i // 8` is element `i` in C order (`np.packbits` with `bitorder="little"`);
the bits after the last element are 0. A mask of a tensor takes 1/16 of its bytes in bf16.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BaseTensor", "PackedTensor", "num_packed_bytes"]

CHUNK_BYTES = 1 << 17
"""Packed bytes that are unpacked at once: a million elements."""


class BaseTensor(NamedTuple):
    """What a tensor of a mask was when the mask was made.

    Attributes:
        dtype: Its safetensors name, such as `BF16`.
        digest: xxh3-128 of the stored bytes of the whole tensor, hexadecimal.
    """

    dtype: str
    digest: str


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """The selected elements of one tensor.

    Attributes:
        shape: Of the tensor; `()` for a scalar.
        bits: uint8 `[ceil(num_elements / 8)]`.
        num_selected: Bits that are 1.
    """

    shape: tuple[int, ...]
    bits: NDArray[np.uint8]
    num_selected: int

    @classmethod
    def of(cls, shape: tuple[int, ...], bits: NDArray[np.uint8]) -> PackedTensor:
        """Count the bits of a tensor; the caller answers for their number and the padding."""
        return cls(shape, bits, sum(int(np.bitwise_count(part).sum()) for _, part in _parts(bits)))

    @classmethod
    def pack(cls, selected: NDArray[np.bool_]) -> PackedTensor:
        """Pack a bool array of any shape and strides."""
        return cls.of(selected.shape, np.packbits(selected.reshape(-1), bitorder="little"))

    @property
    def num_elements(self) -> int:
        """Elements in the tensor."""
        return prod(self.shape)

    @property
    def has_clean_padding(self) -> bool:
        """Whether the bits after the last element are 0, as they have to be."""
        used = self.num_elements % 8
        return not used or not self.bits[-1] >> used

    def unpack(self) -> NDArray[np.bool_]:
        """The bits as a bool array in the tensor's shape."""
        flat = np.unpackbits(self.bits, count=self.num_elements, bitorder="little")
        return flat.view(np.bool_).reshape(self.shape)

    def indices(self) -> NDArray[np.int64]:
        """Positions of the selected elements in C order, ascending."""
        indices = np.empty(self.num_selected, dtype=np.int64)
        filled = 0
        for start, part in _parts(self.bits):  # unpacked as a whole it would be 8 times as large
            here = np.flatnonzero(np.unpackbits(part, bitorder="little"))
            np.add(here, 8 * start, out=indices[filled : filled + len(here)])
            filled += len(here)
        return indices

    def complement(self) -> PackedTensor:
        """The elements that are not selected."""
        bits = ~self.bits
        if used := self.num_elements % 8:
            bits[-1] &= (1 << used) - 1
        return PackedTensor(self.shape, bits, self.num_elements - self.num_selected)


def num_packed_bytes(num_elements: int) -> int:
    """Bytes that the bits of so many elements take."""
    return -(-num_elements // 8)


def _parts(bits: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start in range(0, len(bits), CHUNK_BYTES):
        yield start, bits[start : start + CHUNK_BYTES]
