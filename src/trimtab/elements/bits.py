"""Count the set bits in each row and column of a packed matrix, and elements by bin.

Bits are stored as in `trimtab.masks.packed`: element `i` in C order is bit `i % 8` of byte `i //
8`.
Rows need not start at a whole byte. These functions are the reference; the compiled ones are in
`trimtab.elements.set_kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SLAB_ELEMENTS = 1 << 20
"""Elements unpacked at once, or one row if that has more."""

Counts = NDArray[np.int64]
Bins = NDArray[np.uint16]


class Counters(NamedTuple):
    """The functions below, or their compiled equivalents."""

    bit_sums: Callable[[NDArray[np.uint8], int, range, range], tuple[Counts, Counts]]
    count_bins: Callable[[Bins, NDArray[np.bool_], Counts], None]
    count_by_bin: Callable[
        [Bins, NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]],
        None,
    ]


def bit_sums(
    bits: NDArray[np.uint8], num_columns: int, rows: range, columns: range
) -> tuple[Counts, Counts]:
    """Count the set bits in each row and each column of a rectangle.

    Args:
        bits: The packed matrix, from its first element on.
        num_columns: Columns of the matrix.
        rows: Neighbouring rows of the rectangle.
        columns: Its neighbouring columns.

    Returns:
        Set bits by row, `[len(rows)]`, and by column, `[len(columns)]`.
    """
    by_row = np.zeros(len(rows), dtype=np.int64)
    by_column = np.zeros(len(columns), dtype=np.int64)
    for first, last in slabs(rows, num_columns):
        start, stop = first * num_columns, last * num_columns
        held = np.unpackbits(bits[start // 8 : -(-stop // 8)], bitorder="little")
        slab = held[start % 8 :][: stop - start].reshape(last - first, num_columns)
        inside = slab[:, columns.start : columns.stop]
        by_row[first - rows.start : last - rows.start] = inside.sum(axis=1, dtype=np.int64)
        by_column += inside.sum(axis=0, dtype=np.int64)
    return by_row, by_column


def count_bins(bins: Bins, selected: NDArray[np.bool_], counts: Counts) -> None:
    """Count the elements of each bin, selected ones separately.

    Args:
        bins: Bin of each element, `[rows, columns]`.
        selected: Which are selected, `[rows, columns]`.
        counts: `[2, bins]`: not selected, selected; added to.
    """
    for row, which in zip(counts, (~selected, selected), strict=True):
        row += np.bincount(bins[which], minlength=len(row))


def count_by_bin(
    bins: Bins, slots: NDArray[np.int64], by_row: NDArray[np.int32], by_column: NDArray[np.int32]
) -> None:
    """Count the elements of each row, and of each column, by bin.

    Args:
        bins: Bin of each element, `[rows, columns]`.
        slots: Bin -> its index in the counts; arbitrary for a bin that does not occur.
        by_row: `[rows, slots]`, added to.
        by_column: `[columns, slots]`, added to.
    """
    num_places = by_row.shape[1]
    slot_of = slots[bins]
    for lines, counts in ((slot_of, by_row), (slot_of.T, by_column)):
        flat = (np.arange(len(lines))[:, None] * num_places + lines).ravel()
        counts += np.bincount(flat, minlength=counts.size).reshape(counts.shape).astype(np.int32)


def slabs(rows: range, num_columns: int) -> Iterator[tuple[int, int]]:
    """Split rows into pieces of at most `SLAB_ELEMENTS` elements, or of one row."""
    height = max(1, SLAB_ELEMENTS // max(num_columns, 1))
    for first in range(rows.start, rows.stop, height):
        yield first, min(first + height, rows.stop)
