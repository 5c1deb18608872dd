"""The charts of a trajectory: shares over time, and what became of the weights of each kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.report.vega import WIDTH, Rows, arm_colours, chart, hover_box, plain_axis

__all__ = ["ever_changed_bars"]


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
