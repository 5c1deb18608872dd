"""Kernels that code an update: an adaptive range coder of bits and of symbols, and its contexts.

The coder keeps an interval of 64 bits, `low` and `span`, and writes words of 32 bits (as in
G. N. N. Martin, "Range encoding", 1979; carries go back into what was written). A bit has a
probability of 16 bits that moves with what was coded (`learn`); a symbol, 0 to 15, has a row of a
table with counts, from which its 16 intervals are computed every so often (A. Said, "Introduction
to arithmetic coding", 2004, sec. 3.3). Everything is computed in integers: every machine decodes
the same bits.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits
from trimtab.elements.simd import (
    above,
    bit_length,
    compiled,
    differ,
    num_at_most,
    trailing_zeros,
)

U8: TypeAlias = NDArray[np.uint8]
U16: TypeAlias = NDArray[np.uint16]
U32: TypeAlias = NDArray[np.uint32]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]

lean = compiled(_nrt=False)
"""Nothing is allocated, so references need no counting, which costs as much as the coding."""

inlined = compiled(forceinline=True, _nrt=False)
"""For what takes and returns the state of a coder: in an array it costs more than the coding."""

SEGMENT = 4096
"""Elements whose flags are coded together, then the distances of those that changed."""

BINS = 8
"""Contexts of a flag and of a distance for each exponent: how large the prediction is."""

ESCAPE = 15
"""Symbol of a distance above 15; symbol `s` below it is distance `s` + 1."""

HIGH, LOW, TOP = BINS, BINS + 1, BINS + 5
"""Rows of an exponent: `BINS` for distances; for long ones 1 and 4 of the length, then digits."""

NUM_SYMBOLS, ROW = 16, np.uint64(32)
"""Row of a table: where the intervals of its symbols start, then how often they were coded."""

COUNT, FADE, FIRST_GAP, LAST_GAP = 24, 24_000, 8, 256
"""What a symbol adds to its count, when counts are halved, and symbols between new intervals."""

FLAG_LIMIT, SLOW_LIMIT = np.uint32(60), np.uint32(500)
"""A probability follows about so many last bits."""

RATES = np.array([int(65535 / (count + 1.6)) for count in range(501)], np.uint32)
"""How far a probability moves, in 1 / 65,536 of the way, by how many bits it has learned from."""

HALF = np.uint32(1 << 15)
"""A probability that has learned from nothing."""

ZERO, ONE, TWO, HALF_WORD, WORD = (np.uint64(number) for number in (0, 1, 2, 16, 32))
BELOW_WORD, ALL = np.uint64(1 << 32), np.uint64((1 << 64) - 1)


@inlined
def learn(table: U32, slot: np.uint64, bit: np.uint64) -> None:
    """Move a probability towards a bit (all ones or zero), at the rate of its limit."""
    value, count = table[slot], table[slot + ONE]
    rate = RATES[count]
    down = value - ((value * rate) >> np.uint32(16))
    up = value + (((np.uint32(65535) - value) * rate) >> np.uint32(16))
    table[slot] = (up & np.uint32(bit)) | (down & np.uint32(~bit))
    table[slot + ONE] = count + np.uint32(count < table[slot + TWO])


@lean
def carry(out: U32, place: int) -> None:
    """Add one to the number that was written."""
    place -= 1
    out[place] += np.uint32(1)
    while out[place] == 0:
        place -= 1
        out[place] += np.uint32(1)


@inlined
def put_interval(
    low: np.uint64, span: np.uint64, place: int, out: U32, start: np.uint64, size: np.uint64
) -> tuple[np.uint64, np.uint64, int]:
    """Go on in the part of the interval that begins at `start`."""
    low = low + start
    span = size
    if low < start:
        carry(out, place)
    if span < BELOW_WORD:
        out[place] = np.uint32(low >> WORD)
        low, span, place = low << WORD, span << WORD, place + 1
    return low, span, place


@inlined
def get_interval(
    code: np.uint64, span: np.uint64, place: int, words: U32
) -> tuple[np.uint64, np.uint64, int]:
    """Read a word where the interval has become small; zeros follow the last word."""
    if span < BELOW_WORD:
        word = np.uint64(words[place]) if place < words.size else ZERO
        code, span, place = (code << WORD) | word, span << WORD, place + 1
    return code, span, place


@inlined
def put_bit(
    low: np.uint64,
    span: np.uint64,
    place: int,
    out: U32,
    table: U32,
    slot: np.uint64,
    bit: np.uint64,
) -> tuple[np.uint64, np.uint64, int]:
    """Code a bit (all ones or zero) by the probability in a slot."""
    bound = (span >> HALF_WORD) * np.uint64(table[slot] | np.uint32(1))
    learn(table, slot, bit)
    size = (bound & bit) | ((span - bound) & ~bit)
    return put_interval(low, span, place, out, bound & ~bit, size)


@inlined
def get_bit(
    code: np.uint64, span: np.uint64, place: int, words: U32, table: U32, slot: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, int]:
    """The inverse of `put_bit`; the bit comes first."""
    bound = (span >> HALF_WORD) * np.uint64(table[slot] | np.uint32(1))
    bit = ZERO - np.uint64(code < bound)
    learn(table, slot, bit)
    less, rest = code - bound, span - bound
    span = bound if code < bound else rest
    code = code if code < bound else less
    code, span, place = get_interval(code, span, place, words)
    return bit, code, span, place


@lean
def refresh(table: U16, gaps: U16, row: np.uint64) -> None:
    """Compute the intervals of a row from its counts, and when to do so again."""
    first = int(row * ROW)
    total = 0
    for i in range(first + NUM_SYMBOLS, first + 2 * NUM_SYMBOLS):
        total += int(table[i]) + 1
    if total > FADE:
        total = 0
        for i in range(first + NUM_SYMBOLS, first + 2 * NUM_SYMBOLS):
            table[i] >>= np.uint16(1)
            total += int(table[i]) + 1
    scale = ((65536 - NUM_SYMBOLS) << 16) // total
    before = 0
    for i in range(NUM_SYMBOLS):
        table[first + i] = np.uint16(((before * scale) >> 16) + i)
        before += int(table[first + NUM_SYMBOLS + i]) + 1
    gap = min(max(2 * int(gaps[row + row + ONE]), FIRST_GAP), LAST_GAP)
    gaps[row + row] = gaps[row + row + ONE] = np.uint16(gap)


@inlined
def interval(table: U16, row: np.uint64, symbol: int) -> tuple[np.uint64, np.uint64]:
    """Start and size of a symbol's interval, in 1 / 65,536; counts the symbol."""
    at = row * ROW + np.uint64(symbol)
    table[at + np.uint64(NUM_SYMBOLS)] += np.uint16(COUNT)
    start = np.uint64(table[at])
    end = np.uint64(table[at + ONE]) if symbol < NUM_SYMBOLS - 1 else np.uint64(65536)
    return start, end - start


