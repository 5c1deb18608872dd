"""The text that `trimtab mask structure` prints: units against chance, stripes, shared units."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from trimtab.masks.structure_result import Family, MaskStructure, Structure, Unit
from trimtab.report.structure_wording import (
    FAMILY_NAMES,
    NULLS,
    correlation_text,
    dispersion_text,
    family_name,
    left_out_text,
    mask_labels,
    mask_sentence,
    ratio_text,
    shared_p_text,
    spread_text,
    stripes_by_kind,
    tested_sentence,
    unit_name,
    z_text,
)
from trimtab.report.table import aligned, wrapped
from trimtab.report.wording import magnitude, named, printable

__all__ = ["render_structure_table"]

_NUM_TOP = 5


def render_structure_table(
    structure: Structure, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw the structure of masks as text.

    Args:
        structure: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold, dim and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    labels = mask_labels(structure)
    shown = labels if len(labels) > 1 else [""]
    parts = [_opening(structure, width, styled=styled)]
    for label, of in zip(shown, structure.masks, strict=True):
        parts += [
            _families(label, of, width, styled=styled),
            _matched(label, of, width, styled=styled),
            _stripes(label, of, width, styled=styled),
            _top(label, of, width, styled=styled),
        ]
    parts.append(_shared(structure, labels, width, styled=styled))
    return "\n\n".join(part for part in parts if part)


def _opening(structure: Structure, width: int, *, styled: bool) -> str:
    lines = [
        line
        for of in structure.masks
        for line in wrapped(mask_sentence(of), width, "1", styled=styled)
    ]
    source = "no config" if structure.config is None else printable(structure.config)
    base = "" if structure.base is None else f"; base weights: {printable(structure.base.id)}"
    lines += wrapped(f"Head counts: {source}{base}.", width, "", styled=styled)
    lines += wrapped(tested_sentence(), width, "2", styled=styled)
    for gap in structure.left_out:
        lines += wrapped(f"{left_out_text(gap)}.", width, "33", styled=styled)
    return "\n".join(lines)


def _titled(title: str, lines: Iterable[str], width: int, *, styled: bool) -> str:
    heading, *rows = lines
    first = f"\x1b[2m{heading}\x1b[0m" if styled else heading
    return "\n".join([*wrapped(title, width, "1", styled=styled), first, *rows])


def _families(label: str, of: MaskStructure, width: int, *, styled: bool) -> str:
    if not of.families:
        return ""
    columns: dict[str, list[str]] = {
        "units": [family_name(f) for f in of.families],
        "number": [f"{f.num_units:,}" for f in of.families],
        "more": [f"{f.null.num_up:,}" for f in of.families],
        "fewer": [f"{f.null.num_down:,}" for f in of.families],
        "mean z²": [dispersion_text(f.null.overdispersion) for f in of.families],
        "control": [dispersion_text(f.control.overdispersion) for f in of.families],
        "spread": [spread_text(f.null.spread) for f in of.families],
        "Gini": [magnitude(f.concentration.gini) for f in of.families],
        "of control": [magnitude(f.control_concentration.gini) for f in of.families],
    }
    title = named(label, f"Against chance with {NULLS['tensor']}")
    return _titled(title, aligned(columns, width), width, styled=styled)


def _matched(label: str, of: MaskStructure, width: int, *, styled: bool) -> str:
    rows = [(family, family.matched) for family in of.families if family.matched is not None]
    if not rows:
        return ""
    columns = {
        "units": [family_name(f) for f, _ in rows],
        "number": [f"{f.num_units:,}" for f, _ in rows],
        "more": [f"{test.num_up:,}" for _, test in rows],
        "fewer": [f"{test.num_down:,}" for _, test in rows],
        "mean z²": [dispersion_text(test.overdispersion) for _, test in rows],
        "spread": [spread_text(test.spread) for _, test in rows],
        "z² by magnitude alone": [dispersion_text(f.from_magnitude) for f, _ in rows],
    }
    title = named(label, f"Against chance with {NULLS['magnitude']}")
    return _titled(title, aligned(columns, width), width, styled=styled)


def _stripes(label: str, of: MaskStructure, width: int, *, styled: bool) -> str:
    kinds = stripes_by_kind(of.tensors)
    if not kinds:
        return ""
    columns: dict[str, list[str]] = {"kind": [printable(kind) for kind in kinds]}
    has_base = any(stripes.mean("rows", "matched") is not None for stripes in kinds.values())
    for axis in ("rows", "columns"):
        columns[f"{axis} z²"] = [
            dispersion_text(s.mean(axis, "dispersion")) for s in kinds.values()
        ]
        columns[f"{axis} control"] = [
            dispersion_text(s.mean(axis, "control")) for s in kinds.values()
        ]
        if has_base:
            columns[f"{axis} matched"] = [
                dispersion_text(s.mean(axis, "matched")) for s in kinds.values()
            ]
        columns[f"{axis} spread"] = [spread_text(s.spread(axis)) for s in kinds.values()]
    title = named(label, "Stripes: rows and columns of matrices, mean of each kind")
    return _titled(title, aligned(columns, width), width, styled=styled)


def _top(label: str, of: MaskStructure, width: int, *, styled: bool) -> str:
    rows = [(family, unit) for family in of.families for unit in _furthest(family)]
    if not rows:
        return ""
    columns = {
        "unit": [unit_name(family.name, unit) for family, unit in rows],
        "selected": [f"{unit.num_selected:,}" for _, unit in rows],
        "elements": [f"{unit.num_elements:,}" for _, unit in rows],
        "of expected": [ratio_text(unit.num_selected, unit.expected) for _, unit in rows],
        "z": [z_text(unit.z) for _, unit in rows],
    }
    if any(unit.matched_z is not None for _, unit in rows):
        columns["matched z"] = [z_text(unit.matched_z) for _, unit in rows]
    columns["control z"] = [z_text(unit.control_z) for _, unit in rows]
    title = named(label, f"Units with the highest z, {_NUM_TOP} of each family")
    return _titled(title, aligned(columns, width), width, styled=styled)


def _furthest(family: Family) -> list[Unit]:
    tested = [unit for unit in family.units if unit.z is not None]
    return sorted(tested, key=lambda unit: -(unit.z or 0.0))[:_NUM_TOP]


def _shared(structure: Structure, labels: list[str], width: int, *, styled: bool) -> str:
    if not structure.shared:
        return ""
    columns: dict[str, list[str]] = {}
    for shared in structure.shared:
        strictest = shared.common[-1].null
        cells = {
            "units": FAMILY_NAMES.get(shared.family, printable(shared.family)),
            "of": f"{labels[shared.first]}, {labels[shared.second]}",
            "rank correlation": correlation_text(shared.spearman),
            "control": correlation_text(shared.control_spearman),
        }
        if structure.base is not None:
            cells["matched"] = correlation_text(shared.matched_spearman)
        for common in shared.common:
            if common.null == strictest:
                word = "more" if common.direction == "up" else "fewer"
                cells[f"{word} in both"] = f"{common.num_common:,}"
                cells[f"chance of {word}"] = f"{common.chance:,.1f}"
                cells[f"p of {word}"] = shared_p_text(common.log10_p)
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return _titled("Do masks favour the same units?", aligned(columns, width), width, styled=styled)
