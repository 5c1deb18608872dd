"""Code an update of a tensor, given its base: lossless for any bits, NaNs and signed zeros too.

Whether bf16 training moves an element is mostly a question of its exponent, and whoever decodes has
the base. So each element is a binary decision, "did it change?", whose probability is that of the
exponent of its base value, and what changed is a signed distance in steps of the stored dtype,
whose binary digits have probabilities by exponent too. Probabilities are learned while coding, by
encoder and decoder alike, so that none are sent. Nothing is computed in floating point: every
machine decodes the same bits.

The coder is a carry-less binary arithmetic coder of 32 bits (as in M. Mahoney, "Adaptive weighing
of context models for lossless data compression", 2005, sec. 3). The distance is written as its bit
length in unary, then its digits from the top (Elias gamma).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType, exponent_place
from trimtab.elements.simd import compiled
from trimtab.errors import CheckpointError

CHUNK = 1 << 22
"""Elements that are coded together. Chunks are independent of each other."""

SAME, CODED, STORED = 0, 1, 2
"""First byte of a coding: nothing changed; coded as above; the tuned bytes themselves."""

SLOTS = 256
"""Probabilities for each exponent: 64 of the bit length, the sign, 11 + 180 of digits."""

SIGN, DIGITS, LONG = 64, 65, 76
"""Where in the slots of an exponent the sign, the digits of short and of long distances begin."""

COUNT_BITS = np.uint32(10)
"""Low bits of a probability that count what it was learned from; the 22 above are its value."""

FLAG_LIMIT, DIGIT_LIMIT = 60, 500
"""Largest counts: a probability follows the last ones of so many decisions."""

UNSEEN = np.uint32((1 << 21) << 10)
"""One half, learned from nothing."""

RATES = np.array([int(65536 / (count + 1.6)) for count in range(DIGIT_LIMIT + 1)], np.int64)
"""How far a probability moves, in 1 / 65,536 of the way, by what it was learned from before."""

LOW, HIGH, PLACE, VALUE = 0, 1, 2, 3
"""Places in the state of a coder: its interval, the next byte, and what was read of it."""

ONE, EIGHT, SIXTEEN, TOP = np.uint64(1), np.uint64(8), np.uint64(16), np.uint64(0xFF000000)
WORD, BYTE = np.uint64(0xFFFFFFFF), np.uint64(255)


Item = TypeVar("Item")
Result = TypeVar("Result")


def encode_tensor(base: Bits, tuned: Bits, dtype: DType, *, threads: int = 1) -> list[bytes]:
    """Code a tuned tensor, given its base.

    Args:
        base: Bits before training, any shape.
        tuned: Bits after it, of the same shape and dtype.
        dtype: What the bits mean.
        threads: How many chunks are coded at a time. The result does not depend on it.

    Returns:
        Frames: the predictor of the tensor (empty if it has none), then one for each `CHUNK`
        elements, in C order.
    """
    before, after = (np.ascontiguousarray(bits).reshape(-1) for bits in (base, tuned))

    def frame(start: int) -> bytes:
        return encode(before[start : start + CHUNK], after[start : start + CHUNK], dtype)

    return [b"", *_map(frame, range(0, after.size, CHUNK), threads)]


def decode_tensor(base: Bits, frames: Sequence[bytes], dtype: DType, *, threads: int = 1) -> Bits:
    """The inverse of `encode_tensor`: bits of the shape of `base`, which is not changed.

    What is allocated has the size of the base, whatever the frames say. Frames that were altered
    may decode to other bits: hashes of the result show that.

    Raises:
        CheckpointError: They are no frames of a tensor of this size and dtype.
    """
    before = np.ascontiguousarray(base).reshape(-1)
    starts = range(0, before.size, CHUNK)
    if len(frames) != 1 + len(starts) or frames[0]:
        raise CheckpointError(
            f"{len(frames)} frames do not fit a tensor of {before.size} elements, which has "
            f"{1 + len(starts)}: the file is damaged, or of another tensor"
        )
    after = np.empty_like(before)

    def fill(start: int) -> None:
        part = slice(start, start + CHUNK)
        after[part] = decode(before[part], frames[1 + start // CHUNK], dtype)

    _map(fill, starts, threads)
    return after.reshape(base.shape)


def _map(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Apply a function to items, some at a time; the kernels run without the GIL."""
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(threads, len(items))) as pool:
        return list(pool.map(function, items))


def encode(base: Bits, tuned: Bits, dtype: DType) -> bytes:
    """Code the elements of a tuned tensor.

    Args:
        base: Bits before training, any shape.
        tuned: Bits after it, of the same shape and dtype.
        dtype: What the bits mean.

    Returns:
        Never longer than the tuned elements and one byte. It decodes with this base only.
    """
    before, after = (np.ascontiguousarray(bits).reshape(-1) for bits in (base, tuned))
    if np.array_equal(before, after):
        return bytes([SAME])
    out = np.empty(after.nbytes + 64, np.uint8)
    size = _encode(before, after, _kind(dtype), out, after.nbytes, RATES)
    if size < 0:
        return bytes([STORED]) + after.tobytes()
    return bytes([CODED]) + out[:size].tobytes()


