"""Parts of charts: Vega-Lite specifications as dicts, with their data.

Colours are CSS variables, for light, dark and print. All text that a chart shows is in its data,
never an expression or formatted by Vega: names from files cannot become code, and 0 % and 100 %
are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[dict[str, Any]]
"""Data of a chart; `tip_*` columns are the texts of the hover box."""

WIDTH = 736

NUM_COLOURS = 6
"""Number of colours in the style sheet; they repeat for more runs."""

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


def chart(
    rows: Rows,
    *layers: Mapping[str, Any],
    height: int | Mapping[str, int],
    width: int | Mapping[str, int] = WIDTH,
    **parts: Any,
) -> dict[str, Any]:
    """A specification with data and the style of the report.

    Args:
        rows: The data.
        layers: Layers, from the lowest; a single mark can be in `parts`.
        height: In pixels, or `step`: the pixels of a row.
        width: In pixels, including axis labels, or `step`: the pixels of a column.
        parts: Further keys of the specification.
    """
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}} if isinstance(width, int) else {}
    return {
        "background": None,
        "padding": 2,
        "config": _CONFIG,
        "data": {"values": list(rows)},
        "width": width,
        "height": height,
        **fit,
        **({"layer": list(layers)} if layers else {}),
        **parts,
    }


def layer(
    mark: str,
    encoding: Mapping[str, Any],
    *,
    rows: Rows | None = None,
    where: Mapping[str, Any] | None = None,
    **look: Any,
) -> dict[str, Any]:
    """Marks of one type.

    Args:
        mark: The type: `line`, `rule`, `bar`, ...
        encoding: Channels by name.
        rows: Data of the layer, if not those of the chart.
        where: A filter of the rows.
        look: Properties of the mark.
    """
    drawn: dict[str, Any] = {"mark": {"type": mark, **look}, "encoding": dict(encoding)}
    if rows is not None:
        drawn["data"] = {"values": list(rows)}
    if where is not None:
        drawn["transform"] = [{"filter": where}]
    return drawn


def dots(encoding: Mapping[str, Any], size: int = 90, **more: Any) -> dict[str, Any]:
    """A layer of filled dots."""
    return layer("point", encoding, **{"filled": True, "size": size, "opacity": 1, **more})


def ticks(encoding: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A layer of short dark lines, as references for dots."""
    return layer("tick", encoding, thickness=2, color="var(--ink)", **more)


def whiskers(encoding: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A layer of error bars."""
    return layer("rule", encoding, **{"strokeWidth": 2, "opacity": 0.55, **more})


def dashed_at(value: float, channel: str, scale: Mapping[str, Any]) -> dict[str, Any]:
    """A dashed line across the chart.

    Args:
        value: Where it is drawn.
        channel: `x` or `y`.
        scale: The channel, from `quantity`.
    """
    encoding = {channel: {**scale, "field": "rule"}}
    look: dict[str, Any] = {"strokeDash": [4, 4], "color": "var(--soft)"}
    return layer("rule", encoding, rows=[{"rule": value}], **look)


def quantity(
    field: str,
    title: str,
    domain: tuple[float, float] | None = None,
    *,
    scale: Mapping[str, Any] | None = None,
    **look: Any,
) -> dict[str, Any]:
    """A channel for numbers.

    Args:
        field: Name in the rows.
        title: Of the axis.
        domain: Exact ends of the axis.
        scale: The scale, instead of `domain`.
        look: Properties of the axis.
    """
    if domain is not None:
        scale = {"domain": list(domain), "nice": False}
    return {
        "field": field,
        "type": "quantitative",
        "scale": dict(scale or {}),
        "axis": plain_axis(title, **look),
    }


def category(
    field: str,
    names: Sequence[str] | Sequence[int],
    title: str | None = None,
    *,
    padding: float | None = 0.25,
    **look: Any,
) -> dict[str, Any]:
    """A channel for names, in order.

    Args:
        field: Name in the rows.
        names: From left to right, or from top to bottom.
        title: Of the axis.
        padding: Between two of them, as a share of their distance; None for Vega's default.
        look: Properties of the axis.
    """
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(names)} | ({} if padding is None else {"padding": padding}),
        "axis": plain_axis(title, **look),
    }


def packed(part: Any) -> Any:
    """A specification whose rows name their columns once instead of in every row.

    A map of a matrix has ten thousand rows; `charts.js` restores the names.
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
    """A hover box of the texts `tip_0`, `tip_1`, ... with their titles."""
    return [
        {"field": f"tip_{index}", "type": "nominal", "title": title}
        for index, title in enumerate(titles)
    ]


def arm_colours(arms: Sequence[str]) -> dict[str, Any]:
    """Encoding of a colour for each arm; the legend is in the HTML."""
    colours = [f"var(--arm-{index % NUM_COLOURS})" for index in range(len(arms))]
    return {
        "field": "arm",
        "type": "nominal",
        "scale": {"domain": list(arms), "range": colours},
        "legend": None,
    }


def plain_axis(title: str | None, **more: Any) -> dict[str, Any]:
    """An axis without ticks and line."""
    return {"title": title, "ticks": False, "domain": False, **more}
