"""Units of a tensor of a mask: how much each row has, and a random tensor with such rows.

A row is one of the tensor's 2-D view `[prod(shape[:-1]), shape[-1]]`: the weights into one output
of a matrix. A 1-D tensor is one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import xxhash
from numpy.typing import NDArray

from trimtab.masks.packed import PackedTensor, num_packed_bytes, unpacked

__all__ = ["nearest", "random_rows", "row_counts", "scaled_counts"]

CHUNK_ELEMENTS = 1 << 20
"""Elements unpacked or drawn at once, if a row has no more."""


def row_counts(tensor: PackedTensor) -> NDArray[np.int64]:
    """Selected elements of each row.

    Returns:
        int64, of the tensor's shape without its last axis.
    """
    columns = tensor.shape[-1] if tensor.shape else 1
    rows = prod(tensor.shape[:-1])
    counts = np.zeros(rows, dtype=np.int64)
    for start, stop in _blocks(rows, columns):
        block = unpacked(tensor.bits, start * columns, stop * columns)
        counts[start:stop] = block.reshape(stop - start, columns).sum(axis=1, dtype=np.int64)
    return counts.reshape(tensor.shape[:-1])


def nearest(places: NDArray[np.int64], num: int, num_before: int) -> NDArray[np.int64]:
    """For some of `num` units in a row, those of `num_before` at the same relative places.

    Unit i stands where i·(num_before - 1) / (num - 1) is, rounded half up, so that the first and
    the last stay the first and the last; a single unit is the first.

    Args:
        places: Of the units, from 0.
        num: Units in the row.
        num_before: Units in the other row.
    """
    gaps = max(num - 1, 1)
    return (2 * places * (num_before - 1) + gaps) // (2 * gaps)


def scaled_counts(counts: NDArray[np.int64], before: int, after: int) -> NDArray[np.int64]:
    """Counts out of `before` as counts out of `after`, of nearly the same shares.

    The sums of the first 1, 2, 3, … counts are rounded, not the counts: so the shares add up
    to that of the whole within half an element, and each count is less than one from its share.

    Args:
        counts: int64 `[rows]`, each at most `before`.
        before: Elements of a row that they count.
        after: Elements of a row to be counted.
    """
    if not before:
        return np.zeros_like(counts)
    sums = [0, *np.cumsum(counts, dtype=object)]  # Python's integers: the products may be large
    return np.diff([(2 * sum_ * after + before) // (2 * before) for sum_ in sums]).astype(np.int64)


def random_rows(
    shape: tuple[int, ...], counts: NDArray[np.int64], *, seed: int, name: str
) -> PackedTensor:
    """Select an exact number of elements in each row, uniformly at random.

    The elements of a row draw 64 random bits each, and the lowest are selected; raw output of
    NumPy's PCG64, which is the same everywhere.

    Args:
        shape: Of the tensor.
        counts: int64 `[rows]`: how many to select in each row, at most as many as it has.
        seed: Any integer.
        name: Of the tensor. With the seed it decides the draw, whatever is drawn before or after.
    """
    rows, columns = prod(shape[:-1]), shape[-1] if shape else 1
    generator = np.random.PCG64(xxhash.xxh3_128_intdigest(f"{seed}\0{name}".encode()))
    bits = np.zeros(num_packed_bytes(rows * columns), dtype=np.uint8)
    for start, stop in _blocks(rows, columns):
        draws = generator.random_raw((stop - start) * columns).reshape(stop - start, columns)
        order = np.argsort(draws, axis=1, kind="stable")
        selected = np.empty(draws.shape, dtype=np.bool_)
        wins = np.arange(columns) < counts[start:stop, None]
        np.put_along_axis(selected, order, wins, axis=1)
        packed = np.packbits(selected, bitorder="little")
        bits[start * columns // 8 : start * columns // 8 + len(packed)] = packed
    return PackedTensor(shape, bits, int(counts.sum()))


def _blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Rows to do at once: first and last + 1. Every block starts at a byte of the packed bits."""
    height = 8 * max(CHUNK_ELEMENTS // max(8 * columns, 1), 1)
    for start in range(0, rows, height):
        yield start, min(start + height, rows)
