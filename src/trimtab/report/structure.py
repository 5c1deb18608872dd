"""Sections of the page on where masks live: units against chance, and what masks share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trimtab.masks.structure_result import Family, MaskStructure, Structure, Unit
from trimtab.report.blocks import Column, Figure, Key, Section, Table, run_column, table
from trimtab.report.charts import nice_ceiling
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.structure_charts import ordered_units, unit_grid
from trimtab.report.structure_wording import (
    FAMILY_NAMES,
    NULLS,
    correlation_text,
    dispersion_text,
    family_name,
    left_out_text,
    mask_labels,
    opened,
    p_text,
    ratio_text,
    shared_p_text,
    spread_text,
    tested_sentence,
    unit_name,
    unit_word,
    z_text,
)
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import magnitude, named, printable

__all__ = ["clustering", "in_order", "layer_grids", "not_counted", "origins", "sharing"]

Labelled = Sequence[tuple[str, MaskStructure]]
"""Each mask under its label, which is empty where there is only one."""

_GRIDS = ("head", "kv_group", "expert")
_NUM_UNITS = 30
_SHOWN_RANKS = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
_TEST: tuple[Column, ...] = (
    ("units", "number"),
    ("more", "number"),
    ("fewer", "number"),
    ("mean z²", "number"),
    ("spread", "number"),
)


def clustering(masks: Labelled) -> Section:
    """Every family against both nulls, with the random control beside it."""
    run = run_column(label for label, _ in masks)
    families = [(label, family) for label, of in masks for family in of.families]
    blocks = [
        table(
            f"Against chance with {NULLS['tensor']}",
            [
                *run,
                ("family", "text"),
                *_TEST,
                ("mean z² of control", "number"),
                ("Gini", "number"),
                ("Gini of control", "number"),
                ("entropy", "number"),
                ("entropy of control", "number"),
            ],
            [
                (
                    *_run(label),
                    family_name(family),
                    f"{family.num_units:,}",
                    f"{family.null.num_up:,}",
                    f"{family.null.num_down:,}",
                    dispersion_text(family.null.overdispersion),
                    spread_text(family.null.spread),
                    dispersion_text(family.control.overdispersion),
                    magnitude(family.concentration.gini),
                    magnitude(family.control_concentration.gini),
                    _entropy(family.concentration.entropy),
                    _entropy(family.control_concentration.entropy),
                )
                for label, family in families
            ],
            is_folded=False,
            note="Gini is 0 and entropy 1 where all units have the same count. Those of the "
            "control are not quite so, since tensors differ in how much of them is selected.",
        )
    ]
    matched = [(label, family, family.matched) for label, family in families if family.matched]
    if matched:
        blocks.append(
            table(
                f"Against chance with {NULLS['magnitude']}",
                [*run, ("family", "text"), *_TEST, ("z² by magnitude alone", "number")],
                [
                    (
                        *_run(label),
                        family_name(family),
                        f"{family.num_units:,}",
                        f"{test.num_up:,}",
                        f"{test.num_down:,}",
                        dispersion_text(test.overdispersion),
                        spread_text(test.spread),
                        dispersion_text(family.from_magnitude),
                    )
                    for label, family, test in matched
                ],
                is_folded=False,
                note="A weight changes only if a step is large beside it, so masks favour units of "
                "small weights. Here that is taken out: what is left is no matter of magnitude. "
                "“z² by magnitude alone” is the mean z² of the table above that a mask would have "
                "which is random but for the magnitudes of its weights.",
            )
        )
    return Section("Do units cluster?", (tested_sentence(),), tuple(blocks))


def layer_grids(masks: Labelled) -> Section | None:
    """Heads, KV groups and experts by layer: selected / expected."""
    blocks: list[Figure] = []
    for label, of in masks:
        for family in of.families:
            if family.name in _GRIDS and family.has_all_units:
                blocks.append(_grid(label, family, is_matched=False))
                if family.matched is not None:
                    blocks.append(_grid(label, family, is_matched=True))
    return Section("Heads and layers", blocks=tuple(blocks)) if blocks else None


def _grid(label: str, family: Family, *, is_matched: bool) -> Figure:
    rows: list[dict[str, Any]] = []
    for unit in family.units:
        expected, z = _expected(unit, is_matched)
        if not expected or unit.layer is None:
            continue
        ratio = unit.num_selected / expected
        rows.append(
            {
                "layer": str(unit.layer),
                "unit": str(unit.index),
                "direction": "more" if ratio >= 1 else "fewer",
                "apart": round(abs(ratio - 1), 4),
                "tip_0": str(unit.layer),
                "tip_1": str(unit.index),
                "tip_2": f"{unit.num_selected:,} of {unit.num_elements:,}",
                "tip_3": ratio_text(unit.num_selected, expected),
                "tip_4": z_text(z),
                "tip_5": z_text(unit.control_z),
            }
        )
    strongest = nice_ceiling(max((row["apart"] for row in rows), default=0.0))
    name = unit_word(family.name)
    title = f"{opened(family_name(family))}, by tensor{' × exponent' if is_matched else ''}"
    what = NULLS["magnitude" if is_matched else "tensor"]
    return Figure(
        title=named(label, title),
        spec=unit_grid(
            rows,
            sorted({unit.layer for unit in family.units if unit.layer is not None}),
            sorted({unit.index for unit in family.units}),
            unit=name,
            strongest=strongest,
        ),
        reading=(
            f"Each cell is one {name}: the stronger its colour, the further its selected elements "
            f"are from what chance with {what} expects. A cell without colour has what is expected."
        ),
        table=_units_table(family, is_matched),
        keys=(
            Key("dot-0", f"more than expected, up to {1 + strongest:g} ×"),
            Key("dot-1", f"fewer, down to {max(0.0, 1 - strongest):g} ×"),
        ),
    )


def _expected(unit: Unit, is_matched: bool) -> tuple[float | None, float | None]:
    """Expected count and z under one of the nulls."""
    if is_matched:
        return unit.matched_expected, unit.matched_z
    return unit.expected, unit.z


def _units_table(family: Family, is_matched: bool) -> Table:
    tested = [unit for unit in family.units if _expected(unit, is_matched)[1] is not None]
    tested.sort(key=lambda unit: -abs(_expected(unit, is_matched)[1] or 0.0))
    cells = []
    for unit in tested:
        expected, z = _expected(unit, is_matched)
        q = unit.matched_q if is_matched else unit.q
        cells.append(
            (
                unit_name(family.name, unit),
                f"{unit.num_selected:,}",
                f"{unit.num_elements:,}",
                f"{expected or 0:,.1f}",
                ratio_text(unit.num_selected, expected),
                z_text(z),
                p_text(q),
                z_text(unit.control_z),
            )
        )
    return table(
        f"{opened(family_name(family))} furthest from chance",
        [
            ("unit", "text"),
            ("selected", "number"),
            ("elements", "number"),
            ("expected", "number"),
            ("of expected", "number"),
            ("z", "number"),
            ("q", "number"),
            ("z of control", "number"),
        ],
        cells,
        limit=_NUM_UNITS,
    )


def in_order(masks: Labelled) -> Section | None:
    """The units of each family in the order of selected / expected."""
    blocks: list[Figure | Table] = []
    names = dict.fromkeys(family.name for _, of in masks for family in of.families)
    for name in names:
        found = [
            (label, family) for label, of in masks for family in of.families if family.name == name
        ]
        if any(family.curve for _, family in found):
            blocks += [_ordered(name, found), *_furthest(name, found)]
    return Section("Units in order", blocks=tuple(blocks)) if blocks else None


def _ordered(name: str, found: Sequence[tuple[str, Family]]) -> Figure:
    rows: list[dict[str, Any]] = []
    control: list[dict[str, Any]] = []
    cells = []
    for label, family in found:
        points = family.curve
        shown = {points[round(share * (len(points) - 1))].rank for share in _SHOWN_RANKS if points}
        for point in points:
            texts = (
                f"{point.rank:,} of {family.num_units:,}",
                f"{point.num_selected:,}",
                ratio_text(point.num_selected, point.expected),
                ratio_text(point.control_num_selected, point.control_expected),
            )
            tips = {f"tip_{at}": text for at, text in enumerate((label or "mask", *texts))}
            ratio = round(point.num_selected / point.expected, 4)
            of_control = round(point.control_num_selected / point.control_expected, 4)
            rows.append({"arm": label, "rank": point.rank, "ratio": ratio, **tips})
            control.append({"arm": label, "rank": point.rank, "ratio": of_control})
            if point.rank in shown:
                cells.append((*_run(label), *texts))
    highest = nice_ceiling(max((row["ratio"] for row in [*rows, *control]), default=1.0))
    labels = [label for label, _ in found]
    several = [Key(f"dot-{at % NUM_COLOURS}", label) for at, label in enumerate(labels) if label]
    units = FAMILY_NAMES.get(name, printable(name))
    return Figure(
        title=opened(units),
        spec=ordered_units(rows, control, labels, units=units, highest=highest),
        reading=(
            "Each mask's units from the fullest to the emptiest, by selected / expected with "
            "as many elements in each tensor. If nothing clustered, the line would lie on that of "
            "the random control; where every unit had exactly its share, on the dashed one."
        ),
        table=table(
            "The same as numbers",
            [
                *run_column(labels),
                ("rank", "number"),
                ("selected", "number"),
                ("of expected", "number"),
                ("of expected, control", "number"),
            ],
            cells,
        ),
        keys=(
            *(several or [Key("dot-0", "mask")]),
            Key("dot-ink", "random control"),
            Key("dashed", "every unit its share"),
        ),
    )


def _furthest(name: str, found: Sequence[tuple[str, Family]]) -> list[Table]:
    """Tables of single units, for families that no grid has."""
    if name in _GRIDS:
        return []
    return [
        replace(one, title=named(label, one.title))
        for label, family in found
        for one in (_units_table(family, False),)
    ]


def sharing(structure: Structure) -> Section | None:
    """Whether masks favour the same units; None for a single mask."""
    if not structure.shared:
        return None
    labels = mask_labels(structure)
    correlations = table(
        "Rank correlation of z over units",
        [
            ("family", "text"),
            ("masks", "text"),
            ("units", "number"),
            ("tensor", "number"),
            ("magnitude", "number"),
            ("controls", "number"),
        ],
        [
            (
                FAMILY_NAMES.get(shared.family, printable(shared.family)),
                f"{labels[shared.first]}, {labels[shared.second]}",
                f"{shared.num_units:,}",
                correlation_text(shared.spearman),
                correlation_text(shared.matched_spearman),
                correlation_text(shared.control_spearman),
            )
            for shared in structure.shared
        ],
        is_folded=False,
        note="Spearman's: 1 if both masks rank units alike, 0 if they know nothing of each other. "
        "Under “tensor” a unit of small weights is high in every mask; under “magnitude” that is "
        "taken out. “Controls” are the masks' random controls.",
    )
    common = table(
        "Significant units that two masks have in common",
        [
            ("family", "text"),
            ("masks", "text"),
            ("null", "text"),
            ("", "text"),
            ("first", "number"),
            ("second", "number"),
            ("both", "number"),
            ("chance", "number"),
            ("p", "number"),
        ],
        [
            (
                FAMILY_NAMES.get(shared.family, printable(shared.family)),
                f"{labels[shared.first]}, {labels[shared.second]}",
                printable(row.null),
                "more" if row.direction == "up" else "fewer",
                f"{row.num_first:,}",
                f"{row.num_second:,}",
                f"{row.num_common:,}",
                f"{row.chance:,.1f}",
                shared_p_text(row.log10_p),
            )
            for shared in structure.shared
            for row in shared.common
        ],
        is_folded=False,
        note="Chance is what two independent sets of these sizes would share, and p the two-sided "
        "probability of a number as far from it.",
    )
    return Section("Do masks share units?", blocks=(correlations, common))


def not_counted(structure: Structure) -> Section:
    """What belongs to no unit, and why."""
    sentences = tuple(f"{opened(left_out_text(gap))}." for gap in structure.left_out)
    nothing = ("Every tensor's rows and columns belong to units.",)
    return Section("Coverage", sentences or nothing)


def origins(structure: Structure, masks: Labelled) -> Section:
    """Masks, base, and how it was counted."""
    blocks = []
    if structure.base is not None:
        blocks.append(checkpoints_table({"base": structure.base}, "Base"))
    for label, of in masks:
        told = {**vars(of.mask), "id": of.mask.id or "not from a file"}
        told["seed of control"] = of.control_seed
        blocks.append(settings_table(named(label, "Mask"), told, is_folded=bool(label)))
    run = {"head counts": structure.config or "no config", **structure.provenance}
    blocks.append(settings_table("Run", run, is_folded=False))
    return Section("Provenance", blocks=tuple(blocks))


def _run(label: str) -> tuple[str, ...]:
    return (label,) if label else ()


def _entropy(value: float | None) -> str:
    if value is None:
        return "–"
    return "> 0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"
