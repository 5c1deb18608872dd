"""A matrix at the resolution of a screen: blocks of elements, and its rows and columns in order."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.bits import Counters
from trimtab.masks.structure.result import ElementMap, Profile

__all__ = ["MOST_BLOCKS", "element_map"]

MOST_BLOCKS = 96
"""Most blocks of a map along either side: 7 or 8 pixels each on a page."""

MOST_GROUPS = 240
"""Most groups of lines in a profile: about 3 pixels each."""

Counts = NDArray[np.int64]


def element_map(
    name: str,
    shape: tuple[int, int],
    bits: NDArray[np.uint8],
    lines: tuple[Counts, Counts],
    control_lines: tuple[Counts, Counts],
    counters: Counters,
) -> ElementMap:
    """Draw a matrix together.

    Args:
        name: Of the tensor.
        shape: Of its 2-D view.
        bits: Its packed bits.
        lines: Selected elements of its rows, and of its columns.
        control_lines: The same of the random control.
        counters: Do the counting.
    """
    row_edges, column_edges = (_edges(size, MOST_BLOCKS) for size in shape)
    counts = []
    for start, stop in pairwise(row_edges):
        _, by_column = counters.bit_sums(bits, shape[1], range(start, stop), range(shape[1]))
        counts.append(tuple(np.add.reduceat(by_column, column_edges[:-1]).tolist()))
    return ElementMap(
        name=name,
        shape=shape,
        num_selected=int(lines[0].sum()),
        row_edges=tuple(row_edges),
        column_edges=tuple(column_edges),
        counts=tuple(counts),
        rows=_profile(lines[0], control_lines[0], shape[1]),
        columns=_profile(lines[1], control_lines[1], shape[0]),
    )


def _profile(counts: Counts, control: Counts, line_length: int) -> Profile:
    starts = _edges(len(counts), MOST_GROUPS)[:-1]
    return Profile(
        starts=tuple(starts),
        line_length=line_length,
        lowest=tuple(np.minimum.reduceat(counts, starts).tolist()),
        highest=tuple(np.maximum.reduceat(counts, starts).tolist()),
        control_lowest=tuple(np.minimum.reduceat(control, starts).tolist()),
        control_highest=tuple(np.maximum.reduceat(control, starts).tolist()),
    )


def _edges(size: int, most: int) -> list[int]:
    """Where blocks of one size begin, and the end; the last may be smaller."""
    return [*range(0, size, -(-size // most)), size]
