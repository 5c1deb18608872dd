"""Masks compared with chance, for the reports of overlaps and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.masks.overlap_chance import INDEPENDENT, MAGNITUDE, PER_TENSOR, AgainstNull
from trimtab.masks.overlap_result import COVERAGE_LISTS, LETTERS, Overlap
from trimtab.report.document import Column, Section, plain_table
from trimtab.report.records import listed, masks_provenance, settings_table
from trimtab.report.wording import NONE, Shown, count, share, shown
from trimtab.words import plural, were

MEASURED = "measured"
"""Name of the measured values among the nulls."""

_TITLES = {
    "not_compared": "Not in all masks, not compared",
    "other_base": "Made against different bases",
}
KEPT = {
    INDEPENDENT: "in all",
    PER_TENSOR: "in each tensor",
    MAGNITUDE: "in each tensor at each magnitude of the base's weights",
}
"""Null -> where it keeps the number of selected weights."""

NO_BASE = (
    "No base was given, so chance is not matched by magnitude: where rounding lets only small "
    "weights move, masks share small weights whatever was learned, and these lifts include that."
)

NULLS = (
    "Each null draws masks at random that select the same number of weights as these: "
    + "; ".join(f"{positions} ({null})" for null, positions in KEPT.items())
    + "."
)


def letters(overlap: Overlap) -> list[str]:
    """Names of the masks: A, B, C, ..."""
    return list(LETTERS[: len(overlap.masks)])


def ratio_text(ratio: float | None) -> Shown:
    """A share in percent; a dash for None."""
    return NONE if ratio is None else share(ratio, 1.0)


def lift_text(lift: float | None) -> Shown:
    """A lift to four digits; a dash for None."""
    return shown(lift, lambda v: f"{v:,.0f}" if v >= 1000 else f"{v:.4g}")


def z_text(z: float | None) -> Shown:
    """A number of standard deviations; a dash for None."""
    if z is None:
        return NONE
    text = f"{z:,.0f}" if abs(z) >= 100 else f"{z:.2f}"
    return Shown("0.00" if text == "-0.00" else text, z)


def count_text(expected: float) -> Shown:
    """An expected number of elements."""
    is_whole = expected >= 100 or expected == 0
    return Shown(f"{expected:,.0f}" if is_whole else f"{expected:.3g}", expected)


def probability_text(against: AgainstNull) -> Shown:
    """A probability; after ≈ if it is not exact."""
    log10_p = against.probability.log10_p
    if log10_p < -300:
        return Shown("<1e-300", 10**log10_p)
    sign = "" if against.probability.method == "exact" else "≈"
    return Shown(f"{sign}{10**log10_p:.2g}", 10**log10_p)


def coverage_sentence(overlap: Overlap) -> str:
    """Which elements of the masks were compared."""
    coverage = overlap.coverage
    if coverage.is_complete:
        return f"complete: all {coverage.num_compared:,} elements of the masks were compared"
    missed = [
        sum(row["num_selected"][place] or 0 for row in coverage.not_compared)
        for place in range(len(overlap.masks))
    ]
    gaps = ", ".join(
        f"{num:,} of {name}" for num, name in zip(missed, letters(overlap), strict=True)
    )
    return (
        f"INCOMPLETE: {were(coverage.num_compared, 'element')} compared; "
        f"{plural(len(coverage.not_compared), 'tensor')} not in all masks, with selected elements: "
        f"{gaps}"
    )


def other_base_sentence(overlap: Overlap) -> str | None:
    """A warning if the masks were made against different bases; None if none is known."""
    if not (others := overlap.coverage.other_base):
        return None
    return (
        f"The masks say that they were made against different bases, in "
        f"{len(others):,} of {plural(len(overlap.tensors), 'tensor')}: elements of one place were "
        "compared, whatever their weights were."
    )


def against_chance(overlap: Overlap) -> Section:
    """Two masks: what they share, compared with chance under each null."""
    shared = overlap.total()
    most = "“most” is what such masks can share at best."
    columns = (
        Column[Any]("", role="text"),
        *map(Column[Any], ("shared", "o1", "o2")),
        Column[Any]("Jaccard", drop=4),
        Column[Any]("lift", note="“lift” is shared / expected."),
        Column[Any]("z", note="“z” is the excess in standard deviations."),
        Column[Any](
            "p",
            drop=3,
            note="“p” is its two-sided probability, after “≈” by the normal distribution.",
        ),
        Column[Any]("most o1", drop=1, note=most),
        Column[Any]("most o2", drop=2, note=most),
    )
    measured = (MEASURED, count(shared.intersection), *map(ratio_text, shared.ratios), *5 * ("",))
    expected = [
        (
            null,
            count_text(against.expected),
            *map(ratio_text, against.chance),
            lift_text(against.lift),
            z_text(against.z),
            probability_text(against),
            ratio_text(against.ceiling.o1),
            ratio_text(against.ceiling.o2),
        )
        for null, against in shared.nulls.items()
    ]
    title = "Measured, and expected under each null"
    numbers = plain_table(
        title, columns, [measured, *expected], is_folded=False, note=NULLS, brief=""
    )
    return Section("More than chance?", blocks=(numbers,))


def overlap_coverage(overlap: Overlap) -> Section:
    """What was compared and what was not; every gap is listed."""
    coverage = overlap.coverage
    blocks = [
        listed(_TITLES[name], _flat(rows, letters(overlap)))
        for name in COVERAGE_LISTS
        if (rows := getattr(coverage, name))
    ]
    sentence = f"Coverage is {coverage_sentence(overlap)}."
    return Section("Coverage", (sentence,), tuple(blocks), not coverage.is_complete)


def _flat(rows: Iterable[Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with a column for each mask instead of a list."""
    flat = []
    for row in rows:
        cells = {key: value for key, value in row.items() if key not in ("num_selected", "base")}
        if "num_selected" in row:
            counts = zip(names, row["num_selected"], strict=True)
            cells |= {f"num_selected in {name}": count for name, count in counts}
        else:
            bases = zip(names, row["base"], strict=True)
            cells |= {f"base of {name}": base and base["digest"] for name, base in bases}
        flat.append(cells)
    return flat


def overlap_provenance(overlap: Overlap) -> Section:
    """Provenance of the masks, the base and the overlap."""
    masks = dict(zip(letters(overlap), overlap.masks, strict=True))
    return masks_provenance(masks, overlap.base, settings_table("Overlap", overlap.provenance))


def times_sentence(lifts: Mapping[Any, float | None], chances: Mapping[Any, str]) -> str:
    """Lifts in one sentence; empty without lifts.

    Args:
        lifts: Lift over each null or guess.
        chances: Description of each null or guess, in order.
    """
    parts = [
        f"{lift_text(lifts[key])} × {words}"
        for key, words in chances.items()
        if lifts.get(key) is not None
    ]
    if not parts:
        return ""
    *most, last = parts
    return f"This is {', '.join(most)} and {last}." if most else f"This is {last}."
