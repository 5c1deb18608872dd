"""Counts of what several sets of the same elements share, compiled with Numba.

A set is packed into 64-bit words, the first element in the lowest bit of the first word; several
are the rows of one array. See `trimtab.elements.exponents` for the bins of weights.

Import this module only when there are sets to count: it loads Numba and, once per machine,
compiles (cached on disk afterwards). The kernels release the GIL.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits
from trimtab.elements.kernels import compiled
from trimtab.elements.lanes import LANES, has_bit, num_ones, trailing_zeros

__all__ = ["count_by_bin", "count_shared"]

BLOCK = 128
"""Words of weights that are looked at together: with their bits they stay in the fastest cache."""

MOST_AT_ONCE = 16
"""Bins that are found for all weights of a block at once, at most."""

FEW = 16
"""Weights of a block that are sooner looked at one by one."""

NUM_LOW = 4
"""Digits that tell apart the bins next to each other; the others seldom change between them."""

NONE, ALL = np.uint64(0), ~np.uint64(0)

MOST_PLANES = 8
"""Binary digits of the largest number of sets that an element can be in."""


@compiled()
def count_shared(
    sets: NDArray[np.uint64], shared: NDArray[np.int64], by_count: NDArray[np.int64]
) -> None:
    """Count what each two sets share, and the elements that so many of them have.

    Args:
        sets: `[sets, words]`; bits that are no elements are 0 in all.
        shared: `[sets, sets]`, added to: above and on the diagonal.
        by_count: `[sets + 1]`, added to, but for the first: elements in no set are not told from
            bits that are no elements. Empty to leave it out.
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
        # The number of sets of 64 elements at once, one binary digit to a plane.
        planes[:] = 0
        for i in range(num_sets):
            carry = sets[i, word]
            place = 0
            while carry != 0:
                both = planes[place] & carry
                planes[place] ^= carry
                carry = both
                place += 1
        for count in range(1, num_sets + 1):
            members = ~np.uint64(0)
            for place in range(MOST_PLANES):
                has_digit = (count >> place) & 1
                members &= planes[place] if has_digit else ~planes[place]
            by_count[count] += num_ones(members)


@compiled()
def _highest(
    digits: NDArray[np.uint64], num_digits: int, size: int, scratch: NDArray[np.uint64]
) -> int:
    """The largest of some binary numbers: digit by digit, of those that have all ones so far."""
    scratch[:size] = ALL
    highest = 0
    for digit in range(num_digits - 1, -1, -1):
        found = NONE
        for word in range(size):
            found |= scratch[word] & digits[digit, word]
        if found != NONE:
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
    place = np.intp((bits[word * LANES + bit] >> shift) & last)
    counts[place, 0] += 1
    for i in range(sets.shape[0]):
        counts[place, 1 + i] += np.int64((sets[i, word] >> np.uint64(bit)) & np.uint64(1))


@compiled()
def count_by_bin(
    bits: Bits,
    shift: int,
    num_digits: int,
    sets: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    """Count the elements of each bin, and those of each set among them.

    A weight's bin is a binary number of some digits of its bits. Each digit of 64 weights is taken
    out as a word, and then a few operations on words say which of the weights are of a bin. Most
    weights are in the few bins below that of the largest; weights of other bins are looked at one
    by one, but for those of bin 0, where zeros are.

    Args:
        bits: Weights, of which only the bits are looked at.
        shift: Bits below the lowest digit.
        num_digits: How many there are.
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
        place = _highest(digits, num_digits, size, members)
        num_left = size * LANES
        of_upper = -1
        for turn in range(MOST_AT_ONCE):
            if turn == MOST_AT_ONCE - 1:
                place = 0
            if place >> NUM_LOW != of_upper:
                of_upper = place >> NUM_LOW
                upper[:size] = ALL
                for digit in range(NUM_LOW, num_digits):
                    unless = NONE if (place >> digit) & 1 else ALL
                    for word in range(size):
                        upper[word] &= digits[digit, word] ^ unless
            unless_0 = NONE if place & 1 else ALL
            unless_1 = NONE if place & 2 else ALL
            unless_2 = NONE if place & 4 else ALL
            unless_3 = NONE if place & 8 else ALL
            num = 0
            for word in range(size):
                here = upper[word] & (digits[0, word] ^ unless_0) & (digits[1, word] ^ unless_1)
                here &= (digits[2, word] ^ unless_2) & (digits[3, word] ^ unless_3)
                members[word] = here
                left[word] &= ~here
                num += num_ones(here)
            counts[place, 0] += num
            for i in range(num_sets):
                num_in_set = 0
                of_set = sets[i, start : start + size]
                for word in range(size):
                    num_in_set += num_ones(members[word] & of_set[word])
                counts[place, 1 + i] += num_in_set
            num_left -= num
            if num_left <= FEW or place == 0:
                break
            place -= 1
        if num_left == 0:
            continue
        for word in range(size):
            while left[word] != 0:
                bit = trailing_zeros(left[word])
                left[word] &= left[word] - np.uint64(1)
                _count_one(bits, start + word, bit, shift, last, sets, counts)
    for index in range(whole * LANES, bits.size):
        _count_one(bits, whole, index - whole * LANES, shift, last, sets, counts)
