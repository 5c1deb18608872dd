"""The charts of a paper's result. How they are drawn in general stands in `trimtab.report.vega`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from trimtab.report.vega import WIDTH, Rows, chart, hover_box, plain_axis

__all__ = ["forest", "learned_beside_unchanged"]

_POINT = {"type": "point", "size": 70, "opacity": 1, "strokeWidth": 2}


def forest(
    rows: Rows, names: Sequence[str], colours: Mapping[str, str], *, title: str, is_log: bool
) -> dict[str, Any]:
    """A mean with its interval in each row, what is asked of it, and what others published.

    Args:
        rows: `name`, `kind` (`ours`, `theirs` or `asked`) and `value`; of ours `arm` (a key of
            `colours`), `low` and `high`; tips.
        names: From top to bottom.
        colours: Arm -> CSS colour.
        title: Of the axis.
        is_log: Whether the axis is; its values must be above 0.
    """
    y = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(names), "padding": 0.25},
        "axis": plain_axis(None, labelLimit=330),
    }
    scale = {"type": "log", "nice": False, "padding": 12} if is_log else {"padding": 12}
    look = plain_axis(title, tickCount=6, labelFlush=False, format="~r")

    def x(field: str) -> dict[str, Any]:
        return {"field": field, "type": "quantitative", "scale": scale, "axis": look}

    colour = {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": list(colours), "range": list(colours.values())},
        "legend": None,
    }
    tooltip = hover_box("figure", "", "value", "seeds", "verdict")
    asked = {"type": "tick", "thickness": 2, "height": 17, "color": "var(--ink)"}
    whisker = {"type": "rule", "strokeWidth": 2, "opacity": 0.55}
    ring = {**_POINT, "filled": False, "color": "var(--soft)"}
    at = {"x": x("value"), "y": y, "tooltip": tooltip}
    between = {"x": x("low"), "x2": {"field": "high"}, "y": y, "color": colour}
    layers = (
        ("asked", asked, at),
        ("ours", whisker, between),
        ("theirs", ring, at),
        ("ours", {**_POINT, "filled": True}, {**at, "color": colour}),
    )
    present = {row["kind"] for row in rows}  # a layer without rows would have no scale
    return chart(
        rows,
        width=WIDTH,
        height=24 * len(names),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "transform": [{"filter": {"field": "kind", "equal": kind}}],
                "mark": mark,
                "encoding": encoding,
            }
            for kind, mark, encoding in layers
            if kind in present
        ],
    )


def learned_beside_unchanged(rows: Rows) -> dict[str, Any]:
    """Runs as points: what is unchanged to the right, what was learned upwards.

    Args:
        rows: `name`; in percent and points `unchanged` and `gained`, each with an interval
            `…_low` to `…_high`; tips.
    """

    def axis(field: str, title: str) -> dict[str, Any]:
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"zero": False, "nice": False, "padding": 40},
            "axis": plain_axis(title, tickCount=6, labelFlush=False, format="~r"),
        }

    def x(end: str = "") -> dict[str, Any]:
        return axis(f"unchanged{end}", "unchanged, by bits (%)")

    def y(end: str = "") -> dict[str, Any]:
        return axis(f"gained{end}", "sampled accuracy gained (points)")

    whisker = {"type": "rule", "strokeWidth": 1.5, "opacity": 0.4, "color": "var(--accent)"}
    label = {"type": "text", "fontSize": 11, "fill": "var(--ink)"}
    placed = [{**row, "side": side} for row, side in zip(rows, _sides(rows), strict=True)]
    labels = [
        {
            "transform": [{"filter": {"field": "side", "equal": side}}],
            "mark": label | _SIDES[side],
            "encoding": {"x": x(), "y": y(), "text": {"field": "name", "type": "nominal"}},
        }
        for side in _SIDES
        if any(row["side"] == side for row in placed)
    ]
    return chart(
        placed,
        width=WIDTH,
        height=_HEIGHT,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "mark": whisker,
                "encoding": {"x": x("_low"), "x2": {"field": "unchanged_high"}, "y": y()},
            },
            {
                "mark": whisker,
                "encoding": {"x": x(), "y": y("_low"), "y2": {"field": "gained_high"}},
            },
            {
                "mark": {**_POINT, "filled": True, "color": "var(--accent)"},
                "encoding": {
                    "x": x(),
                    "y": y(),
                    "tooltip": hover_box("runs", "unchanged", "gained", "seeds"),
                },
            },
            *labels,
        ],
    )


_SIDES: dict[str, dict[str, Any]] = {
    "above": {"dy": -13, "align": "center"},
    "below": {"dy": 15, "align": "center"},
    "right": {"dx": 9, "align": "left"},
    "left": {"dx": -9, "align": "right"},
}
"""Where the label of a point may stand."""

_Box: TypeAlias = tuple[float, float, float, float]
"""Left, right, top and bottom, in pixels."""

_HEIGHT, _CHARACTER, _LINE = 320, 6.0, 13
"""Of the chart, and about those of a label, in pixels."""


def _sides(rows: Rows) -> list[str]:
    """For each point the first side on which its label meets no point and no label before it."""
    across = _pixels([row["unchanged"] for row in rows], WIDTH - 160)
    down = [-place for place in _pixels([row["gained"] for row in rows], _HEIGHT - 80)]
    taken = [(x - 6, x + 6, y - 6, y + 6) for x, y in zip(across, down, strict=True)]
    sides = []
    for place, (row, x, y) in enumerate(zip(rows, across, down, strict=True)):
        others = [*taken[:place], *taken[place + 1 :]]
        width = _CHARACTER * len(row["name"])
        boxes = {side: _box(look, x, y, width) for side, look in _SIDES.items()}
        free = (side for side, box in boxes.items() if not any(_meet(box, of) for of in others))
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


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]
