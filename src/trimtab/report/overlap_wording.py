"""How an overlap of masks is put into words, the same in the terminal and in the HTML report."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.elements.counts import percent
from trimtab.masks.overlap_chance import (
    INDEPENDENT,
    MAGNITUDE,
    PER_TENSOR,
    AgainstNull,
    Null,
    Shared,
)
from trimtab.masks.overlap_result import LETTERS, Overlap
from trimtab.report.wording import of_all, plural, printable
from trimtab.words import are, were

__all__ = [
    "KEPT",
    "NO_BASE",
    "common_sentence",
    "count_text",
    "letters",
    "lift_sentence",
    "lift_text",
    "mask_names",
    "null_cells",
    "null_note",
    "other_base_sentence",
    "overlap_coverage_sentence",
    "probability_text",
    "ratio_text",
    "selected",
    "shared_sentence",
    "short_name",
    "z_text",
]

KEPT = {
    INDEPENDENT: "in all",
    PER_TENSOR: "in each tensor",
    MAGNITUDE: "in each tensor at each magnitude of the base's weights",
}
"""Where a null model selects as many weights as the masks do."""

_NULL_NOTES = {
    "lift": "“lift” is shared / expected.",
    "z": "“z” is the excess in standard deviations.",
    "p": "“p” is its two-sided probability, after “≈” by the normal distribution.",
    "most": "“most” is what such masks can share at best.",
}

NO_BASE = (
    "No base was given, so chance is not matched by magnitude: where rounding lets only small "
    "weights move, masks share small weights whatever was learned, and these lifts include that."
)


def null_note(headings: Iterable[str] = _NULL_NOTES) -> str:
    """How to read a table of nulls, in the words that its headings need."""
    words = {word for heading in headings for word in heading.split()}
    nulls = "; ".join(f"{kept} ({null})" for null, kept in KEPT.items())
    told = [note for word, note in _NULL_NOTES.items() if word in words]
    opening = f"Each null draws masks at random that select as many weights as these: {nulls}."
    return " ".join([opening, *told])


def letters(overlap: Overlap) -> list[str]:
    """What the masks are called: A, B, C, ..."""
    return list(LETTERS[: len(overlap.masks)])


def mask_names(overlap: Overlap) -> list[str]:
    """Their files, or what stands for one."""
    return ["not from a file" if mask.id is None else printable(mask.id) for mask in overlap.masks]


def selected(overlap: Overlap) -> list[str]:
    """How much each of them selects, in words."""
    return [
        f"{of_all(mask.num_selected, mask.num_elements)} weights selected" for mask in overlap.masks
    ]


def short_name(null: Null) -> str:
    """A null as the heading of a column."""
    return "magnitude" if null == MAGNITUDE else null


def ratio_text(ratio: float | None) -> str:
    """A share that was measured or is expected; a dash where there is none."""
    return "–" if ratio is None else percent(ratio, 1.0)


def lift_text(lift: float | None) -> str:
    """A lift to four digits; a dash where there is none."""
    if lift is None:
        return "–"
    return f"{lift:,.0f}" if lift >= 1000 else f"{lift:.4g}"


def z_text(z: float | None) -> str:
    """A number of standard deviations; a dash where there are none."""
    if z is None:
        return "–"
    text = f"{z:,.0f}" if abs(z) >= 100 else f"{z:.2f}"
    return "0.00" if text == "-0.00" else text


def count_text(expected: float) -> str:
    """An expected number of elements."""
    return f"{expected:,.0f}" if expected >= 100 or expected == 0 else f"{expected:.3g}"


def probability_text(against: AgainstNull) -> str:
    """A probability, by its power of ten where it is small; after ≈ if it is not exact."""
    log10_p = against.probability.log10_p
    if log10_p < -300:
        return "<1e-300"
    sign = "" if against.probability.method == "exact" else "≈"
    return f"{sign}{10**log10_p:.2g}"


def shared_sentence(shared: Shared, first: str, second: str) -> str:
    """The main figures of two masks."""
    if not shared.num_first or not shared.num_second:
        empty = " and ".join(
            name
            for name, num in ((first, shared.num_first), (second, shared.num_second))
            if not num
        )
        return f"Nothing that was compared is selected in {empty}: there is nothing to share."
    return (
        f"{ratio_text(shared.o1)} of {first} is in {second}, and {ratio_text(shared.o2)} of "
        f"{second} in {first}: {plural(shared.intersection, 'shared weight')}, "
        f"{ratio_text(shared.jaccard)} of those in either."
    )


def lift_sentence(lifts: dict[Null, float | None]) -> str:
    """Lifts over each null in one sentence; empty where nothing is expected."""
    parts = {
        INDEPENDENT: "what masks of these densities share by chance",
        PER_TENSOR: "that with the densities kept in each tensor",
        MAGNITUDE: "that with them kept in each tensor at each magnitude",
    }
    told = [
        f"{lift_text(lift)} × {parts[null]}" for null, lift in lifts.items() if lift is not None
    ]
    if not told:
        return ""
    *most, last = told
    return f"This is {', '.join(most)} and {last}." if most else f"This is {last}."


def common_sentence(overlap: Overlap) -> str:
    """What all of several masks share."""
    consensus = overlap.consensus()
    num = len(overlap.masks)
    if not consensus.num_any:
        return "Nothing that was compared is selected in any of the masks."
    lifts = {null: consensus.common_lift(null) for null in consensus.nulls}
    sentence = (
        f"{plural(consensus.num_common, 'weight')} "
        f"{are(consensus.num_common)} in all {num} masks, "
        f"{percent(consensus.num_common, consensus.num_any)} of those in any."
    )
    return f"{sentence} {lift_sentence(lifts)}".rstrip()


def overlap_coverage_sentence(overlap: Overlap) -> str:
    """Which elements of the masks the figures speak of."""
    coverage = overlap.coverage
    if coverage.is_complete:
        return f"complete: all {coverage.num_compared:,} elements of the masks were compared"
    missed = [
        sum(row["num_selected"][place] or 0 for row in coverage.not_compared)
        for place in range(len(overlap.masks))
    ]
    told = ", ".join(
        f"{num:,} of {name}" for num, name in zip(missed, letters(overlap), strict=True)
    )
    return (
        f"INCOMPLETE: {were(coverage.num_compared, 'element')} compared; "
        f"{plural(len(coverage.not_compared), 'tensor')} not in all masks, with selected elements: "
        f"{told}"
    )


def other_base_sentence(overlap: Overlap) -> str | None:
    """A warning where the masks were made against different bases; None where none is known."""
    if not (others := overlap.coverage.other_base):
        return None
    return (
        f"The masks say that they were made against different bases, in "
        f"{len(others):,} of {plural(len(overlap.tensors), 'tensor')}: elements of one place were "
        "compared, whatever their weights were."
    )


def null_cells(null: Null, against: AgainstNull) -> tuple[str, ...]:
    """What a null expects and how far off the masks are: cells of a row, after its name."""
    return (
        null,
        count_text(against.expected),
        *map(ratio_text, against.chance),
        lift_text(against.lift),
        z_text(against.z),
        probability_text(against),
        ratio_text(against.ceiling.o1),
        ratio_text(against.ceiling.o2),
    )
