"""Predict an update of a matrix by small integers: factors of its rows and of its columns.

What training adds to a matrix has few directions, and rounding scatters it. The products of the
factors say where changes are likely, how large, and which way; the coder of updates takes that as
context. Factors are fitted by subspace iteration (Halko, Martinsson and Tropp, "Finding structure
with randomness", 2011, algorithm 4.4) to the elements that changed, of some rows. That uses
floating-point numbers; what is sent, and what both sides compute from it, are integers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

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
    inlined,
    lean,
    put_digits,
    put_symbol,
)
from trimtab.elements.simd import FITTED, PREDICTED, add_scaled, num_ones, trailing_zeros
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
    place_of,
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

NUM_FITTED = 256
"""About how many changed elements of each column factors are fitted to."""

NUM_PASSES = 2
"""Passes of subspace iteration over them."""

SAMPLE = 1 << 15
"""About how many elements decide how many factors there are, and what is cold."""

COLD = 0.03
"""Exponents above the last one of which more than this share changed are cold."""

BLOCK = 1 << 20
"""About how many elements of a matrix are read at a time."""

LEARNING = 2
"""What learning was measured to take, in units of half a bit for each bit of a count."""

F32: TypeAlias = NDArray[np.float32]
Place: TypeAlias = tuple[np.uint64, np.uint64, np.uint64, np.uint64]


class Readable(Protocol):
    """A tensor that is read a part at a time: from a file, or by decoding."""

    def elements(self, start: int, stop: int) -> Bits:
        """A vector of its elements from `start` to `stop`, in C order."""


@dataclass(frozen=True, eq=False)
class InMemory:
    """A tensor that is in memory."""

    bits: Bits

    def elements(self, start: int, stop: int) -> Bits:
        """A view of its elements from `start` to `stop`, in C order."""
        return self.bits.reshape(-1)[start:stop]


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
    fitted = _fit(base, tuned, dtype, rows, columns)
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
    place = _place(dtype)
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

    best, least = NO_PREDICTOR, size(NO_PREDICTOR)
    for rank in ranks:
        predictor = _quantised(factors[:rank], rows, sizes[:rank])
        if (its_size := size(predictor)) < least:
            best, least = predictor, its_size
        elif rank > RANKS[0]:
            break
    return _with_frame(best, factors[: best.rank]) if best.rank else best


def _place(dtype: DType) -> Place:
    """All bits of an element, its sign, and where its exponent is: shift and field."""
    full, sign = (1 << 8 * dtype.num_bytes) - 1, 1 << 8 * dtype.num_bytes - 1
    shift, field = exponent_place(dtype)
    return np.uint64(full), np.uint64(sign), np.uint64(shift), np.uint64(field)


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


def _in_steps(matrix: F32) -> NDArray[np.int8]:
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


def _fit(
    base: Readable, tuned: Readable, dtype: DType, rows: int, columns: int
) -> tuple[F32, F32] | None:
    """Left and right singular vectors, the left ones times their values, of what training added.

    Steps are cut off at twice the median of those that show, because few of them are much
    larger: weights that were nearly zero show steps of any size.
    """
    height = max(1, BLOCK // columns)
    starts = range(0, rows, height)

    def block(row: int) -> tuple[Bits, Bits]:
        part = row * columns, min(row + height, rows) * columns
        return base.elements(*part), tuned.elements(*part)

    num_changed = np.empty(rows, np.int64)
    for row in starts:
        count_changed(*block(row), columns, num_changed[row : row + height])
    if (total := int(num_changed.sum())) < 64:
        return None
    every = max(1, min(total // (NUM_FITTED * columns), rows // (2 * FITTED)))
    ends = np.cumsum(num_changed[::every])
    size = int(ends[-1])
    which, values = np.empty(size, np.int32), np.empty(size, np.float32)
    place = _place(dtype)
    field = int(place[-1])
    ulps = np.ldexp(np.float32(1), np.clip(np.arange(field + 1), 1, field - 1) - field // 2)
    if dtype.num_bytes > 1:
        ulps[-1] = 0
    num = 0
    for row in starts:
        num = gather(*block(row), columns, -row % every, every, ulps, *place, which, values, num)
    shown = np.abs(values[:: max(1, size // 4096)])
    typical = float(np.median(shown[shown > 0])) if shown.any() else 0.0
    if not 0 < typical < np.inf:
        return None
    with np.errstate(over="ignore"):
        ulps /= np.float32(typical)
    values = np.clip(values, -2 * typical, 2 * typical) / np.float32(typical)
    random = np.random.default_rng(0)
    right = random.standard_normal((columns, FITTED), np.float32)
    for _ in range(NUM_PASSES):
        turned = np.zeros_like(right)
        iterate(which, values, ends, right, np.zeros(2 * FITTED, np.float32), turned)
        right = turned / np.float32(np.abs(turned).max() + 1e-30)
    right = _orthonormal(right)
    left = np.zeros((rows, FITTED), np.float32)
    for row in starts:
        project(*block(row), columns, ulps, *place, right, left[row : row + height])
    turn = np.linalg.eigh(gram(left))[1][:, ::-1]
    return _turned(left, turn), _turned(right, turn)


def _orthonormal(matrix: F32) -> F32:
    """An orthonormal basis of the columns of a matrix, by its Gram matrix."""
    sizes, turn = np.linalg.eigh(gram(matrix))  # columns are nearly parallel after some passes
    return _turned(matrix, turn / np.sqrt(np.maximum(sizes, 1e-12 * sizes[-1] + 1e-30)))


def _turned(matrix: F32, turn: NDArray[np.float64]) -> F32:
    """The product of a matrix and a small square one."""
    result = np.zeros_like(matrix)
    multiply(matrix, np.ascontiguousarray(turn, np.float32), result)
    return result


@lean
def multiply(matrix: F32, turn: F32, result: F32) -> None:
    """Add to `result` the product of a matrix and a small one.

    A library of linear algebra would do it with all cores, beside threads that code.
    """
    for row in range(matrix.shape[0]):
        for k in range(FITTED):
            add_scaled(result, row * FITTED, turn, k * FITTED, matrix[row, k])


def gram(matrix: F32) -> NDArray[np.float64]:
    """The products of the columns of a matrix with each other."""
    products = np.zeros((FITTED, FITTED))
    add_products(matrix, products)
    return products


@lean
def add_products(matrix: F32, products: NDArray[np.float64]) -> None:
    """Add the products of the columns of a matrix with each other."""
    for row in range(matrix.shape[0]):
        for i in range(FITTED):
            factor = np.float64(matrix[row, i])
            for k in range(FITTED):
                products[i, k] += factor * np.float64(matrix[row, k])


@lean
def count_changed(base: Bits, tuned: Bits, columns: int, num_changed: NDArray[np.int64]) -> None:
    """How many elements of each row changed."""
    for row in range(num_changed.size):
        num, stop = 0, (row + 1) * columns
        for at in range(row * columns, stop, 64):
            num += num_ones(changes(base, tuned, at) & below(stop - at))
        num_changed[row] = num


@inlined
def below(num: int) -> np.uint64:
    """The lowest bits, up to 64."""
    return ALL if num >= 64 else (ONE << np.uint64(num)) - ONE


@inlined
def added(
    base: Bits,
    tuned: Bits,
    at: int,
    ulps: F32,
    full: np.uint64,
    sign: np.uint64,
    shift: np.uint64,
    field: np.uint64,
) -> np.float32:
    """What training added to an element: steps times their size, given by exponent."""
    old, new = np.uint64(base[at]), np.uint64(tuned[at])
    step = (place_of(new, full, sign) - place_of(old, full, sign)) & full
    steps = np.int64(step ^ sign) - np.int64(sign)  # as a signed number of this width
    return np.float32(steps) * ulps[(old >> shift) & field]


@lean
def gather(
    base: Bits,
    tuned: Bits,
    columns: int,
    first: int,
    every: int,
    ulps: F32,
    full: np.uint64,
    sign: np.uint64,
    shift: np.uint64,
    field: np.uint64,
    which: I32,
    values: F32,
    num: int,
) -> int:
    """Add to a list of `num` what changed in every so many rows: columns and what was added.

    Returns:
        How many there are now.
    """
    for start in range(first * columns, base.size, every * columns):
        for at in range(start, start + columns, 64):
            todo = changes(base, tuned, at) & below(start + columns - at)
            while todo:
                i = at + trailing_zeros(todo)
                todo &= todo - ONE
                which[num] = i - start
                values[num] = added(base, tuned, i, ulps, full, sign, shift, field)
                num += 1
    return num


@lean
def iterate(
    which: I32, values: F32, ends: NDArray[np.int64], right: F32, row: F32, turned: F32
) -> None:
    """Add to `turned` the product of a matrix's transpose, the matrix, and `right`.

    The matrix has few elements that are not zero: they are listed row by row, up to `ends`. `row`
    is room for two rows of `right`.
    """
    start = 0
    for end in ends:
        row[:] = 0
        for j in range(start, end):
            add_scaled(row, (j & 1) * FITTED, right, which[j] * FITTED, values[j])
        for k in range(FITTED):
            row[k] += row[FITTED + k]
        for j in range(start, end):
            add_scaled(turned, which[j] * FITTED, row, 0, values[j])
        start = end


@lean
def project(
    base: Bits,
    tuned: Bits,
    columns: int,
    ulps: F32,
    full: np.uint64,
    sign: np.uint64,
    shift: np.uint64,
    field: np.uint64,
    right: F32,
    left: F32,
) -> None:
    """Add to `left` the product of what training added, cut off at 2, and `right`."""
    row, start = 0, 0
    for at in range(0, base.size, 64):
        todo = changes(base, tuned, at)
        while todo:
            i = at + trailing_zeros(todo)
            todo &= todo - ONE
            while i >= start + columns:
                row, start = row + 1, start + columns
            value = added(base, tuned, i, ulps, full, sign, shift, field)
            value = min(max(value, np.float32(-2)), np.float32(2))
            add_scaled(left, row * FITTED, right, (i - start) * FITTED, value)


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
    scale: np.int32,
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
            predict(levels, first, last, left, right, scale)
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
