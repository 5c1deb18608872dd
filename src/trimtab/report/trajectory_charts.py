"""The charts of a trajectory: shares over time, and what became of the weights of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["ever_changed_bars", "shares_over_time"]

_MANY = 60
"""Points from which a line without dots reads better; the hover box stays."""


def shares_over_time(
    rows: Rows,
    names: Sequence[str],
    *,
    time: str,
    axis: str,
    domain: tuple[float, float],
    rule: float | None = None,
) -> dict[str, Any]:
    """A line for each of some shares of the weights.

    Args:
        rows: `arm` (one of `names`), `at` (step, or number of the point), `value` in percent; tips.
        names: In order, so that each has its colour.
        time: Title of the axis of `at`.
        axis: Title of the axis of values.
        domain: Where that axis begins and ends.
        rule: A percentage to draw a dashed line at.
    """
    encoding = {
        "x": {
            "field": "at",
            "type": "quantitative",
            "scale": {"nice": False, "zero": False},
            "axis": plain_axis(time, grid=False, tickMinStep=1, format=",d", labelFlush=False),
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "scale": {"domain": list(domain), "nice": False},
            "axis": plain_axis(axis, tickCount=5),
        },
        "color": arm_colours(names),
    }
    is_dotted = len(rows) <= _MANY * len(names)
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "line", "strokeWidth": 2}, "encoding": encoding},
        {
            "mark": {"type": "point", "filled": True, "size": 50, "opacity": int(is_dotted)},
            "encoding": {**encoding, "tooltip": hover_box("point", "share", "weights")},
        },
    ]
    if rule is not None:
        dashed = {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"}
        at_rule = {"y": {**encoding["y"], "field": "rule"}}
        layers.insert(
            0, {"data": {"values": [{"rule": rule}]}, "mark": dashed, "encoding": at_rule}
        )
    return chart(
        rows,
        width=WIDTH,
        height=200,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=layers,
    )


def ever_changed_bars(
    rows: Rows, fates: Sequence[str], names: Sequence[str], *, highest: float
) -> dict[str, Any]:
    """The weights of each kind that ever changed, by what became of them.

    Args:
        rows: `name`, `arm` (one of `fates`), and in percent `from` and `to`; tips.
        fates: In order, so that each has its colour.
        names: Rows from top to bottom.
        highest: Where the axis ends.
    """
    return chart(
        rows,
        width=WIDTH,
        height=24 * len(names),
        autosize={"type": "fit-x", "contains": "padding"},
        mark={"type": "bar", "height": {"band": 0.7}},
        encoding={
            "y": {
                "field": "name",
                "type": "nominal",
                "scale": {"domain": list(names)},
                "axis": plain_axis(None, labelLimit=220),
            },
            "x": {
                "field": "from",
                "type": "quantitative",
                "scale": {"domain": [0, highest], "nice": False},
                "axis": plain_axis("ever changed (%)", tickCount=6, labelFlush=False),
            },
            "x2": {"field": "to"},
            "color": arm_colours(fates),
            "tooltip": hover_box("kind", "what became of them", "share", "weights"),
        },
    )
