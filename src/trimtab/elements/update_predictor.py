"""Predict an update of a matrix by small integers: factors of its rows and of its columns.

What training adds to a matrix has few directions, and rounding scatters it. The products of the
factors say where changes are likely, how large, and which way; the coder of updates takes that as
context. Fitting them (`trimtab.elements.update_fit`) uses floating-point numbers; what is sent, and
what both sides compute from it, are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType, exponent_bins, exponent_place, num_exponent_bins
from trimtab.elements.range_coder import (
    ALL,
    ONE,
    ROW,
    U16,
    U32,
    WORD,
    ZERO,
    finish,
    get_digits,
    get_symbol,
    lean,
    put_digits,
    put_symbol,
)
from trimtab.elements.simd import PREDICTED, trailing_zeros
from trimtab.elements.update_fit import Readable, fit, place_in
from trimtab.elements.update_kernels import (
    BINS,
    ESCAPE,
    I8,
    I32,
    SEGMENT,
    U8,
    block_masks,
    changes,
    how_far,
    moves_down,
    predict,
)
from trimtab.errors import CheckpointError

RANKS = (1, 2, 4, 8, 16)
"""Numbers of factors that are tried."""

MAX_RANK = RANKS[-1]
"""Largest rank of a predictor, unless another one is asked for."""

MOST_WEIGHT = 255
"""Largest weight of a factor: predictions stay below 2^27."""

REACH = 2.2
"""Predictions of so many times their standard deviation have the highest level."""

SAMPLE = 1 << 15
"""About how many elements decide how many factors there are, and what is cold."""

COLD = 0.03
"""Exponents above the last one of which more than this share changed are cold."""

MARGIN = 0.95
"""Estimates favour predictors by some per cent: one is sent only if it seems to save 5 %."""

LEARNING = 2
"""What learning was measured to take, in units of half a bit for each bit of a count."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """What predicts an update of a matrix.

    Attributes:
        coded: Its frame.
        weights: Sizes of the factors, 1 to 255, int32.
        left: Weighted factors of the rows, int32, (rows, rank).
        right: Factors of the columns, int8, (rank, columns and `PREDICTED` zeros).
        shift: Bits of a prediction below its level, of which there are 16.
    """

    coded: bytes
    weights: NDArray[np.int32]
    left: NDArray[np.int32]
    right: NDArray[np.int8]
    shift: int

    @property
    def rank(self) -> int:
        """Number of factors."""
        return self.right.shape[0]


NO_PREDICTOR = Predictor(
    b"", np.zeros(0, np.int32), np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int8), 0
)


def read_predictor(frame: bytes, shape: tuple[int, ...]) -> Predictor:
    """The predictor in the first frame of a tensor.

    Raises:
        CheckpointError: It is not one for a tensor of this shape.
    """
    if not frame:
        return NO_PREDICTOR
    rank, (rows, columns) = frame[0], _matrix_shape(shape)
    start = 2 + rank
    is_whole = len(frame) >= start + 4 and (len(frame) - start) % 4 == 0
    if rank in RANKS and _is_small(rank, rows, columns) and is_whole and frame[1] < 32:
        weights = np.frombuffer(frame, np.uint8, rank, 2).astype(np.int32)
        words = np.frombuffer(frame, "<u4", offset=start).astype(np.uint32)
        factors = np.empty((rank, rows + columns), np.int8)
        if decode_factors(words, *_factor_tables(rank), factors):
            return _predictor(frame, factors, rows, weights, frame[1])
    raise CheckpointError(
        f"a predictor of {len(frame)} bytes does not fit a tensor of shape {list(shape)}: "
        "the file is damaged, or of another tensor"
    )


def best_predictor(
    base: Readable,
    tuned: Readable,
    shape: tuple[int, ...],
    dtype: DType,
    max_rank: int,
    num_chunks: int,
) -> Predictor:
    """The predictor with which a sample of rows becomes smallest.

    Args:
        base: The tensor before training.
        tuned: The tensor after it.
        shape: Its shape: all axes but the last are rows.
        dtype: What the bits mean.
        max_rank: Its largest rank.
        num_chunks: How often probabilities are learned from nothing.
    """
    rows, columns = _matrix_shape(shape)
    ranks = [rank for rank in RANKS if rank <= max_rank and _is_small(rank, rows, columns)]
    if not ranks or not dtype.is_float or dtype.num_bytes > 4:
        return NO_PREDICTOR
    fitted = fit(base, tuned, dtype, rows, columns)
    if fitted is None:
        return NO_PREDICTOR
    left, right = (matrix[:, : ranks[-1]] for matrix in fitted)
    sizes = np.sqrt(np.einsum("ij,ij->j", left, left, dtype=np.float64))
    sizes[sizes == 0] = 1
    factors = np.empty((ranks[-1], rows + columns), np.int8)
    factors[:, :rows] = _in_steps(left * (np.sqrt(rows) / sizes)).T
    factors[:, rows:] = _in_steps(right * np.sqrt(columns)).T
    every = max(1, rows // max(16, SAMPLE // columns))
    sample = range(every // 2, rows, every)
    before, after = (
        np.concatenate([tensor.elements(row * columns, (row + 1) * columns) for row in sample])
        for tensor in (base, tuned)
    )
    limits = cold(dtype, last_warm_exponent(before, after, dtype))
    levels = np.zeros(SEGMENT + PREDICTED, np.uint8)
    place = place_in(dtype)
    num_exponents = int(place[-1]) + 1
    counts = (
        np.zeros((num_exponents, BINS, 2), np.uint32),
        np.zeros((1, 16, 2), np.uint32),
        np.zeros((num_exponents, BINS, 16), np.uint32),
    )
    frequencies = np.bincount(factors.reshape(-1).view(np.uint8)).astype(np.uint32)
    bytes_each = entropy(frequencies[None])[0] / factors.size / 8

    def size(predictor: Predictor) -> float:
        left = predictor.left[sample.start :: every].copy()
        right, level = predictor.right, np.int32(predictor.shift)
        bits, learned = cost(before, after, *limits, *place, left, right, level, levels, *counts)
        num_factors = predictor.rank * (rows + columns)
        return (
            num_factors * bytes_each
            + (bits * rows / len(sample) + LEARNING * num_chunks * learned) / 8
        )

    best, least = NO_PREDICTOR, MARGIN * size(NO_PREDICTOR)
    for rank in ranks:
        predictor = _quantised(factors[:rank], rows, sizes[:rank])
        if (its_size := size(predictor)) < least:
            best, least = predictor, its_size
        elif rank > RANKS[0]:
            break
    return _with_frame(best, factors[: best.rank]) if best.rank else best


def last_warm_exponent(before: Bits, after: Bits, dtype: DType) -> int:
    """The largest exponent of which more than `COLD` changed, in a sample; 0 if none."""
    step = max(1, before.size // SAMPLE)
    bins = exponent_bins(before[::step], dtype)
    num = np.bincount(bins, minlength=num_exponent_bins(dtype))
    num_changed = np.bincount(bins[before[::step] != after[::step]], minlength=num.size)
    return int(np.flatnonzero(num_changed > COLD * num).max(initial=0))


def cold(dtype: DType, exponent: int) -> tuple[Any, Any]:
    """Which bits of a cold element are above what, given the last exponent that is not cold."""
    if not dtype.is_float:
        return dtype.bits.type(0), dtype.bits.type(0)
    shift, _ = exponent_place(dtype)
    magnitude = (1 << 8 * dtype.num_bytes - 1) - 1
    return dtype.bits.type(magnitude), dtype.bits.type((exponent << shift) + (1 << shift) - 1)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor: all its axes but the last are one."""
    columns = shape[-1] if len(shape) > 1 else 0
    return int(np.prod(shape[:-1])) if columns else 0, columns


