"""Sections of the page on matrices: stripes by kind, and one matrix in detail."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.masks.structure_result import ElementMap, MaskStructure, Profile
from trimtab.report.blocks import Column, Figure, Key, Section, table
from trimtab.report.charts import nice_ceiling
from trimtab.report.structure_charts import block_map, line_profile, stripe_dots
from trimtab.report.structure_wording import (
    dispersion_text,
    opened,
    spread_text,
    stripes_by_kind,
)
from trimtab.report.wording import named, printable

__all__ = ["one_matrix", "stripes"]

_NUM_ROWS = 12


def stripes(masks: Sequence[tuple[str, MaskStructure]]) -> Section | None:
    """How far the rows and the columns of the matrices of each kind differ."""
    blocks = tuple(_stripes(label, of) for label, of in masks if of.tensors)
    if not blocks:
        return None
    return Section(
        "Rows and columns",
        (
            "A matrix is stored as outputs × inputs: a row makes one output, a column reads one "
            "input. Rows that differ more than chance are stripes across the matrix, columns "
            "stripes down it.",
        ),
        blocks,
    )


def _stripes(label: str, of: MaskStructure) -> Figure:
    kinds = stripes_by_kind(of.tensors)
    has_base = any(tensor.rows.matched is not None for tensor in of.tensors)
    measured = "matched_spread" if has_base else "spread"
    rows: list[dict[str, Any]] = []
    cells = []
    for kind, group in kinds.items():
        for axis in ("rows", "columns"):
            texts = (
                printable(kind),
                axis,
                spread_text(group.spread(axis, measured)),
                spread_text(group.spread(axis)),
                dispersion_text(group.mean(axis, "dispersion")),
                dispersion_text(group.mean(axis, "control")),
            )
            rows.append(
                {
                    "arm": axis,
                    "name": printable(kind),
                    "measured": 100 * (group.spread(axis, measured) or 0.0),
                    "reference": 100 * (group.spread(axis) or 0.0),
                    **{f"tip_{at}": text for at, text in enumerate(texts)},
                }
            )
            cells.append((texts[0], f"{group.num_tensors:,}", *texts[1:]))
    values = [row[field] for row in rows for field in ("measured", "reference")]
    columns: list[Column] = [
        ("kind", "text"),
        ("matrices", "number"),
        ("lines", "text"),
        ("spread, magnitude" if has_base else "spread", "number"),
        ("spread, tensor", "number"),
        ("mean z², tensor", "number"),
        ("of control", "number"),
    ]
    return Figure(
        title=named(label, "Stripes by kind"),
        spec=stripe_dots(
            rows,
            [printable(kind) for kind in kinds],
            highest=nice_ceiling(max(values, default=1.0)),
        ),
        reading=(
            "How far lines are from their expectation beyond chance, one standard deviation, "
            "over the matrices of a kind. The dot is "
            + ("what magnitudes do not explain, " if has_base else "the spread, ")
            + "the tick the spread with as many elements in each tensor. A random mask has about 0."
        ),
        table=table("Rows and columns by kind", columns, cells),
        keys=(
            Key("dot-0", "rows"),
            Key("dot-1", "columns"),
            Key("tick", "as many in each tensor"),
        ),
    )


def one_matrix(masks: Sequence[tuple[str, MaskStructure]]) -> Section | None:
    """The map of a matrix, and its rows and columns in order."""
    blocks = [
        figure for label, of in masks if of.map is not None for figure in _figures(label, of.map)
    ]
    return Section("Inside a matrix", blocks=tuple(blocks)) if blocks else None


def _figures(label: str, matrix: ElementMap) -> list[Figure]:
    num_rows, num_columns = matrix.shape
    return [
        _map(label, matrix),
        _profile(label, matrix, matrix.rows, "rows", num_rows),
        _profile(label, matrix, matrix.columns, "columns", num_columns),
    ]


def _map(label: str, matrix: ElementMap) -> Figure:
    blocks = []
    for at_row, counts in enumerate(matrix.counts):
        top, bottom = matrix.row_edges[at_row : at_row + 2]
        for at_column, num_selected in enumerate(counts):
            left, right = matrix.column_edges[at_column : at_column + 2]
            size = (bottom - top) * (right - left)
            if num_selected and size:
                blocks.append((num_selected / size, num_selected, size, left, right, top, bottom))
    drawn = [
        (
            left,
            top,
            float(f"{100 * share:.3g}"),
            f"{num_selected:,} of {size:,}",
        )
        for share, num_selected, size, left, _, top, _ in blocks
    ]
    blocks.sort(key=lambda block: -block[0])
    strongest = _ceiling([100 * share for share, *_ in blocks])
    return Figure(
        title=named(label, f"Element map of {printable(matrix.name)}"),
        spec=block_map(drawn, matrix.column_edges[:-1], matrix.row_edges[:-1], strongest=strongest),
        reading=(
            f"{matrix.shape[0]:,} × {matrix.shape[1]:,} elements, of which "
            f"{matrix.num_selected:,} are selected, in blocks: the stronger the colour, the larger "
            "the share of a block that is selected. A block without colour has none."
        ),
        table=table(
            "Densest blocks",
            [
                ("rows", "number"),
                ("columns", "number"),
                ("selected", "number"),
                ("share", "number"),
            ],
            [
                (
                    _range(top, bottom),
                    _range(left, right),
                    f"{num_selected:,} of {size:,}",
                    percent(num_selected, size),
                )
                for _, num_selected, size, left, right, top, bottom in blocks
            ],
            limit=_NUM_ROWS,
        ),
        keys=(Key("ramp", "0 %", f"{strongest:g} % of a block"),),
    )


def _ceiling(shares: Sequence[float]) -> float:
    """The share drawn in full colour: 1 block in 200 may be above it, so that the rest is seen."""
    ordered = sorted(shares)
    return nice_ceiling(ordered[int(0.995 * (len(ordered) - 1))]) if ordered else 1.0


def _profile(
    label: str, matrix: ElementMap, profile: Profile, lines: str, num_lines: int
) -> Figure:
    stops = [*profile.starts[1:], num_lines]
    rows = []
    cells = []
    length = profile.line_length
    groups = zip(
        profile.starts,
        stops,
        profile.lowest,
        profile.highest,
        profile.control_lowest,
        profile.control_highest,
        strict=True,
    )
    for start, stop, lowest, highest, control_lowest, control_highest in groups:
        texts = (
            _range(start, stop),
            f"{lowest:,} to {highest:,}",
            f"{control_lowest:,} to {control_highest:,}",
            f"{length:,}",
        )
        rows.append(
            {
                "at": start,
                "lowest": _percentage(lowest, length),
                "highest": _percentage(highest, length),
                "control_lowest": _percentage(control_lowest, length),
                "control_highest": _percentage(control_highest, length),
                **{f"tip_{at}": text for at, text in enumerate(texts)},
            }
        )
        cells.append((highest, texts))
    cells.sort(key=lambda cell: -cell[0])
    return Figure(
        title=named(label, f"{opened(lines)} of {printable(matrix.name)}"),
        spec=line_profile(
            rows,
            lines=lines,
            last=num_lines,
            highest=nice_ceiling(max((row["highest"] for row in rows), default=1.0)),
        ),
        reading=(
            f"From the emptiest to the fullest of neighbouring {lines}, in order, over the same of "
            f"the random control in grey. Peaks and gaps beyond the grey are stripes."
        ),
        table=table(
            f"Groups with the fullest {lines}",
            [
                (lines, "number"),
                ("fewest to most selected", "number"),
                ("of the control", "number"),
                ("elements of a line", "number"),
            ],
            [texts for _, texts in cells],
            limit=_NUM_ROWS,
        ),
        keys=(Key("dot-0", "mask"), Key("dot-ink", "random control")),
    )


def _percentage(num: int, length: int) -> float:
    return round(100 * num / length, 3) if length else 0.0


def _range(start: int, stop: int) -> str:
    """Lines `start` to before `stop`, as they are counted: from 0."""
    return f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"
