"""Charts of several kinds of results. Parts of charts are in `vega`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, TypeVar

from trimtab.report import vega
from trimtab.report.document import Column, Key, Keyed
from trimtab.report.wording import kinds_in_order, printable

Row = TypeVar("Row")


@dataclass(frozen=True)
class Marks:
    """The data of a chart.

    Attributes:
        rows: The data; `tip_0`, `tip_1`, ... are the texts of the hover box.
        titles: Titles of these texts.
    """

    rows: list[dict[str, Any]]
    titles: tuple[str, ...] = ()

    @property
    def tooltip(self) -> list[dict[str, str]]:
        """Encoding of the hover box."""
        return vega.hover_box(*self.titles)

    def values(self, *fields: str) -> list[float]:
        """All numbers of some fields."""
        return [row[field] for row in self.rows for field in fields]


def marks_of(
    rows: Iterable[Keyed[Row]],
    keys: Sequence[str],
    hover: Sequence[Column[Row]],
    fields_of: Callable[[Sequence[str], Row], dict[str, Any] | None],
) -> Marks:
    """The marks of the rows of a table; the hover box shows cells of the table.

    Args:
        rows: As for `document.table`.
        keys: Headings of the names of a row.
        hover: The columns that the hover box shows.
        fields_of: Makes the fields of a mark from a row; None for a row without a mark.
    """
    placed = [(names, row, fields) for names, row in rows if (fields := fields_of(names, row))]
    used = [at for at in range(len(keys)) if any(names[at] for names, _, _ in placed)]
    drawn = []
    for names, row, fields in placed:
        tips = (*(printable(names[at]) for at in used), *(column.cell(row) for column in hover))
        drawn.append({**fields, **{f"tip_{at}": text for at, text in enumerate(tips)}})
    return Marks(drawn, (*(keys[at] for at in used), *(column.heading for column in hover)))


def run_keys(
    labels: Iterable[str], runs: Sequence[str], *, single: str = "", before: str = ""
) -> tuple[Key, ...]:
    """Legend of the runs' colours.

    Args:
        labels: Labels of the runs that are drawn.
        runs: Labels of all runs of the page, in order.
        single: Text for a single run without a label.
        before: Prefix of each label.
    """
    return tuple(
        Key(
            f"dot-{runs.index(label) % vega.NUM_COLOURS}",
            f"{before} {printable(label)}".strip() or single,
        )
        for label in labels
    )


def nice_ceiling(value: float) -> float:
    """The smallest number >= value that is 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    steps = (1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    return next((step * power for step in steps if value <= step * power), 10 * power)


def percent_floor(values: Sequence[float]) -> float:
    """Start of a percent axis that ends at 100 and contains all values."""
    lowest = min(values, default=100.0)
    return 0.0 if lowest < 40 else float(max(0, 5 * floor((lowest - 2) / 5)))


def heat_map(marks: Marks, layers: Sequence[int], highest: float) -> dict[str, Any]:
    """Update density of every layer × kind, shaded from 0 to `highest` percent.

    Args:
        marks: `layer` (text; `out` beyond the layers), `kind`, `density` in percent.
        layers: Columns, ascending.
        highest: The percentage drawn in full colour.
    """
    kinds = kinds_in_order(row["kind"] for row in marks.rows)
    columns = [str(layer) for layer in layers]
    every = 1 if len(columns) <= 36 else 5
    labels = [name for name in columns[: len(columns) - 2 * (every > 1)] if int(name) % every == 0]
    if any(row["layer"] == "out" for row in marks.rows):
        columns += [" ", "out"] if columns else ["out"]
        labels.append("out")
    names = 20 + 7 * min(20, max(map(len, kinds)))
    look: dict[str, Any] = {"values": labels, "labelAngle": 0, "labelOverlap": False}
    return vega.chart(
        marks.rows,
        width=min(vega.WIDTH, names + 40 * len(columns)),
        height=22 * len(kinds),
        mark={"type": "rect", "fill": "var(--accent)", "stroke": "var(--rule)", "cursor": "help"},
        encoding={
            "x": vega.category("layer", columns, "layer", padding=0.04, **look),
            "y": vega.category("kind", kinds, padding=0.04),
            "fillOpacity": {
                "field": "density",
                "type": "quantitative",
                "scale": {"domain": [0, highest], "range": [0, 1]},
                "legend": None,
            },
            "tooltip": marks.tooltip,
        },
    )


def tolerance_sweep(marks: Marks, labels: Sequence[str], smallest: float) -> dict[str, Any]:
    """Update sparsity against absolute tolerance, on a log axis with 0 at its left end.

    Args:
        marks: `arm`, `tolerance`, `unchanged` in percent, and `label` as text.
        labels: Of the runs, in order.
        smallest: The smallest tolerance above 0; 0 is drawn one decade below it.
    """
    zero = smallest / 10
    rows = [{**row, "place": row["tolerance"] or zero} for row in marks.rows]
    highest = max(row["place"] for row in rows)
    decades = range(ceil(log10(smallest) - 1e-9), ceil(log10(highest) - 1e-9) + 1)
    x = vega.quantity(
        "place",
        "absolute tolerance",
        scale={"type": "log", "domain": [zero / 2.5, 10.0 ** decades[-1] * 2.5], "nice": False},
        values=[zero, *(10.0**decade for decade in decades)],
        labelExpr=f"datum.value < {smallest / 2!r} ? '0' : format(datum.value, '~e')",
        grid=False,
    )
    scale = {"domain": [percent_floor(marks.values("unchanged")), 100]}
    places = {"x": x, "y": vega.quantity("unchanged", "unchanged (%)", scale=scale, tickCount=6)}
    coloured = {**places, "color": vega.arm_colours(labels)}
    names = [
        vega.layer(
            "text",
            {**places, "text": {"field": "label", "type": "nominal"}},
            where={"field": "arm", "equal": label},
            align="left" if place % 2 else "right",
            dx=-8 if place % 2 else 8,
            dy=17 if place % 2 else -13,
            fontSize=11,
            fill="var(--soft)",
        )
        for place, label in enumerate(labels)
    ]
    joint = [row for row in rows if row["place"] <= smallest]
    above = [row for row in rows if row["tolerance"]]
    return vega.chart(
        rows,
        vega.layer("line", coloured, rows=joint, strokeDash=[3, 4], strokeWidth=1.5),
        vega.layer("line", coloured, rows=above, strokeWidth=2),
        vega.dots({**coloured, "tooltip": marks.tooltip}, 70),
        *names,
        height=240,
    )


def ulp_histogram(marks: Marks, labels: Sequence[str], distances: Sequence[str]) -> dict[str, Any]:
    """Changed elements by signed distance in ulp.

    Args:
        marks: `arm`, `distance`, `changed`.
        labels: Of the runs, in order.
        distances: Bins in ascending order.
    """
    below = [label for label in distances if label.startswith("-")]
    is_crowded = len(distances) >= 40
    places: dict[str, Any] = {
        "x": {
            "field": "distance",
            "type": "nominal",
            "scale": {"domain": [*below, " ", *distances[len(below) :]], "paddingInner": 0.16},
            "axis": vega.plain_axis(
                "distance in ulp (steps of the stored number format)",
                values=list(distances),
                labelAngle=-90 if is_crowded else -55,
                labelOverlap=is_crowded,
            ),
        }
    }
    if len(labels) > 1:
        places["xOffset"] = {"field": "arm", "type": "nominal", "scale": {"domain": list(labels)}}
    y = {
        "type": "quantitative",
        "axis": vega.plain_axis("changed elements", format="~s", tickCount=5),
    }
    tallest = {"datum": max(marks.values("changed"), default=0), **y}
    bars = {**places, "y": {"field": "changed", **y}, "color": vega.arm_colours(labels)}
    return vega.chart(
        marks.rows,
        vega.layer("bar", bars),
        # Invisible bars of full height, so that short bars can be hovered over.
        vega.layer("bar", {**places, "y": tallest, "tooltip": marks.tooltip}, opacity=0),
        height=230,
    )


def reference_dots(
    marks: Marks,
    labels: Sequence[str],
    *,
    axis: str,
    domain: tuple[float, float],
    runs: Sequence[str] = (),
) -> dict[str, Any]:
    """A measured percentage of each name as a dot, over its reference as a tick.

    Args:
        marks: `arm`, `name`, and in percent `measured` and `reference`; `from` and `to` too for
            a bar that shows a range.
        labels: Values of `arm`, in order.
        axis: Title of the axis.
        domain: Ends of the axis.
        runs: Labels of all runs of the page in order, for consistent colours; by default
            `labels`.
    """
    names = list(dict.fromkeys(row["name"] for row in marks.rows))
    place: dict[str, Any] = {"y": vega.category("name", names, labelLimit=220)}
    if len(labels) > 1:
        offset = {"field": "arm", "type": "nominal", "scale": {"domain": list(labels)}}
        place["yOffset"] = offset
    place["tooltip"] = marks.tooltip

    def x(field: str) -> dict[str, Any]:
        return vega.quantity(field, axis, domain, tickCount=6, labelFlush=False)

    layers = [
        vega.ticks({**place, "x": x("reference")}, size=15),
        vega.dots({**place, "x": x("measured"), "color": vega.arm_colours(runs or labels)}),
    ]
    if all("from" in row for row in marks.rows):
        ends = {**place, "x": x("from"), "x2": {"field": "to"}}
        layers.insert(0, vega.layer("bar", ends, height=7, fill="var(--span)", cornerRadius=3))
    height = max(26, 17 * len(labels)) * len(names)
    return vega.chart(marks.rows, *layers, height=height)


def accuracy_dots(
    marks: Marks, models: Sequence[str], labels: Sequence[str], *, baseline: float | None
) -> dict[str, Any]:
    """Held-out accuracy of each model, greedy (dot) and sampled (ring), each with its interval.

    Args:
        marks: `model`, `arm` (empty for the base), `way` (`greedy` or `sampled`), and in percent
            `accuracy`, `low`, `high`.
        models: Rows from top to bottom.
        labels: Of the runs, in order.
        baseline: Percentage of the majority answer, drawn as a dashed line.
    """
    colour = vega.arm_colours(labels)
    scale = colour["scale"]
    colour["scale"] = {
        "domain": ["", *scale["domain"]],
        "range": ["var(--soft)", *scale["range"]],
    }
    ways = {"domain": ["greedy", "sampled"]}
    places = {
        "y": vega.category("model", models, padding=0.3),
        "yOffset": {"field": "way", "type": "nominal", "scale": ways},
        "color": colour,
    }

    def x(field: str) -> dict[str, Any]:
        title = "held-out questions answered correctly (%)"
        return vega.quantity(
            field, title, scale={"domain": [0, 100]}, tickCount=6, labelFlush=False
        )

    def answers(way: str, **look: Any) -> dict[str, Any]:
        rows = [row for row in marks.rows if row["way"] == way]
        shown = {**places, "x": x("accuracy"), "tooltip": marks.tooltip}
        return vega.dots(shown, 80, rows=rows, strokeWidth=2, **look)

    return vega.chart(
        marks.rows,
        *([] if baseline is None else [vega.dashed_at(baseline, "x", x("rule"))]),
        vega.whiskers({**places, "x": x("low"), "x2": {"field": "high"}}),
        answers("greedy"),
        answers("sampled", filled=False, fill="var(--paper)"),
        height=42 * len(models),
    )


def lift_dots(marks: Marks, nulls: Sequence[str]) -> dict[str, Any]:
    """The lift of each name over each null, on a log axis with a rule at 1.

    Args:
        marks: `arm` (one of `nulls`), `name`, `lift` above 0.
        nulls: In the order of their colours.
    """
    lifts = marks.values("lift")
    names = list(dict.fromkeys(row["name"] for row in marks.rows))
    domain = [min([0.9, *lifts]) / 1.1, max([1.1, *lifts]) * 1.1]
    scale = {"type": "log", "domain": domain, "nice": False}
    title = "shared ÷ expected by chance (lift)"
    x = vega.quantity("lift", title, scale=scale, tickCount=6, format="~r")
    places = {
        "x": x,
        "y": vega.category("name", names, labelLimit=220),
        "color": vega.arm_colours(nulls),
        "tooltip": marks.tooltip,
    }
    return vega.chart(
        marks.rows,
        vega.layer("rule", {"x": x}, rows=[{"lift": 1}], color="var(--ink)", strokeWidth=1.5),
        vega.dots(places),
        height=26 * len(names),
    )


_MANY = 60
"""Number of points above which a line is drawn without dots."""


def shares_over_time(
    marks: Marks,
    names: Sequence[str],
    *,
    time: str,
    axis: str,
    domain: tuple[float, float],
    rule: float | None = None,
) -> dict[str, Any]:
    """A line for each of some shares of the weights.

    Args:
        marks: `arm` (one of `names`), `at` (step, or number of the point), `value` in percent.
        names: In the order of their colours.
        time: Title of the axis of `at`.
        axis: Title of the axis of values.
        domain: Ends of that axis.
        rule: A percentage to draw a dashed line at.
    """
    scale = {"nice": False, "zero": False}
    look: dict[str, Any] = {"grid": False, "tickMinStep": 1, "format": ",d", "labelFlush": False}
    y = vega.quantity("value", axis, domain, tickCount=5)
    places = {
        "x": vega.quantity("at", time, scale=scale, **look),
        "y": y,
        "color": vega.arm_colours(names),
    }
    is_dotted = len(marks.rows) <= _MANY * len(names)
    return vega.chart(
        marks.rows,
        *([] if rule is None else [vega.dashed_at(rule, "y", y)]),
        vega.layer("line", places, strokeWidth=2),
        vega.dots({**places, "tooltip": marks.tooltip}, 50, opacity=int(is_dotted)),
        height=200,
    )
