"""Fit factors to what training added to a matrix, by subspace iteration over what changed.

The method is that of Halko, Martinsson and Tropp, "Finding structure with randomness", 2011,
algorithm 4.4, without a basis between the passes: two of them lose no precision that matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType, exponent_place
from trimtab.elements.range_coder import ALL, ONE, inlined, lean
from trimtab.elements.simd import FITTED, add_scaled, num_ones, trailing_zeros
from trimtab.elements.update_kernels import I32, changes, place_of

NUM_FITTED = 512
"""About how many changed elements of each column factors are fitted to."""

MOST_FITTED = 1 << 22
"""Changed elements that factors are fitted to at most, about: each takes 8 bytes."""

NUM_PASSES = 2
"""Passes of subspace iteration over them."""

BLOCK = 1 << 20
"""About how many elements of a matrix are read at a time."""

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


def place_in(dtype: DType) -> Place:
    """All bits of an element, its sign (or 0), and where its exponent is: shift and field."""
    width = 8 * dtype.num_bytes
    full, sign = (1 << width) - 1, 1 << (width - 1) if dtype.is_float else 0
    shift, field = exponent_place(dtype)
    return np.uint64(full), np.uint64(sign), np.uint64(shift), np.uint64(field)


def fit(
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
    wanted = min(NUM_FITTED * columns, MOST_FITTED)
    every = max(1, min(total // wanted, rows // (2 * FITTED)))
    ends = np.cumsum(num_changed[::every])
    size = int(ends[-1])
    which, values = np.empty(size, np.int32), np.empty(size, np.float32)
    place = place_in(dtype)
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
