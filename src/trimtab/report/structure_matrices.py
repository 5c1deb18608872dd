"""Matrices in the report of masks' structure: stripes by kind, and one matrix in detail."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import sqrt
from typing import Any, NamedTuple

from trimtab.masks.structure_result import ElementMap, MaskStructure, Profile, TensorStructure
from trimtab.report import charts, vega, wording
from trimtab.report import document as doc

_NUM_ROWS = 12
_SIDES = ("rows", "columns")


def opened(text: str) -> str:
    """Text with a capital first letter: `MLP neurons`."""
    return text[:1].upper() + text[1:]


def dispersion_text(value: float | None) -> wording.Shown:
    """A mean of z²: to two decimals, a large one to whole numbers."""
    return wording.shown(value, lambda v: f"{v:.2f}" if v < 100 else f"{v:,.0f}")


def spread_text(value: float | None) -> wording.Shown:
    """A spread as a percentage of the expectation: to one decimal, a large one without."""
    return wording.shown(value, lambda v: f"{100 * v:.1f} %" if v < 10 else f"{100 * v:,.0f} %")


class Stripes:
    """The matrices of a kind, and unweighted means over them."""

    def __init__(self, tensors: Sequence[TensorStructure]) -> None:
        self.num_tensors = len(tensors)
        self._tensors = tensors

    def mean(self, axis: str, figure: str) -> float | None:
        """Mean of a figure of the rows or the columns; None if no matrix has it."""
        values = self._known(axis, figure)
        return sum(values) / len(values) if values else None

    def spread(self, axis: str, figure: str = "spread") -> float | None:
        """Root of the mean of squared spreads."""
        values = self._known(axis, figure)
        return sqrt(sum(value**2 for value in values) / len(values)) if values else None

    def _known(self, axis: str, figure: str) -> list[float]:
        values = (getattr(getattr(tensor, axis), figure) for tensor in self._tensors)
        return [value for value in values if value is not None]


def stripes_by_kind(tensors: Iterable[TensorStructure]) -> dict[str, Stripes]:
    """The matrices of each kind, in display order."""
    groups: dict[str, list[TensorStructure]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.kind, []).append(tensor)
    return {kind: Stripes(groups[kind]) for kind in wording.kinds_in_order(groups)}


_Lines = tuple[str, Stripes]
"""The rows, or the columns, of the matrices of a kind."""

_COMMON = (
    doc.Column[_Lines]("spread", lambda row: spread_text(row[1].spread(row[0]))),
    doc.Column[_Lines]("mean z²", lambda row: dispersion_text(row[1].mean(row[0], "dispersion"))),
    doc.Column[_Lines]("of control", lambda row: dispersion_text(row[1].mean(row[0], "control"))),
)
_MATCHED = (
    doc.Column[_Lines](
        "spread by magnitude", lambda row: spread_text(row[1].spread(row[0], "matched_spread"))
    ),
    doc.Column[_Lines](
        "z² by magnitude",
        lambda row: dispersion_text(row[1].mean(row[0], "matched")),
        drop=1,
        note="“By magnitude” is against chance with the same number of elements in each tensor × "
        "exponent of the base weight.",
    ),
)


def stripes(masks: Sequence[tuple[str, MaskStructure]]) -> doc.Section | None:
    """Spread of the rows and columns of the matrices of each kind."""
    blocks = tuple(_stripes(label, mask) for label, mask in masks if mask.tensors)
    if not blocks:
        return None
    return doc.Section(
        "Rows and columns",
        (
            "A matrix is stored as outputs × inputs: a row makes one output, a column reads one "
            "input. Rows that differ more than chance are stripes across the matrix, columns "
            "stripes down it.",
        ),
        blocks,
    )


def _stripes(label: str, mask: MaskStructure) -> doc.Figure:
    kinds = stripes_by_kind(mask.tensors)
    has_base = any(tensor.rows.matched is not None for tensor in mask.tensors)
    measured = "matched_spread" if has_base else "spread"
    rows = [((kind, side), (side, group)) for kind, group in kinds.items() for side in _SIDES]
    columns = (*_COMMON, *(_MATCHED if has_base else ()))
    marks = charts.marks_of(
        rows,
        ("kind", "lines"),
        columns,
        lambda names, row: {
            "arm": names[1],
            "name": wording.printable(names[0]),
            "measured": 100 * (row[1].spread(row[0], measured) or 0.0),
            "reference": 100 * (row[1].spread(row[0]) or 0.0),
        },
    )
    highest = charts.nice_ceiling(max(marks.values("measured", "reference"), default=1.0))
    title = wording.named(label, "Rows and columns by kind")
    return doc.Figure(
        wording.named(label, "Stripes by kind"),
        lambda: charts.reference_dots(
            marks, _SIDES, axis="spread of lines beyond chance (%)", domain=(0, highest)
        ),
        "How far lines are from their expectation beyond chance, one standard deviation, over the "
        "matrices of a kind. The dot is "
        + ("what magnitudes do not explain, " if has_base else "the spread, ")
        + "the tick the spread with the same number of elements in each tensor. A random mask has "
        "about 0.",
        doc.table(
            title,
            rows,
            (
                doc.Column("matrices", lambda row: wording.count(row[1].num_tensors), drop=2),
                *columns,
            ),
            keys=("kind", "lines"),
            brief=title,
        ),
        (
            doc.Key("dot-0", "rows"),
            doc.Key("dot-1", "columns"),
            doc.Key("tick", "the same number in each tensor"),
        ),
    )


def one_matrix(masks: Sequence[tuple[str, MaskStructure]]) -> doc.Section | None:
    """The map of a matrix, and its rows and columns in order."""
    blocks = [
        figure
        for label, mask in masks
        if (matrix := mask.map) is not None
        for figure in (
            _map(label, matrix),
            _profile(label, matrix, matrix.rows, "rows", matrix.shape[0]),
            _profile(label, matrix, matrix.columns, "columns", matrix.shape[1]),
        )
    ]
    return doc.Section("Inside a matrix", blocks=tuple(blocks)) if blocks else None


class _Block(NamedTuple):
    """Rows `top` to before `bottom` and columns `left` to before `right` of a matrix."""

    top: int
    bottom: int
    left: int
    right: int
    num_selected: int

    @property
    def size(self) -> int:
        return (self.bottom - self.top) * (self.right - self.left)

    @property
    def text(self) -> str:
        return f"{self.num_selected:,} of {self.size:,}"


_BLOCK = (
    doc.Column[_Block]("rows", lambda block: _range(block.top, block.bottom)),
    doc.Column[_Block]("columns", lambda block: _range(block.left, block.right)),
    doc.Column[_Block]("selected", lambda block: block.text),
    doc.Column[_Block]("share", lambda block: wording.share(block.num_selected, block.size)),
)


def _map(label: str, matrix: ElementMap) -> doc.Figure:
    rows, columns = matrix.row_edges, matrix.column_edges
    cells = (
        _Block(top, bottom, left, right, num_selected)
        for (top, bottom), counts in zip(pairwise(rows), matrix.counts, strict=True)
        for (left, right), num_selected in zip(pairwise(columns), counts, strict=True)
    )
    blocks = [block for block in cells if block.num_selected and block.size]
    shares = sorted(100 * block.num_selected / block.size for block in blocks)
    # 1 block in 200 may exceed the full colour, so that the others remain visible.
    strongest = charts.nice_ceiling(shares[int(0.995 * (len(shares) - 1))]) if shares else 1.0
    densest = sorted(blocks, key=lambda block: -block.num_selected / block.size)
    return doc.Figure(
        wording.named(label, f"Element map of {wording.printable(matrix.name)}"),
        lambda: _block_map(blocks, columns[:-1], rows[:-1], strongest),
        f"{matrix.shape[0]:,} × {matrix.shape[1]:,} elements, of which {matrix.num_selected:,} are "
        "selected, in blocks: the stronger the colour, the larger the share of a block that is "
        "selected. A block without colour has none.",
        doc.table(
            wording.named(label, "Densest blocks"),
            [((), block) for block in densest],
            _BLOCK,
            keys=(),
            limit=_NUM_ROWS,
        ),
        (doc.Key("ramp", "0 %", f"{strongest:g} % of a block"),),
    )


def _block_map(
    blocks: Sequence[_Block], columns: Sequence[int], rows: Sequence[int], strongest: float
) -> dict[str, Any]:
    """The blocks with selected elements, shaded by their share.

    There are thousands of blocks, so rows are lists, which are smaller than objects: first column,
    first row, share in percent, and selected elements as text.
    """
    width = max(2, min(12, (vega.WIDTH - 70) // max(len(columns), 1)))
    height = max(2, min(width, 480 // max(len(rows), 1)))

    def place(field: str, title: str, edges: Sequence[int]) -> dict[str, Any]:
        shown = list(edges[:: max(1, len(edges) // 8)])
        look: dict[str, Any] = {"values": shown, "labelAngle": 0, "labelOverlap": True}
        return vega.category(field, edges, title, padding=0, **look)

    values = [
        [block.left, block.top, float(f"{100 * block.num_selected / block.size:.3g}"), block.text]
        for block in blocks
    ]
    return vega.chart(
        [],
        data={"values": values},
        width={"step": width},
        height={"step": height},
        mark={"type": "rect", "fill": "var(--accent)", "aria": False},
        encoding={
            "x": place("0", "columns", columns),
            "y": place("1", "rows", rows),
            "fillOpacity": {
                "field": "2",
                "type": "quantitative",
                "scale": {"domain": [0, strongest], "range": [0, 1], "clamp": True},
                "legend": None,
            },
            "tooltip": [
                {"field": field, "type": "nominal", "title": title}
                for field, title in (("1", "rows from"), ("0", "columns from"), ("3", "selected"))
            ],
        },
    )


class _Group(NamedTuple):
    """Neighbouring lines of a matrix, and the fewest and most selected elements of one of them."""

    start: int
    stop: int
    lowest: int
    highest: int
    control_lowest: int
    control_highest: int


def _profile(
    label: str, matrix: ElementMap, profile: Profile, lines: str, num_lines: int
) -> doc.Figure:
    stops = [*profile.starts[1:], num_lines]
    bounds = (profile.lowest, profile.highest, profile.control_lowest, profile.control_highest)
    groups = [
        ((_range(start, stop),), _Group(start, stop, *extremes))
        for start, stop, *extremes in zip(profile.starts, stops, *bounds, strict=True)
    ]
    columns = (
        doc.Column[_Group](
            "fewest to most selected", lambda row: f"{row.lowest:,} to {row.highest:,}"
        ),
        doc.Column[_Group](
            "of the control", lambda row: f"{row.control_lowest:,} to {row.control_highest:,}"
        ),
        doc.Column[_Group]("elements of a line", lambda _: wording.count(profile.line_length)),
    )

    def percentage(num: int) -> float:
        return round(100 * num / profile.line_length, 3) if profile.line_length else 0.0

    marks = charts.marks_of(
        groups,
        (lines,),
        columns,
        lambda _, row: {
            "at": row.start,
            **{field: percentage(getattr(row, field)) for field in _Group._fields[2:]},
        },
    )
    return doc.Figure(
        wording.named(label, f"{opened(lines)} of {wording.printable(matrix.name)}"),
        lambda: _line_profile(marks, lines, num_lines),
        f"From the emptiest to the fullest of neighbouring {lines}, in order, over the same of "
        "the random control in grey. Peaks and gaps beyond the grey are stripes.",
        doc.table(
            wording.named(label, f"Groups with the fullest {lines}"),
            sorted(groups, key=lambda group: -group[1].highest),
            columns,
            keys=((lines, "number"),),
            limit=_NUM_ROWS,
        ),
        (doc.Key("dot-0", "mask"), doc.Key("dot-ink", "random control")),
    )


def _line_profile(marks: charts.Marks, lines: str, last: int) -> dict[str, Any]:
    """Bands from the emptiest to the fullest line of each group, in percent of a line."""
    highest = charts.nice_ceiling(max(marks.values("highest"), default=1.0))
    x = vega.quantity("at", lines, (0, last), grid=False, format=",d", labelFlush=False)

    def y(field: str) -> dict[str, Any]:
        return vega.quantity(field, "selected of a line (%)", (0, highest), tickCount=4)

    def band(prefix: str, colour: str, opacity: float) -> dict[str, Any]:
        ends = {"x": x, "y": y(f"{prefix}lowest"), "y2": {"field": f"{prefix}highest"}}
        return vega.layer("area", ends, interpolate="step", color=colour, opacity=opacity)

    def edge(field: str) -> dict[str, Any]:
        look: dict[str, Any] = {"strokeWidth": 1, "color": "var(--arm-0)", "interpolate": "step"}
        return vega.layer("line", {"x": x, "y": y(field)}, **look)

    whole = {"x": x, "y": {"datum": 0}, "y2": {"datum": highest}, "tooltip": marks.tooltip}
    return vega.chart(
        marks.rows,
        band("", "var(--arm-0)", 0.3),
        edge("lowest"),
        edge("highest"),
        band("control_", "var(--soft)", 0.7),
        vega.layer("rule", whole, strokeWidth=4, opacity=0, aria=False),
        height=130,
    )


def _range(start: int, stop: int) -> str:
    """The lines `start` to `stop - 1`, counted from 0."""
    return f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"
