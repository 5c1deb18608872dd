"""Kernels that code the chunks of an update: which elements changed, which way and how far.

Coding has about 30 instructions for each bit, of which few wait for each other: two coders side by
side are no faster.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits
from trimtab.elements.range_coder import (
    ALL,
    ONE,
    U16,
    U32,
    WORD,
    ZERO,
    finish,
    get_bit,
    get_digits,
    get_symbol,
    inlined,
    lean,
    num_bits,
    put_bit,
    put_digits,
    put_symbol,
)
from trimtab.elements.simd import (
    PREDICTED,
    above,
    bit_length,
    differ,
    predicted,
    trailing_zeros,
)

U8: TypeAlias = NDArray[np.uint8]
I8: TypeAlias = NDArray[np.int8]
I32: TypeAlias = NDArray[np.int32]

SEGMENT = 4096
"""Elements whose flags are coded together, then the distances of those that changed."""

BINS = 8
"""Contexts of a flag and of a distance for each exponent: how large the prediction is."""

ESCAPE = 15
"""Symbol of a distance above 15; symbol `s` below it is distance `s` + 1."""

HIGH, LOW, TOP = BINS, BINS + 1, BINS + 5
"""Rows of an exponent: `BINS` for distances; for long ones 1 and 4 of the length, then digits."""

FLAG_LIMIT, SLOW_LIMIT = np.uint32(60), np.uint32(500)
"""A probability follows about so many last bits."""


@inlined
def place_of(bits: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """Place of an element on the line of values: every pattern of bits has its own."""
    return bits ^ full if bits & sign else bits | sign


@inlined
def bits_at(place: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """The inverse of `place_of`."""
    return place ^ sign if sign == ZERO or place & sign else place ^ full


@lean
def predict(levels: U8, start: int, stop: int, left: I32, right: I8, shift: np.int32) -> None:
    """How large the prediction of elements `start` to `stop` is, 0 to 15, and its sign, 128.

    Args:
        levels: Receives a level for each of them; has room for `PREDICTED` more.
        start: The first element, counted in C order.
        stop: The last one, and one.
        left: Weighted factors of rows, (rows, rank).
        right: Factors of columns, (rank, columns + `PREDICTED`).
        shift: Bits of a prediction below its level.
    """
    rank, stride = right.shape
    columns = stride - PREDICTED
    at = start
    while at < stop:
        row, column = at // columns, at % columns
        num = min(columns - column, stop - at)
        for j in range(0, num, PREDICTED):  # what is too many is written again by the next row
            place = at - start + j
            predicted(levels, place, left, row * rank, right, column + j, rank, stride, shift)
        at += num


@inlined
def block_masks(base: Bits, at: int, magnitude: int, limit: int) -> tuple[np.uint64, np.uint64]:
    """Elements of the 64 from `at` on that are there, and those of them above the limit."""
    if at + 64 <= base.size:
        return ALL, above(base, at, magnitude, limit)
    there = cold = ZERO
    for k in range(base.size - at):
        there |= ONE << np.uint64(k)
        if base[at + k] & magnitude > limit:
            cold |= ONE << np.uint64(k)
    return there, cold


@inlined
def changes(base: Bits, tuned: Bits, at: int) -> np.uint64:
    """Which of the 64 elements from `at` on changed."""
    if at + 64 <= base.size:
        return differ(base, tuned, at)
    moved = ZERO
    for k in range(base.size - at):
        moved |= np.uint64(base[at + k] != tuned[at + k]) << np.uint64(k)
    return moved


@inlined
def moves_down(new: np.uint64, old: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """All ones if the shorter way from one element to another is downwards, else 0."""
    step = (place_of(new, full, sign) - place_of(old, full, sign)) & full
    return ZERO - np.uint64(step > full >> ONE)


@inlined
def how_far(new: np.uint64, old: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """Steps of the shorter way from one element to another."""
    step = (place_of(new, full, sign) - place_of(old, full, sign)) & full
    return min(step, (ZERO - step) & full)


@inlined
def guess(level: np.uint8, old: np.uint64, sign: np.uint64, is_predicted: bool) -> np.uint64:
    """All ones if a change is guessed to be downwards, else 0: as predicted, or away from zero."""
    return ZERO - np.uint64(level >> 7 if is_predicted else old & sign != ZERO)


@lean
def encode_chunk(
    base: Bits,
    tuned: Bits,
    out: U32,
    most: int,
    tally: NDArray[np.float64],
    kind: NDArray[np.uint64],
    magnitude: int,
    limit: int,
    offset: int,
    left: I32,
    right: I8,
    level_shift: np.int32,
    flags: U32,
    signs: U32,
    table: U16,
    gaps: U16,
    changed: I32,
    levels: U8,
) -> int:
    """Words written, or -1 where that would be more than `most`.

    `tally` gets the bits of flags, of signs and of distances, for reports only.
    """
    full, sign, shift, field, rows = kind[0], kind[1], kind[2], kind[3], kind[4]
    block_slot = np.uint64(flags.size - 1)
    is_predicted = left.size > 0
    low, span, place = ZERO, ALL, 0
    begin = num_bits(span, place)
    for first in range(0, base.size, SEGMENT):
        last = min(first + SEGMENT, base.size)
        if left.size:
            predict(levels, offset + first, offset + last, left, right, level_shift)
        num = 0
        for at in range(first, last, 64):
            there, cold = block_masks(base, at, magnitude, limit)
            moved = changes(base, tuned, at)
            some = ZERO - np.uint64(moved & cold != ZERO)
            low, span, place = put_bit(low, span, place, out, flags, block_slot, some, SLOW_LIMIT)
            todo = there & (some | ~cold)
            while todo:
                k = trailing_zeros(todo)
                todo &= todo - ONE
                exponent = (np.uint64(base[at + k]) >> shift) & field
                bin_ = np.uint64((levels[at + k - first] & 15) >> 1)
                slot = exponent * np.uint64(BINS) + bin_
                bit = (moved >> np.uint64(k)) & ONE
                low, span, place = put_bit(
                    low, span, place, out, flags, slot, ZERO - bit, FLAG_LIMIT
                )
                changed[num] = at + k
                num += int(bit)
        after_flags = num_bits(span, place)
        for j in range(num):
            i = changed[j]
            level, before = levels[i - first], np.uint64(base[i])
            is_down = moves_down(np.uint64(tuned[i]), before, full, sign)
            slot = np.uint64(level & 15)
            surprise = is_down ^ guess(level, before, sign, is_predicted)
            low, span, place = put_bit(low, span, place, out, signs, slot, surprise, SLOW_LIMIT)
        after_signs = num_bits(span, place)
        for j in range(num):
            i = changed[j]
            old = np.uint64(base[i])
            level = levels[i - first]
            distance = how_far(np.uint64(tuned[i]), old, full, sign)
            row = ((old >> shift) & field) * rows
            symbol = int(np.int64(min(distance, np.uint64(ESCAPE + 1)))) - 1
            low, span, place = put_symbol(
                low, span, place, out, table, gaps, row + np.uint64((level & 15) >> 1), symbol
            )
            if symbol == ESCAPE:
                length = bit_length(distance) - 1
                high = length >> 4
                low, span, place = put_symbol(
                    low, span, place, out, table, gaps, row + np.uint64(HIGH), high
                )
                low, span, place = put_symbol(
                    low, span, place, out, table, gaps, row + np.uint64(LOW + high), length & 15
                )
                top = int(np.int64(distance >> np.uint64(length - 3))) & 7
                low, span, place = put_symbol(
                    low, span, place, out, table, gaps, row + np.uint64(TOP + length), top
                )
                low, span, place = put_digits(low, span, place, out, distance, length - 3)
        end = num_bits(span, place)
        tally[0] += after_flags - begin
        tally[1] += after_signs - after_flags
        tally[2] += end - after_signs
        begin = end
        if place >= most:
            return -1
    return finish(low, place, out)


@lean
def decode_chunk(
    base: Bits,
    words: U32,
    tuned: Bits,
    kind: NDArray[np.uint64],
    magnitude: int,
    limit: int,
    offset: int,
    left: I32,
    right: I8,
    level_shift: np.int32,
    flags: U32,
    signs: U32,
    table: U16,
    gaps: U16,
    changed: I32,
    levels: U8,
) -> bool:
    """Whether the coding is just as long as its elements need."""
    full, sign, shift, field, rows = kind[0], kind[1], kind[2], kind[3], kind[4]
    block_slot = np.uint64(flags.size - 1)
    is_predicted = left.size > 0
    span, place = ALL, 2
    code = (np.uint64(words[0]) << WORD) | (np.uint64(words[1]) if words.size > 1 else ZERO)
    for first in range(0, base.size, SEGMENT):
        last = min(first + SEGMENT, base.size)
        if left.size:
            predict(levels, offset + first, offset + last, left, right, level_shift)
        num = 0
        for i in range(first, last):
            tuned[i] = base[i]
        for at in range(first, last, 64):
            there, cold = block_masks(base, at, magnitude, limit)
            some, code, span, place = get_bit(
                code, span, place, words, flags, block_slot, SLOW_LIMIT
            )
            todo = there & (some | ~cold)
            while todo:
                k = trailing_zeros(todo)
                todo &= todo - ONE
                exponent = (np.uint64(base[at + k]) >> shift) & field
                bin_ = np.uint64((levels[at + k - first] & 15) >> 1)
                slot = exponent * np.uint64(BINS) + bin_
                bit, code, span, place = get_bit(code, span, place, words, flags, slot, FLAG_LIMIT)
                changed[num] = at + k
                num += int(bit & ONE)
        for j in range(num):
            i = changed[j]
            level = levels[i - first]
            slot = np.uint64(level & 15)
            is_down, code, span, place = get_bit(code, span, place, words, signs, slot, SLOW_LIMIT)
            is_down ^= guess(level, np.uint64(base[i]), sign, is_predicted)
            changed[j] = (i << 1) | np.int32(is_down & ONE)
        for j in range(num):
            i = changed[j] >> 1
            is_down = ZERO - np.uint64(changed[j] & 1)
            old = np.uint64(base[i])
            level = levels[i - first]
            row = ((old >> shift) & field) * rows
            symbol, code, span, place = get_symbol(
                code, span, place, words, table, gaps, row + np.uint64((level & 15) >> 1)
            )
            distance = np.uint64(symbol + 1)
            if symbol == ESCAPE:
                high, code, span, place = get_symbol(
                    code, span, place, words, table, gaps, row + np.uint64(HIGH)
                )
                if high > 3:
                    return False
                length, code, span, place = get_symbol(
                    code, span, place, words, table, gaps, row + np.uint64(LOW + high)
                )
                length += 16 * high
                if length < 4 or np.uint64(TOP + length) >= rows:
                    return False
                top, code, span, place = get_symbol(
                    code, span, place, words, table, gaps, row + np.uint64(TOP + length)
                )
                digits, code, span, place = get_digits(code, span, place, words, length - 3)
                distance = (np.uint64(8 | (top & 7)) << np.uint64(length - 3)) | digits
            where = place_of(old, full, sign) + ((distance ^ is_down) - is_down)
            tuned[i] = bits_at(where & full, full, sign)
        if place > words.size + 1:
            return False
    return place == words.size + 1
