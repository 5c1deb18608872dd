"""Single units in the report of masks' structure: in a grid, and in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trimtab.masks.structure_result import CurvePoint, Family, MaskStructure, Unit
from trimtab.report import charts, vega, wording
from trimtab.report import document as doc
from trimtab.report.structure_matrices import opened

Labelled = Sequence[tuple[str, MaskStructure]]
"""Each mask with its label, which is empty for a single mask."""

FAMILY_NAMES: Mapping[str, str] = {
    "head": "attention heads",
    "kv_group": "KV groups",
    "neuron": "MLP neurons",
    "channel": "residual channels",
    "token": "vocabulary rows",
    "expert": "experts",
}
"""Family -> the name of its units."""

_SINGULAR = {
    "head": "head",
    "kv_group": "KV group",
    "neuron": "neuron",
    "channel": "channel",
    "token": "row",
    "expert": "expert",
}
NULLS = {
    "tensor": "the same number of elements in each tensor",
    "magnitude": "the same number of elements in each tensor × exponent of the base weight",
}
_GRIDS = ("head", "kv_group", "expert")
_NUM_TOP = 5
_NUM_UNITS = 30
_SHOWN_RANKS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


def ratio_text(num_selected: int, expected: float | None) -> wording.Shown:
    """Selected / expected: `1.24 ×`; a dash if nothing is expected."""
    return wording.shown(num_selected / expected if expected else None, lambda v: f"{v:.2f} ×")


def z_text(z: float | None) -> wording.Shown:
    """A z-score with its sign."""
    return wording.shown(z, lambda v: f"{v:+.1f}" if abs(v) < 1000 else f"{v:+,.0f}")


def p_text(p: float | None) -> wording.Shown:
    """A probability, or a bound if it underflows."""
    return wording.shown(p, lambda v: "< 1e-300" if v < 1e-300 else wording.magnitude(v))


def unit_name(family: str, unit: Unit) -> str:
    """`layer 3, head 5`."""
    layer = "" if unit.layer is None else f"layer {unit.layer}, "
    return f"{layer}{_unit_word(family)} {unit.index}"


def _unit_word(family: str) -> str:
    return _SINGULAR.get(family, wording.printable(family))


def units_name(family: str) -> str:
    """The name of the units of a family."""
    return FAMILY_NAMES.get(family, wording.printable(family))


def _expected(unit: Unit, is_matched: bool) -> tuple[float | None, float | None]:
    """Expected count and z under one of the nulls."""
    if is_matched:
        return unit.matched_expected, unit.matched_z
    return unit.expected, unit.z


_SELECTED = doc.Column[Unit]("selected", lambda unit: wording.count(unit.num_selected))
_ELEMENTS = doc.Column[Unit]("elements", lambda unit: wording.count(unit.num_elements), drop=1)
_SHARE = doc.Column[Unit](
    "selected", lambda unit: f"{unit.num_selected:,} of {unit.num_elements:,}"
)
_CONTROL = doc.Column[Unit]("z of control", lambda unit: z_text(unit.control_z))


def _figures(is_matched: bool) -> tuple[doc.Column[Unit], doc.Column[Unit]]:
    """Selected / expected and z under one of the nulls."""
    return (
        doc.Column(
            "of expected",
            lambda unit: ratio_text(unit.num_selected, _expected(unit, is_matched)[0]),
        ),
        doc.Column("z", lambda unit: z_text(_expected(unit, is_matched)[1])),
    )


def layer_grids(masks: Labelled) -> doc.Section | None:
    """Heads, KV groups and experts by layer: selected / expected."""
    blocks = [
        _grid(label, family, is_matched)
        for label, one in masks
        for family in one.families
        if family.name in _GRIDS and family.has_all_units
        for is_matched in (False, True)
        if not is_matched or family.matched is not None
    ]
    return doc.Section("Heads and layers", blocks=tuple(blocks)) if blocks else None


def _grid(label: str, family: Family, is_matched: bool) -> doc.Figure:
    name = _unit_word(family.name)
    rows = [
        ((str(unit.layer), str(unit.index)), unit)
        for unit in family.units
        if unit.layer is not None and _expected(unit, is_matched)[0]
    ]

    def place(names: Sequence[str], unit: Unit) -> dict[str, Any]:
        expected = _expected(unit, is_matched)[0]
        assert expected is not None
        ratio = unit.num_selected / expected
        direction = "more" if ratio >= 1 else "fewer"
        apart = round(abs(ratio - 1), 4)
        return {"layer": names[0], "unit": names[1], "direction": direction, "apart": apart}

    hover = (_SHARE, *_figures(is_matched), _CONTROL)
    marks = charts.marks_of(rows, ("layer", name), hover, place)
    strongest = charts.nice_ceiling(max(marks.values("apart"), default=0.0))
    title = f"{opened(units_name(family.name))}, by tensor{' × exponent' if is_matched else ''}"
    return doc.Figure(
        wording.named(label, title),
        lambda: _unit_grid(marks, family, strongest),
        f"Each cell is one {name}: the stronger its colour, the further its selected elements are "
        f"from what chance with {NULLS['magnitude' if is_matched else 'tensor']} expects. A cell "
        "without colour has what is expected.",
        _furthest(label, family, is_matched),
        (
            doc.Key("dot-0", f"more than expected, up to {1 + strongest:g} ×"),
            doc.Key("dot-1", f"fewer, down to {max(0.0, 1 - strongest):g} ×"),
        ),
    )


def _unit_grid(marks: charts.Marks, family: Family, strongest: float) -> dict[str, Any]:
    """Every unit of every layer: one colour for more than expected, another for fewer."""
    layers = sorted({unit.layer for unit in family.units if unit.layer is not None})
    units = sorted({unit.index for unit in family.units})
    every = 1 if len(layers) <= 36 else 5
    shown = [str(layer) for layer in layers if layer % every == 0]
    across: dict[str, Any] = {"values": shown, "labelAngle": 0, "labelOverlap": False}
    directions = {
        "field": "direction",
        "type": "nominal",
        "scale": {"domain": ["more", "fewer"], "range": ["var(--arm-0)", "var(--arm-1)"]},
        "legend": None,
    }
    return vega.chart(
        marks.rows,
        width=min(vega.WIDTH, 60 + 40 * len(layers)),
        height=(20 if len(units) <= 24 else 9) * len(units),
        mark={"type": "rect", "stroke": "var(--rule)", "cursor": "help"},
        encoding={
            "x": vega.category("layer", [*map(str, layers)], "layer", padding=0.04, **across),
            "y": vega.category(
                "unit", [*map(str, units)], _unit_word(family.name), padding=0.04, labelOverlap=True
            ),
            "fill": directions,
            "fillOpacity": {
                "field": "apart",
                "type": "quantitative",
                "scale": {"domain": [0, strongest], "range": [0, 1], "clamp": True},
                "legend": None,
            },
            "tooltip": marks.tooltip,
        },
    )


def _furthest(label: str, family: Family, is_matched: bool) -> doc.Table:
    """The single units furthest from one of the nulls, in either direction."""
    distances = [
        (abs(z), unit) for unit in family.units if (z := _expected(unit, is_matched)[1]) is not None
    ]
    distances.sort(key=lambda pair: -pair[0])
    title = f"{opened(units_name(family.name))} furthest from chance"
    if is_matched:
        title += " by tensor × exponent"
    return doc.table(
        wording.named(label, title),
        [((unit_name(family.name, unit),), unit) for _, unit in distances],
        (
            _SELECTED,
            _ELEMENTS,
            doc.Column(
                "expected", lambda unit: wording.shown(_expected(unit, is_matched)[0], ",.1f")
            ),
            *_figures(is_matched),
            doc.Column("q", lambda unit: p_text(unit.matched_q if is_matched else unit.q)),
            _CONTROL,
        ),
        keys=("unit",),
        limit=_NUM_UNITS,
    )


def in_order(masks: Labelled) -> doc.Section | None:
    """The units of each family in the order of selected / expected."""
    blocks: list[doc.Figure | doc.Table] = []
    for name in dict.fromkeys(family.name for _, one in masks for family in one.families):
        families = [
            (label, family)
            for label, one in masks
            for family in one.families
            if family.name == name
        ]
        if any(family.curve for _, family in families):
            blocks.append(_ordered(name, families))
            if name not in _GRIDS:
                blocks += [_furthest(label, family, False) for label, family in families]
    blocks += [highest for label, one in masks if (highest := _highest(label, one))]
    return doc.Section("Units in order", blocks=tuple(blocks)) if blocks else None


def _highest(label: str, one: MaskStructure) -> doc.Table | None:
    """The units with the highest z of every family, for a terminal."""
    rows = []
    for family in one.families:
        tested = [unit for unit in family.units if unit.z is not None]
        tested.sort(key=lambda unit: -(unit.z or 0.0))
        rows += [((unit_name(family.name, unit),), unit) for unit in tested[:_NUM_TOP]]
    if not rows:
        return None
    columns = [_SELECTED, _ELEMENTS, *_figures(False), _CONTROL]
    if any(unit.matched_z is not None for _, unit in rows):
        columns.insert(4, doc.Column("z by magnitude", lambda unit: z_text(unit.matched_z)))
    title = wording.named(label, f"Units with the highest z, {_NUM_TOP} of each family")
    return doc.table(title, rows, columns, keys=("unit",), brief=title, on_page=False)


_Ranked = tuple[Family, CurvePoint]
"""A family, and one of its units by rank."""

_CURVE = (
    doc.Column[_Ranked]("rank", lambda row: f"{row[1].rank:,} of {row[0].num_units:,}"),
    doc.Column[_Ranked]("selected", lambda row: wording.count(row[1].num_selected)),
    doc.Column[_Ranked](
        "of expected", lambda row: ratio_text(row[1].num_selected, row[1].expected)
    ),
    doc.Column[_Ranked](
        "of expected, control",
        lambda row: ratio_text(row[1].control_num_selected, row[1].control_expected),
    ),
)


def _ordered(name: str, families: Sequence[tuple[str, Family]]) -> doc.Figure:
    points = [((label,), (family, point)) for label, family in families for point in family.curve]
    marks = charts.marks_of(
        points,
        ("mask",),
        _CURVE,
        lambda names, row: {
            "arm": names[0],
            "rank": row[1].rank,
            "ratio": round(row[1].num_selected / row[1].expected, 4),
        },
    )
    control = [
        {
            "arm": names[0],
            "rank": point.rank,
            "ratio": round(point.control_num_selected / point.control_expected, 4),
        }
        for names, (_, point) in points
    ]
    labels = [label for label, _ in families]
    return doc.Figure(
        opened(units_name(name)),
        lambda: _ordered_units(marks, control, labels, f"{units_name(name)}, in order"),
        "Each mask's units from the fullest to the emptiest, by selected / expected with the same "
        "number of elements in each tensor. If nothing clustered, the line would lie on that of "
        "the random control; where every unit had exactly its share, on the dashed one.",
        doc.table(
            f"{opened(units_name(name))} in order",
            [
                ((label,), (family, point))
                for label, family in families
                for point in _at_shown_ranks(family)
            ],
            _CURVE,
            keys=("mask",),
        ),
        (
            *charts.run_keys(labels, labels, single="mask"),
            doc.Key("dot-ink", "random control"),
            doc.Key("dashed", "every unit its share"),
        ),
    )


def _at_shown_ranks(family: Family) -> Iterator[CurvePoint]:
    points = family.curve
    shown = {points[round(share * (len(points) - 1))].rank for share in _SHOWN_RANKS if points}
    return (point for point in points if point.rank in shown)


def _ordered_units(
    marks: charts.Marks, control: Sequence[dict[str, Any]], labels: Sequence[str], title: str
) -> dict[str, Any]:
    """Units in the order of selected / expected, over the same of random controls."""
    ratios = [row["ratio"] for row in (*marks.rows, *control)]
    scale = {"nice": False, "zero": False}
    x = vega.quantity("rank", title, scale=scale, grid=False, format=",d", labelFlush=False)
    highest = charts.nice_ceiling(max(ratios, default=1.0))
    y = vega.quantity("ratio", "selected / expected", (0, highest), tickCount=5)
    places = {"x": x, "y": y, "color": vega.arm_colours(labels)}
    controls = {"x": x, "y": y, "detail": {"field": "arm", "type": "nominal"}}
    return vega.chart(
        marks.rows,
        vega.dashed_at(1, "y", y),
        vega.layer("line", controls, rows=control, strokeWidth=1.5, color="var(--soft)"),
        vega.layer("line", places, strokeWidth=2),
        vega.dots({**places, "tooltip": marks.tooltip}, 60, opacity=0),
        height=200,
    )
