"""The counts of `trimtab.elements.bit_sums`, compiled with Numba.

Bits are taken 64 at a time, wherever the row begins, and those that are set are found by counting
trailing zeros: the time is that of the set bits, of which a mask has few.

Import this module only when there is much to count: it loads Numba and, once per machine,
compiles. The kernels release the GIL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.bit_sums import Bins, Counts, slabs
from trimtab.elements.kernels import compiled
from trimtab.elements.lanes import num_ones, trailing_zeros

__all__ = ["compiled_bit_sums", "compiled_count_bins", "compiled_count_by_bin"]


@compiled()
def _add_bits(
    words: NDArray[np.uint64],
    first_bit: int,
    num_columns: int,
    by_row: Counts,
    by_column: Counts,
) -> None:
    """Add the bits of neighbouring rows, of which the first begins at a bit of `words`.

    There is one word more than the bits need, for reading across the end of one.
    """
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
    """See `trimtab.elements.bit_sums.count_bins`."""
    for row in range(bins.shape[0]):
        for column in range(bins.shape[1]):
            counts[np.intp(selected[row, column]), bins[row, column]] += 1


@compiled()
def compiled_count_by_bin(
    bins: Bins, place: NDArray[np.int64], by_row: NDArray[np.int32], by_column: NDArray[np.int32]
) -> None:
    """See `trimtab.elements.bit_sums.count_by_bin`."""
    for row in range(bins.shape[0]):
        for column in range(bins.shape[1]):
            at = place[bins[row, column]]
            by_row[row, at] += 1
            by_column[column, at] += 1


def compiled_bit_sums(
    bits: NDArray[np.uint8], num_columns: int, rows: range, columns: range
) -> tuple[Counts, Counts]:
    """See `trimtab.elements.bit_sums.bit_sums`."""
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
