"""Counts of sets of elements, compiled with Numba: intersections, sums, histories, gaps.

A set is packed into 64-bit words, the first element in the lowest bit of the first word; several
sets are the rows of an array. Members are found by counting trailing zeros, so time is proportional
to the members, of which a mask has few. Bins are those of `trimtab.elements.dtypes.exponent_bins`.

Import this module only if there are sets to count: it loads Numba and compiles once per machine
(cached on disk). The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.bits import Bins, Counts, slabs
from trimtab.elements.dtypes import Bits
from trimtab.elements.simd import LANES, compiled, differ, has_bit, num_ones, trailing_zeros

BLOCK = 128
"""Words of weights per block, which fits the fastest cache with their bits."""

MOST_AT_ONCE = 16
"""Most bins that are counted for all weights of a block at once."""

FEW = 16
"""So few remaining weights of a block are counted one by one."""

NUM_LOW = 4
"""Digits that differ between neighbouring bins; the others rarely change."""

NONE, ALL = np.uint64(0), ~np.uint64(0)

MOST_PLANES = 8
"""Binary digits of the largest number of sets."""


@compiled()
def count_shared(
    sets: NDArray[np.uint64], shared: NDArray[np.int64], by_count: NDArray[np.int64]
) -> None:
    """Count the intersection of each two sets, and the elements by the number of sets they are in.

    Args:
        sets: `[sets, words]`; padding bits are 0.
        shared: `[sets, sets]`, added to: above and on the diagonal.
        by_count: `[sets + 1]`, added to, except for the first entry: elements in no set cannot be
            told from padding. Empty to skip it.
    """
    num_sets, num_words = sets.shape
    for i in range(num_sets):
        for j in range(i, num_sets):
            num = 0
            for word in range(num_words):
                num += num_ones(sets[i, word] & sets[j, word])
            shared[i, j] += num
    if by_count.size == 0:
        return
    planes = np.zeros(MOST_PLANES, np.uint64)
    for word in range(num_words):
        # The number of sets of each of 64 elements, one binary digit per plane.
        planes[:] = 0
        for i in range(num_sets):
            carry = sets[i, word]
            digit = 0
            while carry != 0:
                both = planes[digit] & carry
                planes[digit] ^= carry
                carry = both
                digit += 1
        for count in range(1, num_sets + 1):
            members = ~np.uint64(0)
            for digit in range(MOST_PLANES):
                has_digit = (count >> digit) & 1
                members &= planes[digit] if has_digit else ~planes[digit]
            by_count[count] += num_ones(members)


@compiled()
def _highest(
    digits: NDArray[np.uint64], num_digits: int, size: int, scratch: NDArray[np.uint64]
) -> int:
    """The largest of some binary numbers, digit by digit."""
    scratch[:size] = ALL
    highest = 0
    for digit in range(num_digits - 1, -1, -1):
        ones = NONE
        for word in range(size):
            ones |= scratch[word] & digits[digit, word]
        if ones != NONE:
            highest |= 1 << digit
            for word in range(size):
                scratch[word] &= digits[digit, word]
    return highest


@compiled()
def _count_one(
    bits: Bits,
    word: int,
    bit: int,
    shift: int,
    last: Any,
    sets: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    """Count a single weight."""
    bin_index = np.intp((bits[word * LANES + bit] >> shift) & last)
    counts[bin_index, 0] += 1
    for i in range(sets.shape[0]):
        counts[bin_index, 1 + i] += np.int64((sets[i, word] >> np.uint64(bit)) & np.uint64(1))


@compiled()
def count_by_bin(
    bits: Bits,
    shift: int,
    num_digits: int,
    sets: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    """Count the elements of each bin, and those of each set among them.

    A weight's bin is a binary number formed by some of its bits. Each digit of 64 weights is
    extracted as a word; a few operations on words then mark the weights of a bin. Most weights are
    in the few bins below that of the largest; the others, except for bin 0 (zeros), are counted one
    by one.

    Args:
        bits: Bits of the weights.
        shift: Bits below the lowest digit.
        num_digits: Number of digits.
        sets: `[sets, words]`, of these weights.
        counts: `[bins, 1 + sets]`, added to: all elements, then those of each set.
    """
    num_sets = sets.shape[0]
    last = bits.dtype.type((1 << num_digits) - 1)
    digits = np.zeros((max(num_digits, NUM_LOW), BLOCK), np.uint64)
    upper = np.empty(BLOCK, np.uint64)
    members = np.empty(BLOCK, np.uint64)
    left = np.empty(BLOCK, np.uint64)
    whole = bits.size // LANES
    for start in range(0, whole, BLOCK):
        size = min(BLOCK, whole - start)
        left[:size] = ALL
        for digit in range(num_digits):
            one = bits.dtype.type(1 << (shift + digit))
            for word in range(size):
                digits[digit, word] = has_bit(bits, (start + word) * LANES, one)
        bin_index = _highest(digits, num_digits, size, members)
        num_left = size * LANES
        of_upper = -1
        for turn in range(MOST_AT_ONCE):
            if turn == MOST_AT_ONCE - 1:
                bin_index = 0
            if bin_index >> NUM_LOW != of_upper:
                of_upper = bin_index >> NUM_LOW
                upper[:size] = ALL
                for digit in range(NUM_LOW, num_digits):
                    unless = NONE if (bin_index >> digit) & 1 else ALL
                    for word in range(size):
                        upper[word] &= digits[digit, word] ^ unless
            unless_0 = NONE if bin_index & 1 else ALL
            unless_1 = NONE if bin_index & 2 else ALL
            unless_2 = NONE if bin_index & 4 else ALL
            unless_3 = NONE if bin_index & 8 else ALL
            num = 0
            for word in range(size):
                here = upper[word] & (digits[0, word] ^ unless_0) & (digits[1, word] ^ unless_1)
                here &= (digits[2, word] ^ unless_2) & (digits[3, word] ^ unless_3)
                members[word] = here
                left[word] &= ~here
                num += num_ones(here)
            counts[bin_index, 0] += num
            for i in range(num_sets):
                num_in_set = 0
                of_set = sets[i, start : start + size]
                for word in range(size):
                    num_in_set += num_ones(members[word] & of_set[word])
                counts[bin_index, 1 + i] += num_in_set
            num_left -= num
            if num_left <= FEW or bin_index == 0:
                break
            bin_index -= 1
        if num_left == 0:
            continue
        for word in range(size):
            while left[word] != 0:
                bit = trailing_zeros(left[word])
                left[word] &= left[word] - np.uint64(1)
                _count_one(bits, start + word, bit, shift, last, sets, counts)
    for index in range(whole * LANES, bits.size):
        _count_one(bits, whole, index - whole * LANES, shift, last, sets, counts)


@compiled()
def _add_bits(
    words: NDArray[np.uint64],
    first_bit: int,
    num_columns: int,
    by_row: Counts,
    by_column: Counts,
) -> None:
    """Add the bits of neighbouring rows; `words` has one more word than the bits need."""
    width = by_column.shape[0]
    for row in range(by_row.shape[0]):
        bit = first_bit + row * num_columns
        total = 0
        for column in range(0, width, 64):
            index, offset = (bit + column) >> 6, np.uint64((bit + column) & 63)
            word = words[index] >> offset
            if offset != 0:
                word |= words[index + 1] << (np.uint64(64) - offset)
            if width - column < 64:
                word &= (np.uint64(1) << np.uint64(width - column)) - np.uint64(1)
            total += num_ones(word)
            while word != 0:
                by_column[column + trailing_zeros(word)] += 1
                word &= word - np.uint64(1)
        by_row[row] += total


@compiled()
def compiled_count_bins(bins: Bins, selected: NDArray[np.bool_], counts: Counts) -> None:
    """See `trimtab.elements.bits.count_bins`."""
    for row in range(bins.shape[0]):
        for column in range(bins.shape[1]):
            counts[np.intp(selected[row, column]), bins[row, column]] += 1


@compiled()
def compiled_count_by_bin(
    bins: Bins, slots: NDArray[np.int64], by_row: NDArray[np.int32], by_column: NDArray[np.int32]
) -> None:
    """See `trimtab.elements.bits.count_by_bin`."""
    for row in range(bins.shape[0]):
        for column in range(bins.shape[1]):
            slot = slots[bins[row, column]]
            by_row[row, slot] += 1
            by_column[column, slot] += 1


def compiled_bit_sums(
    bits: NDArray[np.uint8], num_columns: int, rows: range, columns: range
) -> tuple[Counts, Counts]:
    """See `trimtab.elements.bits.bit_sums`."""
    by_row = np.zeros(len(rows), dtype=np.int64)
    by_column = np.zeros(len(columns), dtype=np.int64)
    for first, last in slabs(rows, num_columns):
        start, stop = first * num_columns // 8, -(-last * num_columns // 8)
        words = np.zeros((stop - start + 7) // 8 + 1, dtype=np.uint64)
        words.view(np.uint8)[: stop - start] = bits[start:stop]
        first_bit = first * num_columns - 8 * start + columns.start
        of_rows = by_row[first - rows.start : last - rows.start]
        _add_bits(words, first_bit, num_columns, of_rows, by_column)
    return by_row, by_column


@compiled()
def _differ_in_rest(left: Bits, right: Bits, start: int) -> np.uint64:
    """Like `differ`, for the fewer than `LANES` elements at the end."""
    mask = np.uint64(0)
    for i in range(start, len(left)):
        mask |= np.uint64(left[i] != right[i]) << np.uint64(i - start)
    return mask


@compiled()
def _differ_all(left: Bits, right: Bits, marked: NDArray[np.uint64]) -> None:
    """Mark where two arrays differ."""
    whole = len(left) // LANES
    for word in range(whole):
        marked[word] = differ(left, right, word * LANES)
    if whole < len(marked):
        marked[whole] = _differ_in_rest(left, right, whole * LANES)


@compiled()
def _advance(
    base: Bits,
    before: Bits,
    now: Bits,
    final: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    num_changed = num_stepped = num_ever = num_in_final = num_ever_in_final = 0
    whole = len(base) // LANES
    for word in range(len(ever)):
        start = word * LANES
        if word < whole:
            changed, stepped = differ(base, now, start), differ(before, now, start)
        else:
            changed = _differ_in_rest(base, now, start)
            stepped = _differ_in_rest(before, now, start)
        so_far = ever[word] | changed
        ever[word] = so_far
        num_changed += num_ones(changed)
        num_stepped += num_ones(stepped)
        num_ever += num_ones(so_far)
        num_in_final += num_ones(changed & final[word])
        num_ever_in_final += num_ones(so_far & final[word])
    counts[0] += num_changed
    counts[1] += num_stepped
    counts[2] += num_ever
    counts[3] += num_in_final
    counts[4] += num_ever_in_final


class NumbaHistory:
    """See `trimtab.elements.series.History`."""

    def __init__(self, base: Bits, last: Bits) -> None:
        self._base = base.reshape(-1)
        self._final, self._ever = np.zeros((2, -(-base.size // LANES)), np.uint64)
        _differ_all(self._base, last.reshape(-1), self._final)

    def advance(self, before: Bits, now: Bits, counts: NDArray[np.int64]) -> None:
        """See `trimtab.elements.series.History.advance`."""
        flat = before.reshape(-1), now.reshape(-1)
        _advance(self._base, *flat, self._final, self._ever, counts)


@compiled()
def num_members(words: NDArray[np.uint64]) -> int:
    """Size of a set."""
    num = 0
    for word in words:
        num += num_ones(word)
    return num


@compiled()
def encode_gaps(words: NDArray[np.uint64], out: NDArray[Any], largest: int) -> int:
    """Write gaps, and return how many integers that took."""
    filled = 0
    after = 0
    for number in range(words.size):
        word = words[number]
        while word != 0:
            position = number * LANES + trailing_zeros(word)
            word &= word - np.uint64(1)
            gap = position - after
            while gap >= largest:
                out[filled] = largest
                filled += 1
                gap -= largest
            out[filled] = gap
            filled += 1
            after = position + 1
    return filled
