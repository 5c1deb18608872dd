"""The common ground of all charts: Vega-Lite as plain dicts, with their data inside.

Colours are CSS variables, so that one drawing fits light, dark and paper. Every text that a chart
shows arrives finished in its data (never as an expression, never formatted by Vega): names from
files cannot become code, and percentages keep the rule that 0 % and 100 % are exact. Column names
are fixed in the code for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = [
    "NUM_COLOURS",
    "WIDTH",
    "Rows",
    "arm_colours",
    "chart",
    "hover_box",
    "packed",
    "plain_axis",
]

Rows = Sequence[dict[str, Any]]
"""Data of a chart; `tip_*` columns are finished text for the hover box."""

WIDTH = 736

NUM_COLOURS = 6
"""Runs that the style sheet can tell apart; a page of more begins again."""

_FONT = '-apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif'

_CONFIG: dict[str, Any] = {
    "font": _FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--soft)",
        "titleColor": "var(--soft)",
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "titlePadding": 10,
        "labelPadding": 5,
        "gridColor": "var(--rule)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "labelLimit": 150,
    },
}


def chart(rows: Rows, **parts: Any) -> dict[str, Any]:
    """A specification with these data and the look of the report."""
    return {
        "background": None,
        "padding": 2,
        "config": _CONFIG,
        "data": {"values": list(rows)},
        **parts,
    }


def packed(part: Any) -> Any:
    """A specification whose rows name their columns once instead of in every row.

    A map of a matrix has ten thousand rows; `charts.js` gives them their names back.
    """
    if isinstance(part, list):
        return [packed(item) for item in part]
    if not isinstance(part, dict):
        return part
    rows = part.get("values")
    if isinstance(rows, list) and len(rows) > 1 and all(isinstance(row, dict) for row in rows):
        columns = list(rows[0])
        if all(list(row) == columns for row in rows):
            values = [list(row.values()) for row in rows]
            return {**part, "values": values, "columns": columns}
    return {key: packed(item) for key, item in part.items()}


def hover_box(*titles: str) -> list[dict[str, str]]:
    """A hover box of the finished texts `tip_0`, `tip_1`, ... under their titles."""
    return [
        {"field": f"tip_{place}", "type": "nominal", "title": title}
        for place, title in enumerate(titles)
    ]


def arm_colours(arms: Sequence[str]) -> dict[str, Any]:
    """Encoding that gives each arm its colour; the legend is set in HTML."""
    colours = [f"var(--arm-{place % NUM_COLOURS})" for place in range(len(arms))]
    return {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": list(arms), "range": colours},
        "legend": None,
    }


def plain_axis(title: str | None, **more: Any) -> dict[str, Any]:
    """An axis without ticks and line."""
    return {"title": title, "ticks": False, "domain": False, **more}
