"""The chart of a robustness probe: how far noise moves the model, by what it hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["divergence_by_level"]


def divergence_by_level(rows: Rows, arms: Sequence[str]) -> dict[str, Any]:
    """KL at every level, for each set of weights; both axes are logarithmic.

    Args:
        rows: `arm`, `level`, `kl` and its range `least` to `most`, all above 0; tips.
        arms: Labels, in order.
    """

    def log(field: str, title: str, **axis: Any) -> dict[str, Any]:
        return {
            "field": field,
            "type": "quantitative",
            "scale": {"type": "log", "nice": False, "padding": 12},
            "axis": plain_axis(title, labelFlush=False, format="~g", **axis),
        }

    levels = sorted({row["level"] for row in rows})
    divergence = "KL from the unperturbed model (nats a token)"
    encoding = {
        "x": log("level", "level of the noise", values=levels, grid=False),
        "y": log("kl", divergence, tickCount=5),
        "color": arm_colours(arms),
    }
    whiskers = {**encoding, "y": log("least", divergence, tickCount=5), "y2": {"field": "most"}}
    return chart(
        rows,
        width=WIDTH,
        height=260,
        autosize={"type": "fit-x", "contains": "padding"},
        layer=[
            {"mark": {"type": "line", "strokeWidth": 1.5}, "encoding": encoding},
            {"mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.55}, "encoding": whiskers},
            {
                "mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
                "encoding": {
                    **encoding,
                    "tooltip": hover_box("noise in", "level", "KL", "correct"),
                },
            },
        ],
    )
