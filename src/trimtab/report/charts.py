"""The charts of a comparison. How they are drawn in general stands in `trimtab.report.vega`."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = [
    "heat_map",
    "nice_ceiling",
    "percent_floor",
    "reference_dots",
    "tolerance_sweep",
    "ulp_histogram",
]


def nice_ceiling(value: float) -> float:
    """The smallest of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten that is not below it."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return next((step * power for step in steps if value <= step * power), 10 * power)


def percent_floor(values: Sequence[float]) -> float:
    """Where a percent axis that ends at 100 may begin so that all values are well inside."""
    lowest = min(values, default=100.0)
    return 0.0 if lowest < 40 else float(max(0, 5 * floor((lowest - 2) / 5)))


def heat_map(
    rows: Rows, layers: Sequence[int], kinds: Sequence[str], *, has_outside: bool, highest: float
) -> dict[str, Any]:
    """Update density of every layer × kind; the depth of one colour, from 0 to `highest` percent.

    Args:
        rows: `layer` (text; `out` beyond the layers), `kind`, `density` in percent; tips.
        layers: Columns, ascending.
        kinds: Rows from top to bottom.
        has_outside: Whether there is a column for tensors outside the layers.
        highest: The percentage drawn in full colour.
    """
    columns = [str(layer) for layer in layers]
    every = 1 if len(columns) <= 36 else 5
    labels = [name for name in columns[: len(columns) - 2 * (every > 1)] if int(name) % every == 0]
    if has_outside:
        columns += [" ", "out"] if columns else ["out"]
        labels.append("out")
    names = 20 + 7 * min(20, max(map(len, kinds), default=0))
    return chart(
        rows,
        width=min(WIDTH, names + 40 * len(columns)),
        height=22 * len(kinds),
        autosize={"type": "fit-x", "contains": "padding"},
        mark={"type": "rect", "fill": "var(--accent)", "stroke": "var(--rule)", "cursor": "help"},
        encoding={
            "x": {
                "field": "layer",
                "type": "nominal",
                "scale": {"domain": columns, "padding": 0.04},
                "axis": plain_axis("layer", values=labels, labelAngle=0, labelOverlap=False),
            },
            "y": {
                "field": "kind",
                "type": "nominal",
                "scale": {"domain": list(kinds), "padding": 0.04},
                "axis": plain_axis(None),
            },
            "fillOpacity": {
                "field": "density",
                "type": "quantitative",
                "scale": {"domain": [0, highest], "range": [0, 1]},
                "legend": None,
            },
            "tooltip": hover_box("layer", "kind", "changed"),
        },
    )


def tolerance_sweep(rows: Rows, arms: Sequence[str], *, smallest: float) -> dict[str, Any]:
    """Update sparsity against absolute tolerance, on a log axis with a place for 0 at its left.

    Args:
        rows: `arm`, `tolerance`, `unchanged` in percent, and as finished text `label`; tips.
        arms: Labels, in order.
        smallest: The smallest tolerance above 0; 0 is drawn one decade below it.
    """
    zero = smallest / 10
    placed = [{**row, "place": row["tolerance"] or zero} for row in rows]
    highest = max(row["place"] for row in placed)
    decades = range(ceil(log10(smallest) - 1e-9), ceil(log10(highest) - 1e-9) + 1)
    x = {
        "field": "place",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [zero / 2.5, 10.0 ** decades[-1] * 2.5], "nice": False},
        "axis": plain_axis(
            "absolute tolerance",
            values=[zero, *(10.0**decade for decade in decades)],
            labelExpr=f"datum.value < {smallest / 2!r} ? '0' : format(datum.value, '~e')",
            grid=False,
        ),
    }
    y = {
        "field": "unchanged",
        "type": "quantitative",
        "scale": {"domain": [percent_floor([row["unchanged"] for row in rows]), 100]},
        "axis": plain_axis("unchanged (%)", tickCount=6),
    }
    lines = {"x": x, "y": y, "color": arm_colours(arms)}
    above = [row for row in placed if row["tolerance"]]
    joint = [row for row in placed if row["place"] <= smallest]
    return chart(
        placed,
        width=WIDTH,
        height=240,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "data": {"values": joint},
                "mark": {"type": "line", "strokeDash": [3, 4], "strokeWidth": 1.5},
                "encoding": lines,
            },
            {
                "data": {"values": above},
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": lines,
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
                "encoding": {**lines, "tooltip": hover_box("tolerance", "unchanged")},
            },
            *(
                {
                    "transform": [{"filter": {"field": "arm", "equal": arm}}],
                    "mark": {
                        "type": "text",
                        "align": "left" if place % 2 else "right",
                        "dx": -8 if place % 2 else 8,
                        "dy": 17 if place % 2 else -13,
                        "fontSize": 11,
                        "fill": "var(--soft)",
                    },
                    "encoding": {"x": x, "y": y, "text": {"field": "label", "type": "nominal"}},
                }
                for place, arm in enumerate(arms)
            ),
        ],
    )


