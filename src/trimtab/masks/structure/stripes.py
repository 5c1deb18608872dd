"""Whether the rows, or the columns, of a matrix differ more than chance: stripes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.masks.structure.chance import Moments, z_scores
from trimtab.masks.structure.families import from_magnitude, spread
from trimtab.masks.structure.result import AxisStructure, TensorStructure
from trimtab.masks.structure.tensors import PartCounts
from trimtab.masks.structure.units import Axis

__all__ = ["stripes_of"]


def stripes_of(
    name: str, shape: tuple[int, ...], counts: PartCounts, place: int
) -> TensorStructure:
    """How far the rows and the columns of a matrix, or of a part of it, differ.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        counts: Of the part.
        place: Of the mask.
    """
    part = counts.part
    axes: tuple[Axis, Axis] = ("rows", "columns")
    rows, columns = (_axis(counts, axis, place) for axis in axes)
    return TensorStructure(
        name=part.name_in(name),
        layer=part.layer,
        kind=part.kind,
        shape=part.shape_in(shape),
        num_selected=int(counts.selected[place]),
        rows=rows,
        columns=columns,
    )


def _axis(counts: PartCounts, axis: Axis, place: int) -> AxisStructure:
    lines = counts.lines(axis)
    at_control = len(lines) // 2 + place
    length = np.full(lines.shape[1], counts.line_length(axis), dtype=np.int64)
    null = counts.null(length, place)
    matched = counts.matched(axis, place)
    return AxisStructure(
        num_lines=lines.shape[1],
        dispersion=_dispersion(lines[place], null),
        spread=spread(lines[place], null),
        control=_dispersion(lines[at_control], counts.null(length, at_control)),
        matched=None if matched is None else _dispersion(lines[place], matched),
        matched_spread=None if matched is None else spread(lines[place], matched),
        from_magnitude=from_magnitude(null, matched),
    )


def _dispersion(counts: NDArray[np.int64], chance: Moments) -> float | None:
    z = z_scores(counts, chance)
    z = z[~np.isnan(z)]
    return float(np.mean(z**2)) if len(z) else None