def decode(base: Bits, coded: bytes, dtype: DType) -> Bits:
    """The inverse of `encode`. What is allocated has the size of the base, whatever `coded` says.

    A coding that was altered may decode to other bits: hashes of the result show that.

    Raises:
        CheckpointError: It is no coding for a tensor of this size.
    """
    before = np.ascontiguousarray(base).reshape(-1)
    method, content = coded[:1], np.frombuffer(coded, np.uint8, offset=min(1, len(coded)))
    if method == bytes([SAME]) and not content.size:
        return base.copy()
    if method == bytes([STORED]) and content.size == before.nbytes:
        return content.view(before.dtype).reshape(base.shape).copy()
    after = np.empty_like(before)
    if method == bytes([CODED]) and _decode(before, content, _kind(dtype), after, RATES):
        return after.reshape(base.shape)
    raise CheckpointError(
        f"a coded update of {len(coded)} bytes does not fit a tensor of {before.size} elements of "
        f"{dtype.name}: the file is damaged, or of another tensor"
    )


def _kind(dtype: DType) -> NDArray[np.uint64]:
    """What the kernels need of a dtype: all its bits, its sign bit or 0, shift and exponents."""
    width = 8 * dtype.num_bytes
    sign = 1 << (width - 1) if dtype.is_float else 0
    return np.array([(1 << width) - 1, sign, *exponent_place(dtype)], np.uint64)


@compiled()
def _place(bits: np.uint64, kind: NDArray[np.uint64]) -> np.uint64:
    """Place of an element on the line of values: every pattern of bits has its own."""
    if bits & kind[1]:
        return bits ^ kind[0]
    return bits | kind[1]


@compiled()
def _element(place: np.uint64, kind: NDArray[np.uint64]) -> np.uint64:
    """The inverse of `_place`."""
    if kind[1] == 0 or place & kind[1]:
        return place ^ kind[1]
    return place ^ kind[0]


@compiled()
def _new_coder(
    kind: NDArray[np.uint64],
) -> tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.uint32]]:
    """State of a coder, and the probabilities of flags and of digits, of which none is learned."""
    exponents = int(kind[3]) + 1
    state = np.zeros(4, np.uint64)
    state[HIGH] = WORD
    flags = np.full(exponents, UNSEEN, np.uint32)
    return state, flags, np.full(exponents * SLOTS, UNSEEN, np.uint32)


@compiled()
def _middle(state: NDArray[np.uint64], probability: np.uint32) -> np.uint64:
    share = np.uint64(probability >> np.uint32(16))
    share = min(max(share, ONE), np.uint64(65534))
    return state[LOW] + ((state[HIGH] - state[LOW]) >> SIXTEEN) * share


@compiled()
def _learn(
    table: NDArray[np.uint32], slot: int, bit: bool, limit: int, rates: NDArray[np.int64]
) -> None:
    old = table[slot]
    count = old & np.uint32(1023)
    value = np.int64(old >> COUNT_BITS)
    aim = np.int64(4194303) if bit else np.int64(0)
    value += ((aim - value) * rates[count]) >> 16
    if count < limit:
        count += np.uint32(1)
    table[slot] = (np.uint32(value) << COUNT_BITS) | count


@compiled()
def _put_bit(
    state: NDArray[np.uint64], out: NDArray[np.uint8], probability: np.uint32, bit: bool
) -> None:
    middle = _middle(state, probability)
    low, high = state[LOW], state[HIGH]
    if bit:
        high = middle
    else:
        low = middle + ONE
    while (low ^ high) & TOP == 0:
        if state[PLACE] < out.size:
            out[state[PLACE]] = np.uint8(high >> np.uint64(24))
        state[PLACE] += ONE
        low = (low << EIGHT) & WORD
        high = ((high << EIGHT) & WORD) | BYTE
    state[LOW], state[HIGH] = low, high


@compiled()
def _get_bit(state: NDArray[np.uint64], coded: NDArray[np.uint8], probability: np.uint32) -> bool:
    middle = _middle(state, probability)
    low, high, value = state[LOW], state[HIGH], state[VALUE]
    bit = value <= middle
    if bit:
        high = middle
    else:
        low = middle + ONE
    while (low ^ high) & TOP == 0:
        low = (low << EIGHT) & WORD
        high = ((high << EIGHT) & WORD) | BYTE
        byte = np.uint64(coded[state[PLACE]]) if state[PLACE] < coded.size else np.uint64(0)
        state[PLACE] += ONE
        value = ((value << EIGHT) & WORD) | byte
    state[LOW], state[HIGH], state[VALUE] = low, high, value
    return bit


