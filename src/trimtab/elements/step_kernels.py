"""Compare weights before and after a training step, compiled with Numba: 64 elements at a time.

Sets of elements are 64-bit words, the first element in the lowest bit of the first word. Weights
are
bits in the stored dtype; see `trimtab.elements.dtypes`. Importing this module loads Numba and
compiles once per machine (cached on disk). The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits
from trimtab.elements.simd import LANES, above, compiled, differ, num_ones

WORD = LANES
"""Elements to a word of a set."""

BLOCK = 512
"""Elements whose squares are added in fp32."""

MOVES, SELECTED = 1, 2
"""Flags of an element that an optimizer with a mask trains."""


def num_words(num_elements: int) -> int:
    """Words of a set of elements."""
    return -(-num_elements // WORD)


@compiled()
def look(
    now: Bits,
    before: Bits,
    base: Bits,
    magnitude: Any,
    moment: NDArray[Any],
    moment_magnitude: Any,
    decays: bool,
    selected: NDArray[np.uint8],
    changed: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    toggled: NDArray[np.uint64],
) -> tuple[int, int, int, int, int]:
    """Compare weights with those before and with the base, and update the sets.

    Args:
        now: Weights.
        before: Weights at the previous point.
        base: Weights of the base.
        magnitude: All bits of a weight except the sign.
        moment: Optimizer state that is not 0 where the optimizer moves an element; empty if
            unknown.
        moment_magnitude: The bits of it that count.
        decays: Whether weights other than 0 move too (weight decay); ignored without `moment`.
        selected: Not 0 for the elements that the optimizer trains; empty if it trains all.
        changed: Set of the elements that differ from the base; updated.
        ever: Set of the elements that ever differed from it; updated.
        toggled: Overwritten with the elements that entered or left `changed`.

    Returns:
        Number of elements that differ from before; that differ from the base; that ever did; that
        the optimizer moved; and those of the last that do not differ from before.
    """
    num_stepped = num_changed = num_ever = num_asked = num_absorbed = 0
    asks = moment.size > 0
    chooses = selected.size > 0
    whole = now.size // LANES
    for word in range(changed.size):
        start = word * LANES
        stepped = np.uint64(0)
        differs = np.uint64(0)
        asked = np.uint64(0)
        if word < whole:
            stepped = differ(now, before, start)
            differs = differ(now, base, start)
            if asks:
                asked = above(moment, start, moment_magnitude, moment.dtype.type(0))
                if decays:
                    asked |= above(before, start, magnitude, before.dtype.type(0))
                if chooses:
                    asked &= above(selected, start, np.uint8(0xFF), np.uint8(0))
        else:
            for lane in range(now.size - start):
                bit = np.uint64(1) << np.uint64(lane)
                element = now[start + lane]
                last = before[start + lane]
                if element != last:
                    stepped |= bit
                if element != base[start + lane]:
                    differs |= bit
                if asks and (not chooses or selected[start + lane] != 0):
                    moves = (moment[start + lane] & moment_magnitude) != 0
                    if moves or (decays and (last & magnitude) != 0):
                        asked |= bit
        toggled[word] = changed[word] ^ differs
        changed[word] = differs
        ever[word] |= differs
        num_stepped += num_ones(stepped)
        num_changed += num_ones(differs)
        num_ever += num_ones(ever[word])
        num_asked += num_ones(asked)
        num_absorbed += num_ones(asked & ~stepped)
    return num_stepped, num_changed, num_ever, num_asked, num_absorbed


@compiled()
def round_to_bf16(source: NDArray[np.uint32], out: NDArray[np.uint16]) -> None:
    """Round fp32 numbers, given as bits, to nearest and ties to even, as torch does."""
    for i in range(source.size):
        bits = source[i]
        odd = (bits >> np.uint32(16)) & np.uint32(1)
        rounded = np.uint16((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
        is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
        out[i] = np.uint16(0x7FC0) if is_nan else rounded


@compiled()
def fits_bf16(source: NDArray[np.uint32]) -> bool:
    """Whether rounding fp32 numbers, given as bits, to bf16 loses nothing."""
    low = np.uint32(0)
    for i in range(source.size):
        low |= source[i]
    return (low & np.uint32(0xFFFF)) == 0


@compiled()
def count_nonzero(bits: NDArray[Any], magnitude: Any) -> int:
    """How many elements have a bit of `magnitude`: +0.0 and -0.0 have none."""
    num = 0
    for i in range(bits.size):
        num += 1 if (bits[i] & magnitude) != 0 else 0
    return num


# Sums may be taken in any order so that they use vectors; NaN and infinity keep their meaning.
@compiled(fastmath={"reassoc"})
def _squared_distance_bf16(left: NDArray[np.uint16], right: NDArray[np.uint16]) -> float:
    total: Any = 0.0  # fp64
    whole = left.size - left.size % BLOCK
    for start in range(0, whole, BLOCK):
        of_block = np.float32(0.0)
        for i in range(start, start + BLOCK):
            x = np.uint32(np.uint32(left[i]) << np.uint32(16)).view(np.float32)
            y = np.uint32(np.uint32(right[i]) << np.uint32(16)).view(np.float32)
            of_block += (x - y) * (x - y)
        total += of_block
    for i in range(whole, left.size):
        x = np.uint32(np.uint32(left[i]) << np.uint32(16)).view(np.float32)
        y = np.uint32(np.uint32(right[i]) << np.uint32(16)).view(np.float32)
        total += (x - y) * (x - y)
    return total


@compiled(fastmath={"reassoc"})
def _squared_distance(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    total: Any = 0.0  # fp64
    whole = left.size - left.size % BLOCK
    for start in range(0, whole, BLOCK):
        of_block = np.float32(0.0)
        for i in range(start, start + BLOCK):
            of_block += (left[i] - right[i]) * (left[i] - right[i])
        total += of_block
    for i in range(whole, left.size):
        total += (left[i] - right[i]) * (left[i] - right[i])
    return total


def squared_distance(left: Bits, right: Bits, storage: np.dtype[Any]) -> float:
    """Sum of the squares of the differences of two arrays of weights.

    Differences, squares and sums of `BLOCK` are fp32, the sum of those is fp64: about six digits.

    Args:
        left: Bits.
        right: Bits.
        storage: Dtype that decodes them: bf16, fp16 or fp32.
    """
    if storage.name == "bfloat16":
        return float(_squared_distance_bf16(left, right))
    values = (bits.view(storage).astype(np.float32, copy=False) for bits in (left, right))
    return float(_squared_distance(*values))


@compiled()
def mark(
    index: NDArray[Any], values: NDArray[Any], magnitude: Any, flags: NDArray[np.uint8]
) -> None:
    """Set `flags` at the positions of `index`.

    Args:
        index: Positions.
        values: One for each.
        magnitude: The bits of a value that count.
        flags: Becomes `SELECTED`, and also `MOVES` where the value is not 0; left as it is
            elsewhere.
    """
    for i in range(index.size):
        moves = MOVES if (values[i] & magnitude) != 0 else 0
        flags[np.uint64(index[i])] = SELECTED | moves


def flip(words: NDArray[np.uint64], where: NDArray[np.int64]) -> None:
    """Toggle the membership of the elements at these positions in a set."""
    np.bitwise_xor.at(words, where // WORD, np.uint64(1) << (where % WORD).astype(np.uint64))
