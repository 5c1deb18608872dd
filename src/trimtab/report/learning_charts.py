"""The charts of a demo: did the runs learn, and how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.vega import NUM_COLOURS, WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["accuracy_dots", "learning_curve"]


def learning_curve(rows: Rows, arms: Sequence[str], measure: str) -> dict[str, Any]:
    """A training measure at every step.

    Args:
        rows: `arm`, `step`, `value`; tips.
        arms: Labels of all arms of the page, in order, so that each keeps its colour.
        measure: Title of the axis.
    """
    encoding = {
        "x": {
            "field": "step",
            "type": "quantitative",
            "scale": {"nice": False},
            "axis": plain_axis("step", grid=False, tickMinStep=1, format="d", labelFlush=False),
        },
        "y": {
            "field": "value",
            "type": "quantitative",
            "scale": {"zero": True},
            "axis": plain_axis(measure, tickCount=4),
        },
        "color": arm_colours(arms),
    }
    return chart(
        rows,
        width=WIDTH,
        height=150,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": encoding},
            {
                "mark": {"type": "point", "filled": True, "size": 45, "opacity": 1},
                "encoding": {**encoding, "tooltip": hover_box("run", "step", measure)},
            },
        ],
    )


def accuracy_dots(
    rows: Rows,
    models: Sequence[str],
    arms: Sequence[str],
    *,
    baseline: float | None,
) -> dict[str, Any]:
    """Held-out accuracy of each model, greedy (dot) and sampled (ring), each with its interval.

    Args:
        rows: `model`, `arm` (empty for the base), `way` (`greedy` or `sampled`), and in percent
            `accuracy`, `low`, `high`; tips.
        models: Rows from top to bottom.
        arms: Labels, in order.
        baseline: Percentage of the majority answer, drawn as a dashed line.
    """
    domain = ["", *arms]
    colours = ["var(--soft)", *(f"var(--arm-{place % NUM_COLOURS})" for place in range(len(arms)))]
    colour = {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": domain, "range": colours},
        "legend": None,
    }
    y = {
        "y": {
            "field": "model",
            "type": "nominal",
            "scale": {"domain": list(models), "padding": 0.3},
            "axis": plain_axis(None),
        },
        "yOffset": {
            "field": "way",
            "type": "nominal",
            "scale": {"domain": ["greedy", "sampled"]},
        },
    }

    def x(field: str) -> dict[str, Any]:
        axis = plain_axis(
            "held-out questions answered correctly (%)", tickCount=6, labelFlush=False
        )
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"domain": [0, 100]},
            "axis": axis,
        }

    tooltip = hover_box("model", "decoding", "correct", "95 % interval")
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55},
            "encoding": {**y, "x": x("low"), "x2": {"field": "high"}, "color": colour},
        }
    ]
    for way, filled in (("greedy", True), ("sampled", False)):
        point = {"type": "point", "filled": filled, "size": 80, "opacity": 1, "strokeWidth": 2}
        if not filled:
            point["fill"] = "var(--paper)"
        layers.append(
            {
                "data": {"values": [row for row in rows if row["way"] == way]},
                "mark": point,
                "encoding": {**y, "x": x("accuracy"), "color": colour, "tooltip": tooltip},
            }
        )
    if baseline is not None:
        layers.insert(
            0,
            {
                "data": {"values": [{"baseline": baseline}]},
                "mark": {"type": "rule", "strokeDash": [4, 4], "color": "var(--soft)"},
                "encoding": {"x": x("baseline")},
            },
        )
    return chart(
        rows,
        width=WIDTH,
        height=42 * len(models),
        autosize={"type": "fit-x", "contains": "padding"},
        layer=layers,
    )