def ulp_histogram(rows: Rows, arms: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Changed elements by signed distance in ulp.

    Args:
        rows: `arm`, `distance`, `changed`; tips.
        arms: Labels, in order.
        labels: Bins in ascending order.
    """
    below = [label for label in labels if label.startswith("-")]
    domain = [*below, " ", *labels[len(below) :]]
    axis = plain_axis(
        "distance in ulp (steps of the stored number format)",
        values=list(labels),
        labelAngle=-55 if len(labels) < 40 else -90,
        labelOverlap=len(labels) >= 40,
    )
    x = {"field": "distance", "type": "nominal", "scale": {"domain": domain, "paddingInner": 0.16}}
    y = {"type": "quantitative", "axis": plain_axis("changed elements", format="~s", tickCount=5)}
    offset: dict[str, Any] = {}
    if len(arms) > 1:
        offset["xOffset"] = {"field": "arm", "type": "nominal", "scale": {"domain": list(arms)}}
    tallest = max((row["changed"] for row in rows), default=0)
    common = {"x": {**x, "axis": axis}, **offset}
    return chart(
        rows,
        width=WIDTH,
        height=230,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "mark": {"type": "bar"},
                "encoding": {
                    **common,
                    "y": {"field": "changed", **y},
                    "color": arm_colours(arms),
                },
            },
            {
                # As high as the chart and not seen: the shortest bars can be hovered over too.
                "mark": {"type": "bar", "opacity": 0},
                "encoding": {
                    **common,
                    "y": {"datum": tallest, **y},
                    "tooltip": hover_box("distance", "changed"),
                },
            },
        ],
    )


def reference_dots(
    rows: Rows,
    arms: Sequence[str],
    names: Sequence[str],
    *,
    axis: str,
    lowest: float,
    tips: Sequence[str],
    runs: Sequence[str] = (),
) -> dict[str, Any]:
    """A measured percentage of each name, as a dot over the tick of what it is to be read against.

    Args:
        rows: `arm`, `name`, and in percent `measured` and `reference`; `from` and `to` too where
            a bar is to show a range; tips.
        arms: Labels of the rows, in order.
        names: Rows from top to bottom.
        axis: Title of the axis.
        lowest: Where the axis, which ends at 100, begins.
        tips: Titles of the tips.
        runs: Labels of all runs of the page in order, so that each keeps its colour; by default
            those of the rows.
    """
    y: dict[str, Any] = {
        "y": {
            "field": "name",
            "type": "nominal",
            "scale": {"domain": list(names), "padding": 0.25},
            "axis": plain_axis(None, labelLimit=220),
        }
    }
    if len(arms) > 1:
        y["yOffset"] = {"field": "arm", "type": "nominal", "scale": {"domain": list(arms)}}

    def x(field: str) -> dict[str, Any]:
        scale = {"domain": [lowest, 100], "nice": False}
        look = plain_axis(axis, tickCount=6, labelFlush=False)
        return {"field": field, "type": "quantitative", "scale": scale, "axis": look}

    tooltip = hover_box(*tips)
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "tick", "thickness": 2, "size": 15, "color": "var(--ink)"},
            "encoding": {**y, "x": x("reference"), "tooltip": tooltip},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
            "encoding": {
                **y,
                "x": x("measured"),
                "color": arm_colours(runs or arms),
                "tooltip": tooltip,
            },
        },
    ]
    if all("from" in row for row in rows):
        bar = {"type": "bar", "height": 7, "fill": "var(--span)", "cornerRadius": 3}
        ends = {"x": x("from"), "x2": {"field": "to"}}
        layers.insert(0, {"mark": bar, "encoding": {**y, **ends, "tooltip": tooltip}})
    return chart(
        rows,
        width=WIDTH,
        height=max(26, 17 * len(arms)) * len(names),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=layers,
    )
