"""Charts of a paper's result. Parts of charts are in `vega`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trimtab.report import vega
from trimtab.report.charts import Marks


def forest(
    marks: Marks, names: Sequence[str], colours: Mapping[str, str], *, title: str, is_log: bool
) -> dict[str, Any]:
    """A mean with its interval in each row, its required bound, and the published figure.

    Args:
        marks: `name`, `kind` (`ours`, `theirs` or `asked`) and `value`; of ours `arm` (a key of
            `colours`), `low` and `high`.
        names: From top to bottom.
        colours: Arm -> CSS colour.
        title: Of the axis.
        is_log: Whether the axis is logarithmic; values must be above 0.
    """
    scale = {"type": "log", "nice": False, "padding": 12} if is_log else {"padding": 12}

    def x(field: str) -> dict[str, Any]:
        look: dict[str, Any] = {"tickCount": 6, "labelFlush": False, "format": "~r"}
        return vega.quantity(field, title, scale=scale, **look)

    y = vega.category("name", names, labelLimit=330)
    colour = {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": None,
    }
    at = {"x": x("value"), "y": y, "tooltip": marks.tooltip}
    ours = {**at, "color": colour}
    between = {"x": x("low"), "x2": {"field": "high"}, "y": y, "color": colour}
    ring = {"filled": False, "color": "var(--soft)"}
    present = {row["kind"] for row in marks.rows}  # a layer without rows would have no scale

    def where_kind(kind: str) -> dict[str, Any]:
        return {"where": {"field": "kind", "equal": kind}}

    layers = [
        vega.ticks(at, height=17, **where_kind("asked")) if "asked" in present else None,
        vega.whiskers(between, **where_kind("ours")),
        vega.dots(at, 70, strokeWidth=2, **ring, **where_kind("theirs"))
        if "theirs" in present
        else None,
        vega.dots(ours, 70, strokeWidth=2, **where_kind("ours")),
    ]
    return vega.chart(marks.rows, *filter(None, layers), height=24 * len(names))


def learned_beside_unchanged(marks: Marks) -> dict[str, Any]:
    """Runs as points: the share unchanged (x) and the accuracy gained (y).

    Args:
        marks: `name`; in percent and points `unchanged` and `gained`, each with an interval
            `…_low` to `…_high`.
    """

    def axis(field: str, title: str) -> dict[str, Any]:
        scale = {"zero": False, "nice": False, "padding": 40}
        return vega.quantity(field, title, scale=scale, tickCount=6, labelFlush=False, format="~r")

    def x(end: str = "") -> dict[str, Any]:
        return axis(f"unchanged{end}", "unchanged, by bits (%)")

    def y(end: str = "") -> dict[str, Any]:
        return axis(f"gained{end}", "sampled accuracy gained (points)")

    look: dict[str, Any] = {"strokeWidth": 1.5, "opacity": 0.4, "color": "var(--accent)"}
    named = {"x": x(), "y": y(), "text": {"field": "name", "type": "nominal"}}
    sides = _sides(marks.rows)
    return vega.chart(
        [{**row, "side": side} for row, side in zip(marks.rows, sides, strict=True)],
        vega.whiskers({"x": x("_low"), "x2": {"field": "unchanged_high"}, "y": y()}, **look),
        vega.whiskers({"x": x(), "y": y("_low"), "y2": {"field": "gained_high"}}, **look),
        vega.dots(
            {"x": x(), "y": y(), "tooltip": marks.tooltip},
            70,
            strokeWidth=2,
            color="var(--accent)",
        ),
        *(
            vega.layer(
                "text",
                named,
                where={"field": "side", "equal": side},
                fontSize=11,
                fill="var(--ink)",
                **where,
            )
            for side, where in _SIDES.items()
            if side in sides
        ),
        height=_HEIGHT,
    )


_SIDES: dict[str, dict[str, Any]] = {
    "above": {"dy": -13, "align": "center"},
    "below": {"dy": 15, "align": "center"},
    "right": {"dx": 9, "align": "left"},
    "left": {"dx": -9, "align": "right"},
}
"""Positions of the label of a point."""

_Box: TypeAlias = tuple[float, float, float, float]
"""Left, right, top and bottom, in pixels."""

_HEIGHT, _CHARACTER, _LINE = 320, 6.0, 13
"""Height of the chart, and approximate size of a character of a label, in pixels."""


def _sides(rows: vega.Rows) -> list[str]:
    """For each point, the first side on which its label overlaps no point and no earlier label."""
    across = _pixels([row["unchanged"] for row in rows], vega.WIDTH - 160)
    down = [-index for index in _pixels([row["gained"] for row in rows], _HEIGHT - 80)]
    taken = [(x - 6, x + 6, y - 6, y + 6) for x, y in zip(across, down, strict=True)]
    sides = []
    for index, (row, x, y) in enumerate(zip(rows, across, down, strict=True)):
        others = [*taken[:index], *taken[index + 1 :]]
        width = _CHARACTER * len(row["name"])
        boxes = {side: _box(look, x, y, width) for side, look in _SIDES.items()}
        free = (
            side for side, box in boxes.items() if not any(_meet(box, other) for other in others)
        )
        sides.append(next(free, "above"))
        taken.append(boxes[sides[-1]])
    return sides


def _pixels(values: Sequence[float], length: float) -> list[float]:
    span = max(values) - min(values) or 1
    return [(value - min(values)) / span * length for value in values]


def _box(look: dict[str, Any], x: float, y: float, width: float) -> _Box:
    left = x + look.get("dx", 0) - {"left": 0, "center": width / 2, "right": width}[look["align"]]
    middle = y + look.get("dy", 0)
    return left, left + width, middle - _LINE / 2, middle + _LINE / 2


def _meet(first: _Box, other: _Box) -> bool:
    return (
        first[0] < other[1] and other[0] < first[1] and first[2] < other[3] and other[2] < first[3]
    )