def _is_small(rank: int, rows: int, columns: int) -> bool:
    """Whether factors take less room than half of the elements."""
    return 4 * rank <= min(rows, columns)


def _factor_tables(rank: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    return np.zeros(rank * int(ROW), np.uint16), np.zeros(2 * rank, np.uint16)


def _predictor(
    coded: bytes, factors: NDArray[np.int8], rows: int, weights: NDArray[np.int32], shift: int
) -> Predictor:
    left = np.ascontiguousarray((factors[:, :rows] * weights[:, None]).T)
    right = np.zeros((len(factors), factors.shape[1] - rows + PREDICTED), np.int8)
    right[:, :-PREDICTED] = factors[:, rows:]
    return Predictor(coded, weights, left, right, shift)


def _in_steps(matrix: NDArray[np.float32]) -> NDArray[np.int8]:
    """Numbers whose root mean square is 1, in steps of half of it."""
    return np.clip(np.round(2 * matrix), -127, 127).astype(np.int8)


def _quantised(factors: NDArray[np.int8], rows: int, sizes: NDArray[np.float64]) -> Predictor:
    """A predictor of factors, given their sizes: its weights make levels a shift apart."""
    relative = sizes / sizes.max()
    deviation = MOST_WEIGHT * 4 * float(np.sqrt((relative**2).sum()))
    shift = max(0, int(np.floor(np.log2(REACH * deviation / 15))))
    fine = min(1.0, (15 << shift) / (REACH * deviation))
    weights = np.maximum(1, np.round(MOST_WEIGHT * fine * relative)).astype(np.int32)
    return _predictor(b"", factors, rows, weights, shift)


def _with_frame(predictor: Predictor, factors: NDArray[np.int8]) -> Predictor:
    """The predictor with its frame."""
    rank = predictor.rank
    out = np.empty(factors.size + 8, np.uint32)
    num_words = encode_factors(factors, *_factor_tables(rank), out)
    words = out[:num_words].astype("<u4").tobytes()
    weights = predictor.weights.astype(np.uint8).tobytes()
    return replace(predictor, coded=bytes([rank, predictor.shift]) + weights + words)


@lean
def cost(
    base: Bits,
    tuned: Bits,
    magnitude: int,
    limit: int,
    full: np.uint64,
    sign: np.uint64,
    shift: np.uint64,
    field: np.uint64,
    left: I32,
    right: I8,
    level_shift: np.int32,
    levels: U8,
    flags: NDArray[np.uint32],
    signs: NDArray[np.uint32],
    distances: NDArray[np.uint32],
) -> tuple[float, float]:
    """About how many bits elements take, and how many learning takes.

    These are the entropies of the contexts; learning a number takes half a bit for each bit of
    its context's count. The three arrays are room for counts, and are zeros before and after: of
    flags, (exponents, `BINS`, 2), of signs, (1, 16, 2), and of distances, (exponents, `BINS`, 16).
    """
    least, most = flags.shape[0], 0
    for first in range(0, base.size, SEGMENT):
        last = min(first + SEGMENT, base.size)
        if left.size:
            predict(levels, first, last, left, right, level_shift)
        for at in range(first, last, 64):
            there, cold = block_masks(base, at, magnitude, limit)
            moved = changes(base, tuned, at)
            todo = there & (moved | ~cold)
            while todo:
                k = trailing_zeros(todo)
                todo &= todo - ONE
                i = at + k
                old, level = np.uint64(base[i]), levels[i - first]
                bit = (moved >> np.uint64(k)) & ONE
                exponent, bin_ = int((old >> shift) & field), (level & 15) >> 1
                least, most = min(least, exponent), max(most, exponent)
                flags[exponent, bin_, bit] += np.uint32(1)
                if bit:
                    new = np.uint64(tuned[i])
                    is_down = moves_down(new, old, full, sign) != ZERO
                    signs[0, level & 15, int(is_down != (level >> 7 != 0))] += np.uint32(1)
                    symbol = min(how_far(new, old, full, sign), np.uint64(ESCAPE + 1)) - ONE
                    distances[exponent, bin_, symbol] += np.uint32(1)
    bits, learned = entropy(signs[0])
    signs[:] = 0
    for exponent in range(least, most + 1):
        for counts in (flags, distances):
            its_bits, its_learned = entropy(counts[exponent])
            bits, learned = bits + its_bits, learned + its_learned
            counts[exponent] = 0
    return bits, learned


@lean
def entropy(counts: NDArray[np.uint32]) -> tuple[float, float]:
    """Bits of symbols with these counts, a row for each context, and of learning them."""
    bits = learned = 0.0
    for row in range(counts.shape[0]):
        total = 0.0
        for k in range(counts.shape[1]):
            if counts[row, k]:
                total += counts[row, k]
        if total:
            for k in range(counts.shape[1]):
                if counts[row, k]:
                    bits -= counts[row, k] * np.log2(counts[row, k] / total)
                    learned += 0.5 * np.log2(total)
    return bits, learned


@lean
def encode_factors(factors: I8, table: U16, gaps: U16, out: U32) -> int:
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
def decode_factors(words: U32, table: U16, gaps: U16, factors: I8) -> bool:
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
                factors[k, j] = np.int8(np.int64(digits) - 128)
            else:
                factors[k, j] = np.int8(symbol - ESCAPE // 2)
        if place > words.size + 1:
            return False
    return place == words.size + 1