@inlined
def put_symbol(
    low: np.uint64,
    span: np.uint64,
    place: int,
    out: U32,
    table: U16,
    gaps: U16,
    row: np.uint64,
    symbol: int,
) -> tuple[np.uint64, np.uint64, int]:
    """Code a symbol, 0 to 15, by a row of counts."""
    if gaps[row + row] == 0:
        refresh(table, gaps, row)
    gaps[row + row] -= np.uint16(1)
    start, size = interval(table, row, symbol)
    share = span >> HALF_WORD
    return put_interval(low, span, place, out, share * start, share * size)


@inlined
def get_symbol(
    code: np.uint64, span: np.uint64, place: int, words: U32, table: U16, gaps: U16, row: np.uint64
) -> tuple[int, np.uint64, np.uint64, int]:
    """The inverse of `put_symbol`; the symbol comes first."""
    if gaps[row + row] == 0:
        refresh(table, gaps, row)
    gaps[row + row] -= np.uint16(1)
    share = span >> HALF_WORD
    value = min(code // share, np.uint64(65535))
    symbol = num_at_most(table, int(row * ROW), np.uint16(value)) - 1
    start, size = interval(table, row, symbol)
    code, span, place = get_interval(code - share * start, share * size, place, words)
    return symbol, code, span, place


@inlined
def put_digits(
    low: np.uint64, span: np.uint64, place: int, out: U32, number: np.uint64, width: int
) -> tuple[np.uint64, np.uint64, int]:
    """Code the lowest `width` bits of a number, which nothing predicts."""
    while width > 0:
        part = min(width, 16)
        width -= part
        digits = (number >> np.uint64(width)) & ((ONE << np.uint64(part)) - ONE)
        share = span >> np.uint64(part)
        low, span, place = put_interval(low, span, place, out, share * digits, share)
    return low, span, place


@inlined
def get_digits(
    code: np.uint64, span: np.uint64, place: int, words: U32, width: int
) -> tuple[np.uint64, np.uint64, np.uint64, int]:
    """The inverse of `put_digits`; the number comes first."""
    number = ZERO
    while width > 0:
        part = min(width, 16)
        width -= part
        share = span >> np.uint64(part)
        digits = min(code // share, (ONE << np.uint64(part)) - ONE)
        number = (number << np.uint64(part)) | digits
        code, span, place = get_interval(code - share * digits, share, place, words)
    return number, code, span, place


@lean
def finish(low: np.uint64, place: int, out: U32) -> int:
    """Write a word that lies in the interval whatever follows it; the number of words."""
    last = low + (BELOW_WORD - ONE)
    if last < low:
        carry(out, place)
    out[place] = np.uint32(last >> WORD)
    return place + 1


@inlined
def place_of(bits: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """Place of an element on the line of values: every pattern of bits has its own."""
    return bits ^ full if bits & sign else bits | sign


@inlined
def bits_at(place: np.uint64, full: np.uint64, sign: np.uint64) -> np.uint64:
    """The inverse of `place_of`."""
    return place ^ sign if sign == ZERO or place & sign else place ^ full


@lean
def predict(
    levels: U8, start: int, stop: int, left: I32, right: I32, scale: np.int64, sums: I32
) -> None:
    """How large the prediction of elements `start` to `stop` is, 0 to 15, and its sign, 128.

    Args:
        levels: Receives a level for each of them.
        start: The first element, counted in C order.
        stop: The last one, and one.
        left: Weighted factors of rows, (rows, rank).
        right: Factors of columns, (rank, columns).
        scale: Levels for each unit of a prediction, in 1 / 2^32.
        sums: Room for as many numbers.
    """
    columns = right.shape[1]
    at = start
    while at < stop:
        row, column = at // columns, at % columns
        num = min(columns - column, stop - at)
        for j in range(num):
            sums[j] = 0
        for k in range(right.shape[0]):
            factor = left[row, k]
            for j in range(num):
                sums[j] += factor * right[k, column + j]
        for j in range(num):
            size = min(int((np.int64(abs(sums[j])) * scale) >> 32), 15)
            levels[at - start + j] = np.uint8(size + 128 if sums[j] < 0 else size)
        at += num


@lean
def encode_factors(factors: I32, table: U16, gaps: U16, out: U32) -> int:
    """Words written for numbers from -128 to 127, (rank, size); each rank has its counts."""
    low, span, place = ZERO, ALL, 0
    for k in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            number = int(factors[k, j])
            symbol = number + ESCAPE // 2 if abs(number) <= ESCAPE // 2 else ESCAPE
            low, span, place = put_symbol(low, span, place, out, table, gaps, np.uint64(k), symbol)
            if symbol == ESCAPE:
                low, span, place = put_digits(low, span, place, out, np.uint64(number + 128), 8)
    return finish(low, place, out)


@lean
def decode_factors(words: U32, table: U16, gaps: U16, factors: I32) -> bool:
    """The inverse of `encode_factors`: whether the coding is just as long as they need."""
    span, place = ALL, 2
    code = (np.uint64(words[0]) << WORD) | (np.uint64(words[1]) if words.size > 1 else ZERO)
    for k in range(factors.shape[0]):
        for j in range(factors.shape[1]):
            symbol, code, span, place = get_symbol(
                code, span, place, words, table, gaps, np.uint64(k)
            )
            if symbol == ESCAPE:
                digits, code, span, place = get_digits(code, span, place, words, 8)
                factors[k, j] = np.int32(np.int64(digits) - 128)
            else:
                factors[k, j] = np.int32(symbol - ESCAPE // 2)
        if place > words.size + 1:
            return False
    return place == words.size + 1


@lean
def num_bits(span: np.uint64, place: int) -> float:
    """Bits coded so far."""
    return 32.0 * place + 64.0 - np.log2(float(span))


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
    right: I32,
    scale: np.int64,
    flags: U32,
    signs: U32,
    table: U16,
    gaps: U16,
    changed: I64,
    levels: U8,
    sums: I32,
) -> int:
    """Words written, or -1 where that would be more than `most`.

    `tally` gets the bits of flags, of signs and of distances, for reports only.
    """
    full, sign, shift, field, rows = kind[0], kind[1], kind[2], kind[3], kind[4]
    block_slot = np.uint64(flags.size - 3)
    low, span, place = ZERO, ALL, 0
    begin = num_bits(span, place)
    for first in range(0, base.size, SEGMENT):
        last = min(first + SEGMENT, base.size)
        if left.size:
            predict(levels, offset + first, offset + last, left, right, scale, sums)
        num = 0
        for at in range(first, last, 64):
            there, cold = block_masks(base, at, magnitude, limit)
            moved = ZERO
            if there == ALL:
                moved = differ(base, tuned, at)
            else:
                for k in range(base.size - at):
                    moved |= np.uint64(base[at + k] != tuned[at + k]) << np.uint64(k)
            some = ZERO - np.uint64(moved & cold != ZERO)
            low, span, place = put_bit(low, span, place, out, flags, block_slot, some)
            todo = there & (some | ~cold)
            while todo:
                k = trailing_zeros(todo)
                todo &= todo - ONE
                exponent = (np.uint64(base[at + k]) >> shift) & field
                bin_ = np.uint64((levels[at + k - first] & 15) >> 1)
                slot = (exponent * np.uint64(BINS) + bin_) * np.uint64(3)
                bit = (moved >> np.uint64(k)) & ONE
                low, span, place = put_bit(low, span, place, out, flags, slot, ZERO - bit)
                changed[num] = at + k
                num += int(bit)
        after_flags = num_bits(span, place)
        for j in range(num):
            i = changed[j]
            step = place_of(np.uint64(tuned[i]), full, sign)
            step = (step - place_of(np.uint64(base[i]), full, sign)) & full
            is_down = ZERO - np.uint64(step > full >> ONE)
            if left.size:
                level = levels[i - first]
                slot = np.uint64(level & 15) * np.uint64(3)
                surprise = is_down ^ (ZERO - np.uint64(level >> 7))
                low, span, place = put_bit(low, span, place, out, signs, slot, surprise)
            else:
                half = span >> ONE
                low, span, place = put_interval(low, span, place, out, half & is_down, half)
        after_signs = num_bits(span, place)
        for j in range(num):
            i = changed[j]
            old = np.uint64(base[i])
            level = levels[i - first]
            step = (place_of(np.uint64(tuned[i]), full, sign) - place_of(old, full, sign)) & full
            distance = min(step, (ZERO - step) & full)
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
    right: I32,
    scale: np.int64,
    flags: U32,
    signs: U32,
    table: U16,
    gaps: U16,
    changed: I64,
    levels: U8,
    sums: I32,
) -> bool:
    """Whether the coding is just as long as its elements need."""
    full, sign, shift, field, rows = kind[0], kind[1], kind[2], kind[3], kind[4]
    block_slot = np.uint64(flags.size - 3)
    span, place = ALL, 2
    code = (np.uint64(words[0]) << WORD) | (np.uint64(words[1]) if words.size > 1 else ZERO)
    for first in range(0, base.size, SEGMENT):
        last = min(first + SEGMENT, base.size)
        if left.size:
            predict(levels, offset + first, offset + last, left, right, scale, sums)
        num = 0
        for i in range(first, last):
            tuned[i] = base[i]
        for at in range(first, last, 64):
            there, cold = block_masks(base, at, magnitude, limit)
            some, code, span, place = get_bit(code, span, place, words, flags, block_slot)
            todo = there & (some | ~cold)
            while todo:
                k = trailing_zeros(todo)
                todo &= todo - ONE
                exponent = (np.uint64(base[at + k]) >> shift) & field
                bin_ = np.uint64((levels[at + k - first] & 15) >> 1)
                slot = (exponent * np.uint64(BINS) + bin_) * np.uint64(3)
                bit, code, span, place = get_bit(code, span, place, words, flags, slot)
                changed[num] = at + k
                num += int(bit & ONE)
        for j in range(num):
            i = changed[j]
            if left.size:
                level = levels[i - first]
                slot = np.uint64(level & 15) * np.uint64(3)
                is_down, code, span, place = get_bit(code, span, place, words, signs, slot)
                is_down ^= ZERO - np.uint64(level >> 7)
            else:
                span >>= ONE
                is_down = ZERO - np.uint64(code >= span)
                code -= span & is_down
                code, span, place = get_interval(code, span, place, words)
            changed[j] = (i << 1) | np.int64(is_down & ONE)
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
