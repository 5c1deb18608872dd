"""One tensor of some masks: how many elements each row, each column and each unit has selected.

What chance would select is told by two nulls: as many as the tensor has, anywhere in it; and, where
the base is at hand, as many as the tensor has of each exponent of the base weights. A fused tensor
counts as its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import StoredTensor, TensorPart, parts_of
from trimtab.checkpoints.stream import Chunk, Source, chunks_of, new_buffer, overlaps
from trimtab.elements.bits import Counters
from trimtab.elements.dtypes import exponent_bins, num_exponent_bins
from trimtab.masks.packed import unpacked
from trimtab.masks.structure.chance import Moments, hypergeometric
from trimtab.masks.structure.units import Axis, Belonging

__all__ = ["BaseCounts", "PartCounts", "TensorCounts", "Units", "count_base", "count_tensor"]

Counts = NDArray[np.int64]
Packed = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class BaseCounts:
    """The elements of a part of a tensor by the exponent of their base weight.

    Only exponents that occur have a place.

    Attributes:
        exponents: Which exponents there are, ascending.
        sizes: Elements of each exponent.
        selected: How many of them each mask selects, `[masks, exponents]`.
        by_row: Elements of each row, `[rows, exponents]`.
        by_column: Elements of each column, `[columns, exponents]`.
    """

    exponents: Counts
    sizes: Counts
    selected: Counts
    by_row: NDArray[np.int32]
    by_column: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class PartCounts:
    """A tensor, or a part of a fused one.

    Attributes:
        part: What it is, and where it lies.
        rows: Selected elements of each row, `[2 · masks, rows]`: of the masks, then of their
            controls.
        columns: The same of each column.
        base: By exponent, where the base is known.
    """

    part: TensorPart
    rows: Counts
    columns: Counts
    base: BaseCounts | None

    @property
    def num_elements(self) -> int:
        """Elements of the part."""
        return self.part.num_rows * self.part.num_columns

    @property
    def selected(self) -> Counts:
        """Selected elements, `[2 · masks]`."""
        return self.rows.sum(axis=1, dtype=np.int64)

    def lines(self, axis: Axis) -> Counts:
        """Selected elements of each row or of each column, `[2 · masks, lines]`."""
        return self.rows if axis == "rows" else self.columns

    def line_length(self, axis: Axis) -> int:
        """Elements of a row or of a column."""
        return self.part.num_columns if axis == "rows" else self.part.num_rows

    def null(self, of_unit: Counts, place: int) -> Moments:
        """What chance selects of units of this part, of so many elements.

        Args:
            of_unit: Elements of each unit, `[units]`.
            place: Of the mask or the control. A control has as many elements in each tensor as its
                mask, but not in each part of a fused one.
        """
        size = np.array([self.num_elements], dtype=np.int64)
        return hypergeometric(of_unit[:, None], size, self.selected[place : place + 1])

    def matched(self, axis: Axis, place: int) -> Moments | None:
        """What chance selects of each line where exponents count too; None without base."""
        if self.base is None:
            return None
        by_line = self.base.by_row if axis == "rows" else self.base.by_column
        return hypergeometric(by_line, self.base.sizes, self.base.selected[place])

    def units(self, belonging: Belonging) -> Units:
        """Gather the lines of one axis into units."""
        counts, length = self.lines(belonging.axis), self.line_length(belonging.axis)
        unit = np.arange(counts.shape[1]) // belonging.width % belonging.num_units
        num, half = belonging.num_units, len(counts) // 2
        elements = length * np.bincount(unit, minlength=num).astype(np.int64)
        selected = np.stack([_summed(row, unit, num) for row in counts])
        matched = None
        if self.base is not None:
            by_line = self.base.by_row if belonging.axis == "rows" else self.base.by_column
            by_unit = np.stack([_summed(column, unit, num) for column in by_line.T], axis=1)
            matched = [
                hypergeometric(by_unit, self.base.sizes, self.base.selected[place])
                for place in range(half)
            ]
        nulls = [self.null(elements, place) for place in range(2 * half)]
        return Units(belonging.family, belonging.layer, elements, selected, nulls, matched)


@dataclass(frozen=True, eq=False)
class Units:
    """What a part of a tensor has of the units of a family in a layer.

    Attributes:
        family: Key of `FAMILIES`.
        layer: Of the units, or None.
        elements: Of each unit.
        selected: `[2 · masks, units]`: of the masks, then of their controls.
        nulls: What chance selects: for each of the masks, then for each of their controls.
        matched: For each mask, where the exponents of the base count too; None without base.
    """

    family: str
    layer: int | None
    elements: Counts
    selected: Counts
    nulls: Sequence[Moments]
    matched: Sequence[Moments] | None


TensorCounts = tuple[PartCounts, ...]
"""The parts of a tensor."""


def count_tensor(
    name: str,
    shape: tuple[int, ...],
    packed: Sequence[Packed],
    config: Mapping[str, Any],
    counters: Counters,
    stored: StoredTensor | None,
) -> tuple[TensorCounts, str | None]:
    """Count the rows and the columns of all parts of a tensor.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        packed: Its bits in each of the masks, then in each of their controls.
        config: Of the checkpoint, or empty.
        counters: Do the work.
        stored: The tensor in the base, or None.

    Returns:
        Its parts, and the xxh3-128 of the stored bytes.
    """
    parts = parts_of(name, shape, config)
    masks = packed[: len(packed) // 2]
    by_exponent: Sequence[BaseCounts | None] = [None] * len(parts)
    digest = None
    if stored is not None:
        by_exponent, digest = count_base(stored, parts, masks, counters)
    num_columns = shape[-1] if shape else 1
    counted = []
    for part, base in zip(parts, by_exponent, strict=True):
        sums = [_part_sums(part, bits, num_columns, counters) for bits in packed]
        rows, columns = (np.stack(lines) for lines in zip(*sums, strict=True))
        counted.append(PartCounts(part, rows, columns, base))
    return tuple(counted), digest


def count_base(
    stored: StoredTensor,
    parts: Sequence[TensorPart],
    masks: Sequence[Packed],
    counters: Counters,
) -> tuple[list[BaseCounts], str]:
    """Count the elements of a tensor by the exponent of their base weight, in two passes.

    The first finds which exponents there are, so that the second need not keep a count of each of
    256 for every row.

    Returns:
        The counts of each part, and the xxh3-128 of the stored bytes.
    """
    num_bins = num_exponent_bins(stored.dtype)
    counts = np.zeros((len(parts), len(masks), 2, num_bins), dtype=np.int64)
    source = Source(stored, stored.dtype, None, new_buffer())
    for chunk in chunks_of(stored.shape):
        bins = exponent_bins(source.read(chunk), stored.dtype)
        inside = [_selected(bits, stored.shape, chunk) for bits in masks]
        for at_part, part in enumerate(parts):
            for at, _, _ in overlaps(part.rectangles, chunk):
                for of_mask, into in zip(inside, counts[at_part], strict=True):
                    counters.count_bins(bins[at], of_mask[at], into)
    digest = source.finish()
    sizes, selected = counts[:, 0].sum(axis=1), counts[:, :, 1]
    used = [np.flatnonzero(of_part) for of_part in sizes]
    lines = [
        [np.zeros((num, len(bins)), dtype=np.int32) for num in (part.num_rows, part.num_columns)]
        for part, bins in zip(parts, used, strict=True)
    ]
    for chunk, bins in _exponents_again(stored):
        for part, of_part, (by_row, by_column) in zip(parts, used, lines, strict=True):
            places = np.zeros(num_bins, dtype=np.int64)
            places[of_part] = np.arange(len(of_part))
            for at, row, column in overlaps(part.rectangles, chunk):
                inner = bins[at]
                height, width = inner.shape
                counters.count_by_bin(
                    inner, places, by_row[row : row + height], by_column[column : column + width]
                )
    return [
        BaseCounts(bins, sizes[at][bins], selected[at][:, bins], *lines[at])
        for at, bins in enumerate(used)
    ], digest


def _exponents_again(stored: StoredTensor) -> Iterator[tuple[Chunk, NDArray[np.uint16]]]:
    buffer = new_buffer()
    position = 0
    for chunk in chunks_of(stored.shape):
        held = buffer[: chunk.num_rows * chunk.num_columns * stored.dtype.num_bytes]
        stored.read_into(position, held)
        position += len(held)
        bits = held.view(stored.dtype.bits).reshape(chunk.num_rows, chunk.num_columns)
        yield chunk, exponent_bins(bits, stored.dtype)


def _selected(bits: Packed, shape: tuple[int, ...], chunk: Chunk) -> NDArray[np.bool_]:
    columns = shape[-1] if shape else 1
    start = chunk.row * columns + chunk.column
    flat = unpacked(bits, start, start + chunk.num_rows * chunk.num_columns)
    return flat.reshape(chunk.num_rows, chunk.num_columns)


def _part_sums(
    part: TensorPart, bits: Packed, num_columns: int, counters: Counters
) -> tuple[Counts, Counts]:
    """Set bits by row and by column of a part, whose rectangles stand one below the other."""
    by_row = []
    by_column = np.zeros(part.num_columns, dtype=np.int64)
    for r in part.rectangles:
        rows, columns = range(r.row_start, r.row_stop), range(r.column_start, r.column_stop)
        of_rows, of_columns = counters.bit_sums(bits, num_columns, rows, columns)
        by_row.append(of_rows)
        by_column += of_columns
    return np.concatenate(by_row), by_column


def _summed(counts: NDArray[np.integer], unit: NDArray[np.int64], num_units: int) -> Counts:
    """Sums of counts by unit; exact below 2**53."""
    return np.bincount(unit, weights=counts, minlength=num_units).astype(np.int64)
