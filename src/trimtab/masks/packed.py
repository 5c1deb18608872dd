"""One tensor of a mask: a bit for each element, eight to a byte.

Bit `i % 8` of byte `i // 8` is element `i` in C order (`np.packbits` with `bitorder="little"`); the
bits after the last element are 0. This is 1/16 of the bytes of a bf16 tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.checkpoints.align import num_columns
from trimtab.checkpoints.stream import Chunk
from trimtab.words import one_line

CHUNK_BYTES = 1 << 17
"""Packed bytes to unpack or count at once: a million elements."""


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

    __repr__ = one_line

    @classmethod
    def of(cls, shape: tuple[int, ...], bits: NDArray[np.uint8]) -> PackedTensor:
        """Count the bits of a tensor; their number and padding must be right."""
        return cls(shape, bits, count_bits(bits))

    @classmethod
    def pack(cls, selected: NDArray[np.bool_]) -> PackedTensor:
        """Pack a bool array of any shape and strides."""
        return cls.of(selected.shape, np.packbits(selected.reshape(-1), bitorder="little"))

    @classmethod
    def of_parts(cls, shape: tuple[int, ...], parts: Iterable[NDArray[np.bool_]]) -> PackedTensor:
        """Pack the elements of a tensor given as flat parts, in order; missing ones are 0."""
        bits = np.zeros(num_packed_bytes(prod(shape)), dtype=np.uint8)
        filled, left = 0, np.zeros(0, dtype=np.bool_)
        for part in parts:
            selected = np.concatenate([left, part]) if len(left) else part
            whole = len(selected) // 8 * 8  # the rest waits for the next part
            packed = np.packbits(selected[:whole], bitorder="little")
            bits[filled : filled + len(packed)] = packed
            filled, left = filled + len(packed), selected[whole:]
        if len(left):
            bits[filled] = np.packbits(left, bitorder="little")[0]
        return cls.of(shape, bits)

    @property
    def num_elements(self) -> int:
        """Elements in the tensor."""
        return prod(self.shape)

    @property
    def has_clean_padding(self) -> bool:
        """Whether the bits after the last element are 0."""
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

    def resized(self, shape: tuple[int, ...]) -> PackedTensor:
        """Truncate or extend to another shape, in C order; new elements are not selected.

        For two shapes that differ in the first axis, this keeps the first rows.
        """
        bits = np.zeros(num_packed_bytes(prod(shape)), dtype=np.uint8)
        num_kept = min(self.num_elements, prod(shape))
        num_bytes = num_packed_bytes(num_kept)
        bits[:num_bytes] = self.bits[:num_bytes]
        if used := num_kept % 8:
            bits[num_bytes - 1] &= (1 << used) - 1
        return PackedTensor.of(shape, bits)


class MaskDigest:
    """The digest of a mask, updated with its tensors sorted by name."""

    def __init__(self) -> None:
        self._hasher = xxhash.xxh3_128()

    def update(self, name: str, tensor: PackedTensor) -> None:
        """Add the next tensor."""
        self._hasher.update(json.dumps([name, tensor.shape]).encode())
        self._hasher.update(tensor.bits.data)

    def hexdigest(self) -> str:
        """The digest of the tensors so far."""
        return self._hasher.hexdigest()


def count_bits(bits: NDArray[np.uint8]) -> int:
    """How many bits of contiguous bytes are 1."""
    total = 0
    for _, part in _parts(bits):  # 8 bytes at a time is 4 times as fast as single bytes
        words = len(part) // 8 * 8
        total += int(np.bitwise_count(part[:words].view(np.uint64)).sum(dtype=np.int64))
        total += int(np.bitwise_count(part[words:]).sum(dtype=np.int64))
    return total


def num_packed_bytes(num_elements: int) -> int:
    """Bytes for the bits of some elements."""
    return -(-num_elements // 8)


def unpacked(bits: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.bool_]:
    """The bits of elements `start` to `stop` of a tensor, as a bool array."""
    first = start // 8
    whole = np.unpackbits(bits[first : -(-stop // 8)], bitorder="little")
    return whole[start - 8 * first : stop - 8 * first].view(np.bool_)


def unpacked_block(
    bits: NDArray[np.uint8], shape: tuple[int, ...], chunk: Chunk
) -> NDArray[np.bool_]:
    """The bits of a chunk of a tensor's 2-D view, as a bool array `[rows, columns]`.

    Args:
        bits: Of the tensor.
        shape: Of the tensor.
        chunk: Contiguous in the tensor.
    """
    start = chunk.row * num_columns(shape) + chunk.column
    flat = unpacked(bits, start, start + chunk.num_rows * chunk.num_columns)
    return flat.reshape(chunk.num_rows, chunk.num_columns)


def _parts(bits: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for start in range(0, len(bits), CHUNK_BYTES):
        yield start, bits[start : start + CHUNK_BYTES]
