"""Sections of the page of an overlap on what its figures speak of and where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trimtab.masks.overlap_result import COVERAGE_LISTS, Overlap
from trimtab.report.blocks import Section, table
from trimtab.report.overlap_wording import (
    letters,
    mask_names,
    overlap_coverage_sentence,
    selected,
)
from trimtab.report.records import checkpoints_table, listed, settings_table

__all__ = ["overlap_coverage", "overlap_provenance"]

_TITLES = {
    "not_compared": "Not in all masks, not compared",
    "other_base": "Made against different bases",
}


def overlap_coverage(overlap: Overlap) -> Section:
    """What was compared and what was not; every gap is listed."""
    coverage = overlap.coverage
    blocks = [
        listed(_TITLES[name], _flat(rows, letters(overlap)))
        for name in COVERAGE_LISTS
        if (rows := getattr(coverage, name))
    ]
    sentence = f"Coverage is {overlap_coverage_sentence(overlap)}."
    return Section("Coverage", (sentence,), tuple(blocks), not coverage.is_complete)


def _flat(rows: Iterable[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with a column for each mask, in place of a list of what is true of each."""
    flat = []
    for row in rows:
        told = {key: value for key, value in row.items() if key not in ("num_selected", "base")}
        if "num_selected" in row:
            counts = zip(names, row["num_selected"], strict=True)
            told |= {f"num_selected in {name}": count for name, count in counts}
        else:
            bases = zip(names, row["base"], strict=True)
            told |= {f"base of {name}": base and base["digest"] for name, base in bases}
        flat.append(told)
    return flat


def overlap_provenance(overlap: Overlap) -> Section:
    """The masks and how they were made, the base, and how the overlap was run."""
    masks = table(
        "Masks",
        [("", "text"), ("file", "code"), ("selected", "text"), ("digest", "code")],
        [
            (letter, name, told, mask.digest)
            for letter, name, told, mask in zip(
                letters(overlap), mask_names(overlap), selected(overlap), overlap.masks, strict=True
            )
        ],
        is_folded=False,
    )
    made = [
        settings_table(f"How {letter} was made", mask.provenance, is_folded=True)
        for letter, mask in zip(letters(overlap), overlap.masks, strict=True)
    ]
    base = [] if overlap.base is None else [checkpoints_table({"base": overlap.base}, "Base")]
    run = settings_table("Overlap", overlap.provenance, is_folded=False)
    return Section("Provenance", blocks=(masks, *made, *base, run))
