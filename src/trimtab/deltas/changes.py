"""Where two tensors differ and by how much: a few per cent of their bytes, and each from the other.

Elements are looked at in rows of 256. Of each row the number of changed elements is stored, then
one byte for the position of each in its row, and one for the signed distance that it moved, in
steps of its dtype (ulp). Distances that need more than a byte are stored apart. Any bits come back,
NaN payloads and signed zeros too: all arithmetic is that of integers, which wrap around.

This is what crosses between a GPU and the host, where `trimtab.training.deltas.cuda_kernels` has
the same functions, and what takes a change back. Deltas in files are coded much smaller, by
`trimtab.elements.update_coding`. Importing this module loads Numba and compiles once per machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.simd import LANES, compiled, trailing_zeros
from trimtab.elements.update_kernels import changes as changes_in

ROW = 256
"""Elements of a row."""

WIDE = -128
"""The step of an element whose distance is stored apart: one outside -127 ... 127."""

STRIDE, FIRST, SECOND = 0x1E3779B97F4A7C15, 0x4BE98134A5976FD3, 0x3BC0993A5AD19A13
"""Odd numbers that mix the bits of a fingerprint; below 2^63, so that every language takes them."""


class Changes(NamedTuple):
    """How `after` differs from `before`.

    Attributes:
        counts: Changed elements of each row, uint16.
        places: Position of each in its row, uint8, ascending.
        steps: Signed distance of each, int8; `WIDE` if it is stored apart.
        wide: Those distances in order, as bits of the dtype: modulo 2 to their number.
    """

    counts: NDArray[np.uint16]
    places: NDArray[np.uint8]
    steps: NDArray[np.int8]
    wide: Bits

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return sum(array.nbytes for array in self)

    def positions(self) -> NDArray[np.int64]:
        """Position of each changed element in the flat tensor, ascending."""
        rows = np.repeat(np.arange(self.counts.size, dtype=np.int64), self.counts)
        return rows * ROW + self.places

    @classmethod
    def joined(cls, parts: Sequence[Changes]) -> Changes:
        """The changes of a tensor, given those of its parts, all but the last of whole rows."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def find_changes(before: Bits, after: Bits, dtype: DType) -> Changes:
    """The changes that make one tensor the other.

    Args:
        before: Bits, any shape.
        after: Bits of the same shape.
        dtype: What they mean.
    """
    old, new = (np.ascontiguousarray(bits).reshape(-1) for bits in (before, after))
    counts = np.empty(-(-old.size // ROW), np.uint16)
    # As large as they could become; what is not written takes no memory.
    places, steps = np.empty(old.size, np.uint8), np.empty(old.size, np.int8)
    wide = np.empty(old.size, dtype.bits)
    num, num_wide = _find(old, new, *_masks(dtype), counts, places, steps, wide)
    return Changes(counts, places[:num].copy(), steps[:num].copy(), wide[:num_wide].copy())


def apply_changes(bits: Bits, changes: Changes, dtype: DType, *, back: bool = False) -> None:
    """Make `after` of `before`, in place.

    Args:
        bits: `before`, flat.
        changes: As `find_changes` returned them for tensors of this size and dtype.
        dtype: What the bits mean.
        back: Make `before` of `after` instead.
    """
    counts, places, steps, wide = changes
    _apply(bits, *_masks(dtype), counts, places, steps, wide, back)


def fingerprint(bits: Bits) -> int:
    """64 bits that depend on every bit and its position, of any contiguous array.

    Quick to compute in parallel, in any order, and unlikely (1 in 2^64) to be equal for different
    tensors unless someone makes them so.
    """
    content = bits.reshape(-1).view(np.uint8)
    num = content.size // 8
    total = int(_fingerprint(content[: 8 * num].view(np.uint64), 0))
    return fingerprint_of_last(content[8 * num :], num, total)


def fingerprint_of_last(content: NDArray[np.uint8], num_words: int, total: int) -> int:
    """The fingerprint, given that of whole words, and the bytes that are left after them."""
    last = np.zeros(8, np.uint8)
    last[: content.size] = content
    return (total + int(_fingerprint(last.view(np.uint64), num_words))) % 2**64


def _masks(dtype: DType) -> tuple[np.uint64, np.uint64, np.uint64]:
    """All bits, the number of the top one, and those inverted to put negative floats in order."""
    width = 8 * dtype.num_bytes
    full = (1 << width) - 1
    return np.uint64(full), np.uint64(width - 1), np.uint64(full >> 1 if dtype.is_float else 0)


@compiled()
def _find(
    before: Bits,
    after: Bits,
    full: np.uint64,
    top: np.uint64,
    magnitude: np.uint64,
    counts: NDArray[np.uint16],
    places: NDArray[np.uint8],
    steps: NDArray[np.int8],
    wide: Bits,
) -> tuple[int, int]:
    num = num_wide = 0
    for row in range(counts.size):
        first = num
        for start in range(row * ROW, min(before.size, (row + 1) * ROW), LANES):
            changed = changes_in(before, after, start)
            while changed != 0:
                at = start + trailing_zeros(changed)
                changed &= changed - np.uint64(1)
                old, new = np.uint64(before[at]), np.uint64(after[at])
                # Without branches on the signs, which nothing predicts.
                old ^= magnitude & (np.uint64(0) - (old >> top))
                new ^= magnitude & (np.uint64(0) - (new >> top))
                distance = (new - old) & full
                above_least = (distance + np.uint64(127)) & full
                if above_least <= np.uint64(254):
                    steps[num] = np.int64(above_least) - 127
                else:
                    steps[num] = WIDE
                    wide[num_wide] = distance
                    num_wide += 1
                places[num] = at - row * ROW
                num += 1
        counts[row] = num - first
    return num, num_wide


@compiled()
def _apply(
    bits: Bits,
    full: np.uint64,
    top: np.uint64,
    magnitude: np.uint64,
    counts: NDArray[np.uint16],
    places: NDArray[np.uint8],
    steps: NDArray[np.int8],
    wide: Bits,
    back: bool,
) -> None:
    num = num_wide = 0
    for row in range(counts.size):
        for _ in range(counts[row]):
            at = row * ROW + places[num]
            distance = np.uint64(np.int64(steps[num]))
            if steps[num] == WIDE:
                distance = np.uint64(wide[num_wide])
                num_wide += 1
            num += 1
            element = np.uint64(bits[at])
            element ^= magnitude & (np.uint64(0) - (element >> top))
            element = (element - distance if back else element + distance) & full
            bits[at] = element ^ (magnitude & (np.uint64(0) - (element >> top)))


@compiled()
def _fingerprint(words: NDArray[np.uint64], start: int) -> Any:
    """The sum of the words, each mixed with its number, from `start` on."""
    total = np.uint64(0)
    for i in range(words.size):
        word = words[i] + np.uint64(STRIDE) * np.uint64(start + i + 1)
        word = (word ^ (word >> np.uint64(32))) * np.uint64(FIRST)
        word = (word ^ (word >> np.uint64(29))) * np.uint64(SECOND)
        total += word ^ (word >> np.uint64(31))
    return total
