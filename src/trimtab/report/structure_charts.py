"""The charts of structure: units in a grid and in order, stripes, and the map of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["block_map", "line_profile", "ordered_units", "stripe_dots", "unit_grid"]

_DIRECTIONS = {
    "field": "direction",
    "type": "nominal",
    "scale": {"domain": ["more", "fewer"], "range": ["var(--arm-0)", "var(--arm-1)"]},
    "legend": None,
}


def unit_grid(
    rows: Rows, layers: Sequence[int], units: Sequence[int], *, unit: str, strongest: float
) -> dict[str, Any]:
    """Every unit of every layer: one colour for more than expected, another for fewer.

    Args:
        rows: `layer` and `unit` as text, `direction` (`more` or `fewer`), and `apart`, how far
            selected / expected is from 1; tips.
        layers: Columns, ascending.
        units: Rows from top to bottom.
        unit: What a unit is called.
        strongest: The distance from 1 that is drawn in full colour.
    """
    columns = [str(layer) for layer in layers]
    every = 1 if len(columns) <= 36 else 5
    return chart(
        rows,
        width=min(WIDTH, 60 + 40 * len(columns)),
        height=(20 if len(units) <= 24 else 9) * len(units),
        autosize={"type": "fit-x", "contains": "padding"},
        mark={"type": "rect", "stroke": "var(--rule)", "cursor": "help"},
        encoding={
            "x": {
                "field": "layer",
                "type": "nominal",
                "scale": {"domain": columns, "padding": 0.04},
                "axis": plain_axis(
                    "layer",
                    values=[name for name in columns if int(name) % every == 0],
                    labelAngle=0,
                    labelOverlap=False,
                ),
            },
            "y": {
                "field": "unit",
                "type": "nominal",
                "scale": {"domain": [str(place) for place in units], "padding": 0.04},
                "axis": plain_axis(unit, labelOverlap=True),
            },
            "fill": _DIRECTIONS,
            "fillOpacity": {
                "field": "apart",
                "type": "quantitative",
                "scale": {"domain": [0, strongest], "range": [0, 1], "clamp": True},
                "legend": None,
            },
            "tooltip": hover_box("layer", unit, "selected", "of expected", "z", "z of control"),
        },
    )


def ordered_units(
    rows: Rows, control: Rows, arms: Sequence[str], *, units: str, highest: float
) -> dict[str, Any]:
    """Units in the order of selected / expected, over the same of random controls.

    Args:
        rows: `arm`, `rank`, `ratio`; tips.
        control: `arm`, `rank`, `ratio` of the controls.
        arms: Labels of the masks, in order.
        units: What the units are called.
        highest: Where the axis of ratios ends.
    """
    x = {
        "field": "rank",
        "type": "quantitative",
        "scale": {"nice": False, "zero": False},
        "axis": plain_axis(f"{units}, in order", grid=False, format=",d", labelFlush=False),
    }
    y = {
        "field": "ratio",
        "type": "quantitative",
        "scale": {"domain": [0, highest], "nice": False},
        "axis": plain_axis("selected / expected", tickCount=5),
    }
    lines = {"x": x, "y": y}
    by_arm = {"field": "arm", "type": "nominal"}
    return chart(
        rows,
        width=WIDTH,
        height=200,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "data": {"values": [{"ratio": 1}]},
                "mark": {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"},
                "encoding": {"y": y},
            },
            {
                "data": {"values": list(control)},
                "mark": {"type": "line", "strokeWidth": 1.5, "color": "var(--soft)"},
                "encoding": {**lines, "detail": by_arm},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {**lines, "color": arm_colours(arms)},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 0},
                "encoding": {
                    **lines,
                    "color": arm_colours(arms),
                    "tooltip": hover_box("mask", "rank", "selected", "of expected", "control"),
                },
            },
        ],
    )


def stripe_dots(rows: Rows, kinds: Sequence[str], *, highest: float) -> dict[str, Any]:
    """How far the rows, and the columns, of the matrices of each kind differ.

    Args:
        rows: `arm` (`rows` or `columns`), `name` (the kind), and in percent `measured` and
            `reference`; tips.
        kinds: From top to bottom.
        highest: Where the axis ends.
    """
    sides = ["rows", "columns"]
    place: dict[str, Any] = {
        "y": {
            "field": "name",
            "type": "nominal",
            "scale": {"domain": list(kinds), "padding": 0.25},
            "axis": plain_axis(None, labelLimit=220),
        },
        "yOffset": {"field": "arm", "type": "nominal", "scale": {"domain": sides}},
    }

    def x(field: str) -> dict[str, Any]:
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"domain": [0, highest], "nice": False},
            "axis": plain_axis("spread of lines beyond chance (%)", tickCount=6, labelFlush=False),
        }

    tooltip = hover_box("kind", "lines", "spread", "without magnitudes", "mean z²", "of control")
    return chart(
        rows,
        width=WIDTH,
        height=34 * len(kinds),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "mark": {"type": "tick", "thickness": 2, "size": 11, "color": "var(--ink)"},
                "encoding": {**place, "x": x("reference"), "tooltip": tooltip},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
                "encoding": {
                    **place,
                    "x": x("measured"),
                    "color": arm_colours(sides),
                    "tooltip": tooltip,
                },
            },
        ],
    )


def line_profile(rows: Rows, *, lines: str, last: int, highest: float) -> dict[str, Any]:
    """The rows, or the columns, of a matrix in order, over those of the random control.

    Args:
        rows: `at` (first line of a group), and in percent of a line `lowest`, `highest`,
            `control_lowest` and `control_highest`; tips.
        lines: `rows` or `columns`.
        last: Number of lines.
        highest: Where the axis of percentages ends.
    """
    x = {
        "field": "at",
        "type": "quantitative",
        "scale": {"domain": [0, last], "nice": False},
        "axis": plain_axis(lines, grid=False, format=",d", labelFlush=False),
    }

    def y(field: str) -> dict[str, Any]:
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"domain": [0, highest], "nice": False},
            "axis": plain_axis("selected of a line (%)", tickCount=4),
        }

    def band(prefix: str) -> dict[str, Any]:
        return {"x": x, "y": y(f"{prefix}lowest"), "y2": {"field": f"{prefix}highest"}}

    stroke = {"type": "line", "strokeWidth": 1, "color": "var(--arm-0)", "interpolate": "step"}
    area = {"type": "area", "interpolate": "step"}
    return chart(
        rows,
        width=WIDTH,
        height=130,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {"mark": {**area, "color": "var(--arm-0)", "opacity": 0.3}, "encoding": band("")},
            {"mark": stroke, "encoding": {"x": x, "y": y("lowest")}},
            {"mark": stroke, "encoding": {"x": x, "y": y("highest")}},
            {
                "mark": {**area, "color": "var(--soft)", "opacity": 0.7},
                "encoding": band("control_"),
            },
            {
                "mark": {"type": "rule", "strokeWidth": 4, "opacity": 0, "aria": False},
                "encoding": {
                    "x": x,
                    "y": {"datum": 0},
                    "y2": {"datum": highest},
                    "tooltip": hover_box(lines, "fewest to most", "of the control", "of"),
                },
            },
        ],
    )


def block_map(
    blocks: Sequence[tuple[int, int, float, str]],
    columns: Sequence[int],
    rows: Sequence[int],
    *,
    strongest: float,
) -> dict[str, Any]:
    """The blocks of a matrix that have selected elements; the depth of one colour is their share.

    Args:
        blocks: First column, first row, share in percent, and selected elements as text. There
            are thousands of them, and lists are smaller than objects.
        columns: First column of each block.
        rows: First row of each block.
        strongest: The percentage that is drawn in full colour.
    """
    width = max(2, min(12, (WIDTH - 70) // max(len(columns), 1)))
    height = max(2, min(width, 480 // max(len(rows), 1)))

    def place(field: str, title: str, edges: Sequence[int]) -> dict[str, Any]:
        shown = edges[:: max(1, len(edges) // 8)]
        return {
            "field": field,
            "type": "nominal",
            "scale": {"domain": list(edges), "padding": 0},
            "axis": plain_axis(title, values=list(shown), labelAngle=0, labelOverlap=True),
        }

    return chart(
        [],
        data={"values": [list(block) for block in blocks]},
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