@compiled()
def _put(
    state: NDArray[np.uint64],
    out: NDArray[np.uint8],
    table: NDArray[np.uint32],
    slot: int,
    bit: bool,
    limit: int,
    rates: NDArray[np.int64],
) -> None:
    _put_bit(state, out, table[slot], bit)
    _learn(table, slot, bit, limit, rates)


@compiled()
def _get(
    state: NDArray[np.uint64],
    coded: NDArray[np.uint8],
    table: NDArray[np.uint32],
    slot: int,
    limit: int,
    rates: NDArray[np.int64],
) -> bool:
    bit = _get_bit(state, coded, table[slot])
    _learn(table, slot, bit, limit, rates)
    return bit


@compiled()
def _digit_slot(length: int, digit: int, prefix: int) -> int:
    """Slot of a digit, counted from the lowest, behind the digits `prefix`; below 0 for even odds.

    A distance of `length` + 1 digits has all of them learned up to 15, beyond the two below the
    top one.
    """
    if length <= 3:
        return DIGITS + (1 << length) - 1 - length + prefix - 1
    if digit >= length - 2:
        return LONG + 3 * (length - 4) + prefix - 1
    return -1


@compiled()
def _encode(
    base: Bits,
    tuned: Bits,
    kind: NDArray[np.uint64],
    out: NDArray[np.uint8],
    most: int,
    rates: NDArray[np.int64],
) -> int:
    """Bytes written, or -1 where that would be more than `most`."""
    state, flags, digits = _new_coder(kind)
    for i in range(base.size):
        old, new = np.uint64(base[i]), np.uint64(tuned[i])
        exponent = int((old >> kind[2]) & kind[3])
        _put(state, out, flags, exponent, old != new, FLAG_LIMIT, rates)
        if old == new:
            continue
        if state[PLACE] > most:
            return -1
        distance = (_place(new, kind) - _place(old, kind)) & kind[0]
        is_down = distance > kind[0] >> ONE
        if is_down:
            distance = (kind[0] - distance + ONE) & kind[0]
        # Towards zero or away from it: the two are not alike, up and down are.
        is_inward = is_down != (old & kind[1] != 0)
        first = exponent * SLOTS
        _put(state, out, digits, first + SIGN, is_inward, DIGIT_LIMIT, rates)
        length = 0
        while distance >> np.uint64(length) > ONE:
            _put(state, out, digits, first + length, True, DIGIT_LIMIT, rates)
            length += 1
        _put(state, out, digits, first + length, False, DIGIT_LIMIT, rates)
        prefix = 1
        for digit in range(length - 1, -1, -1):
            bit = (distance >> np.uint64(digit)) & ONE != 0
            slot = _digit_slot(length, digit, prefix)
            if slot < 0:
                _put_bit(state, out, UNSEEN, bit)
            else:
                _put(state, out, digits, first + slot, bit, DIGIT_LIMIT, rates)
            prefix = 2 * prefix + (1 if bit else 0)
    size = int(state[PLACE]) + 4
    if size > most:
        return -1
    for i in range(4):
        out[size - 4 + i] = np.uint8((state[LOW] >> np.uint64(24 - 8 * i)) & BYTE)
    return size


@compiled()
def _decode(
    base: Bits,
    coded: NDArray[np.uint8],
    kind: NDArray[np.uint64],
    tuned: Bits,
    rates: NDArray[np.int64],
) -> bool:
    """Whether the coding is just as long as its elements need."""
    state, flags, digits = _new_coder(kind)
    if coded.size < 4:
        return False
    for i in range(4):
        state[VALUE] = (state[VALUE] << EIGHT) | np.uint64(coded[i])
    state[PLACE] = 4
    for i in range(base.size):
        old = np.uint64(base[i])
        exponent = int((old >> kind[2]) & kind[3])
        if not _get(state, coded, flags, exponent, FLAG_LIMIT, rates):
            tuned[i] = base[i]
            continue
        first = exponent * SLOTS
        is_inward = _get(state, coded, digits, first + SIGN, DIGIT_LIMIT, rates)
        length = 0
        while _get(state, coded, digits, first + length, DIGIT_LIMIT, rates):
            length += 1
            if length > 63:
                return False
        distance, prefix = ONE, 1
        for digit in range(length - 1, -1, -1):
            slot = _digit_slot(length, digit, prefix)
            if slot < 0:
                bit = _get_bit(state, coded, UNSEEN)
            else:
                bit = _get(state, coded, digits, first + slot, DIGIT_LIMIT, rates)
            distance = (distance << ONE) | np.uint64(1 if bit else 0)
            prefix = 2 * prefix + (1 if bit else 0)
        is_down = is_inward != (old & kind[1] != 0)
        place = _place(old, kind)
        place = (place - distance if is_down else place + distance) & kind[0]
        tuned[i] = _element(place, kind)
        if state[PLACE] > coded.size:
            return False
    return state[PLACE] == coded.size
