"""The charts of an overlap. How they are drawn in general stands in `trimtab.report.vega`."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["MEASURED", "counts_by_mask", "lift_dots", "pair_matrix"]

MEASURED = "measured"
"""The arm of a chart that is no null."""


def lift_dots(rows: Rows, nulls: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """The lift of each name over each null, on a log axis with a rule at 1.

    Args:
        rows: `arm` (one of `nulls`), `name`, `lift` above 0; tips.
        nulls: In order, so that each has its colour.
        names: Rows from top to bottom.
    """
    lifts = [row["lift"] for row in rows]
    scale = {"type": "log", "domain": [min([0.9, *lifts]) / 1.1, max([1.1, *lifts]) * 1.1]}
    look = plain_axis("shared ÷ expected by chance (lift)", tickCount=6, format="~r")
    y = {
        "field": "name",
        "type": "nominal",
        "scale": {"domain": list(names), "padding": 0.25},
        "axis": plain_axis(None, labelLimit=220),
    }
    x = {"field": "lift", "type": "quantitative", "scale": {**scale, "nice": False}, "axis": look}
    return chart(
        rows,
        width=WIDTH,
        height=26 * len(names),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "data": {"values": [{"lift": 1}]},
                "mark": {"type": "rule", "color": "var(--ink)", "strokeWidth": 1.5},
                "encoding": {"x": x},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": arm_colours(nulls),
                    "tooltip": hover_box("kind", "null", "lift", "shared", "expected", "z"),
                },
            },
        ],
    )


def pair_matrix(
    rows: Rows, names: Sequence[str], *, lowest: float, highest: float, tips: Sequence[str]
) -> dict[str, Any]:
    """A square for each pair of masks, its figure in it; the depth of one colour is its value.

    Args:
        rows: `row`, `column`, `value`, and as finished text `label`; tips.
        names: Of the masks, in order.
        lowest: The value without colour.
        highest: The value in full colour.
        tips: Titles of the tips.
    """
    place = {"type": "nominal", "scale": {"domain": list(names), "padding": 0.04}}
    encoding = {
        "x": {"field": "column", **place, "axis": plain_axis(None, orient="top", labelAngle=0)},
        "y": {"field": "row", **place, "axis": plain_axis(None)},
    }
    depth = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": [lowest, highest], "range": [0.05, 0.6], "clamp": True},
        "legend": None,
    }
    return chart(
        rows,
        width=min(WIDTH, 40 + 64 * len(names)),
        height=30 * len(names),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "mark": {"type": "rect", "fill": "var(--accent)", "cursor": "help"},
                "encoding": {**encoding, "fillOpacity": depth, "tooltip": hover_box(*tips)},
            },
            {
                "mark": {"type": "text", "fontSize": 11, "fill": "var(--ink)"},
                "encoding": {**encoding, "text": {"field": "label", "type": "nominal"}},
            },
        ],
    )


def counts_by_mask(rows: Rows, arms: Sequence[str], counts: Sequence[str]) -> dict[str, Any]:
    """Weights that are in so many masks: as a dot what was measured, as ticks what is expected.

    Args:
        rows: `arm` (`MEASURED` or a null), `count`, `weights` above 0; tips.
        arms: Labels in order, so that each has its colour.
        counts: From left to right.
    """
    powers = [log10(row["weights"]) for row in rows] or [0.0]
    domain = [10.0 ** floor(min(powers)), 10.0 ** max(ceil(max(powers)), floor(min(powers)) + 1)]
    encoding = {
        "x": {
            "field": "count",
            "type": "nominal",
            "scale": {"domain": list(counts)},
            "axis": plain_axis("masks that select a weight", labelAngle=0),
        },
        "y": {
            "field": "weights",
            "type": "quantitative",
            "scale": {"type": "log", "domain": domain},
            "axis": plain_axis("weights", format="~s", tickCount=6),
        },
        "color": arm_colours(arms),
        "tooltip": hover_box("masks", "", "weights", "measured ÷ this"),
    }
    is_measured = {"field": "arm", "equal": MEASURED}
    return chart(
        rows,
        width=WIDTH,
        height=240,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {
                "transform": [{"filter": {"not": is_measured}}],
                "mark": {"type": "tick", "thickness": 3, "width": 34, "orient": "horizontal"},
                "encoding": encoding,
            },
            {
                "transform": [{"filter": is_measured}],
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": encoding,
            },
        ],
    )
