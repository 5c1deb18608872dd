"""An adaptive range coder of bits and of symbols, for kernels that code.

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

from trimtab.elements.simd import compiled, num_at_most

U16: TypeAlias = NDArray[np.uint16]
U32: TypeAlias = NDArray[np.uint32]

lean = compiled(_nrt=False)
"""Nothing is allocated, so references need no counting, which costs as much as the coding."""

inlined = compiled(forceinline=True, _nrt=False)
"""For what takes and returns the state of a coder: in an array it costs more than the coding."""

NUM_SYMBOLS, ROW = 16, np.uint64(32)
"""Row of a table: where the intervals of its symbols start, then how often they were coded."""

COUNT, FADE, FIRST_GAP, LAST_GAP = 24, 24_000, 1, 256
"""What a symbol adds to its count, when counts are halved, and symbols between new intervals."""

RATES = np.array([int(65535 / (count + 1.6)) for count in range(501)], np.int32)
"""How far a probability moves, in 1 / 65,536 of the way, by how many bits it has learned from."""

UNTAUGHT = np.uint32(1 << 31)
"""A slot that has learned from nothing: one half."""

ZERO, ONE, HALF_WORD, WORD = (np.uint64(number) for number in (0, 1, 16, 32))
BELOW_WORD, ALL = np.uint64(1 << 32), np.uint64((1 << 64) - 1)


@inlined
def learn(table: U32, slot: np.uint64, bit: np.uint64, limit: np.uint32) -> np.uint64:
    """The probability in a slot, which then moves towards a bit (all ones or zero).

    A slot has a probability in its upper 16 bits, and in the lower ones how many bits it has
    learned from, up to the limit.
    """
    entry = table[slot]
    value, count = np.int32(entry >> np.uint32(16)), entry & np.uint32(65535)
    way = np.int32(np.uint32(bit) & np.uint32(65535)) - value
    value += np.int32((way * RATES[count]) >> 16)
    count += np.uint32(count < limit)
    table[slot] = np.uint32(value) << np.uint32(16) | count
    return np.uint64(entry >> np.uint32(16) | np.uint32(1))


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
    limit: np.uint32,
) -> tuple[np.uint64, np.uint64, int]:
    """Code a bit (all ones or zero) by the probability in a slot."""
    bound = (span >> HALF_WORD) * learn(table, slot, bit, limit)
    size = (bound & bit) | ((span - bound) & ~bit)
    return put_interval(low, span, place, out, bound & ~bit, size)


@inlined
def get_bit(
    code: np.uint64,
    span: np.uint64,
    place: int,
    words: U32,
    table: U32,
    slot: np.uint64,
    limit: np.uint32,
) -> tuple[np.uint64, np.uint64, np.uint64, int]:
    """The inverse of `put_bit`; the bit comes first."""
    bound = (span >> HALF_WORD) * np.uint64(table[slot] >> np.uint32(16) | np.uint32(1))
    bit = ZERO - np.uint64(code < bound)
    learn(table, slot, bit, limit)
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


@lean
def num_bits(span: np.uint64, place: int) -> float:
    """Bits coded so far."""
    return 32.0 * place + 64.0 - np.log2(float(span))
