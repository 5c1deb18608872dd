"""The page of an overlap of masks."""

from __future__ import annotations

from trimtab.elements.counts import percent
from trimtab.masks.overlap_result import Overlap
from trimtab.report.blocks import Section
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.overlap import (
    against_chance,
    agreed,
    every_pair,
    lifts_by_kind,
    over_the_series,
)
from trimtab.report.overlap_record import overlap_coverage, overlap_provenance
from trimtab.report.overlap_wording import (
    NO_BASE,
    common_sentence,
    letters,
    lift_sentence,
    mask_names,
    other_base_sentence,
    overlap_coverage_sentence,
    ratio_text,
    selected,
    shared_sentence,
)
from trimtab.report.wording import printable

__all__ = ["overlap_page"]


def overlap_page(overlap: Overlap) -> Page:
    """What is told of an overlap.

    Args:
        overlap: The result; nothing else is read.
    """
    first, *others = mask_names(overlap)
    covered = overlap_coverage_sentence(overlap)
    warning = other_base_sentence(overlap)
    against = "no base" if overlap.base is None else printable(overlap.base.id)
    told = zip(letters(overlap), mask_names(overlap), selected(overlap), strict=True)
    return Page(
        title=f"{first} and {', '.join(others)}",
        heading="Do the masks select the same weights?",
        subtitle=(first, ", ".join(others)),
        heroes=_heroes(overlap),
        warnings=[warning] if warning else [],
        incomplete=[] if overlap.coverage.is_complete else [covered],
        coverage=covered,
        paragraphs=(
            "; ".join(f"{letter} is {name}: {many}" for letter, name, many in told) + ".",
            *_opening(overlap),
        ),
        sections=_sections(overlap),
        source=f"masks {first} and {', '.join(others)} · magnitudes of {against}",
        date=overlap.provenance.get("date", ""),
    )


def _opening(overlap: Overlap) -> list[str]:
    sentences = [NO_BASE] if overlap.base is None else []
    if len(overlap.masks) > 2:
        return [common_sentence(overlap), *sentences]
    shared = overlap.total()
    lifts = lift_sentence({null: against.lift for null, against in shared.nulls.items()})
    return [f"{shared_sentence(shared, 'A', 'B')} {lifts}".rstrip(), *sentences]


def _sections(overlap: Overlap) -> list[Section | None]:
    if len(overlap.masks) == 2:
        found = [against_chance(overlap), lifts_by_kind(overlap)]
    else:
        series = [over_the_series(overlap)] if overlap.is_series else []
        found = [*series, every_pair(overlap), agreed(overlap)]
    return [*found, overlap_coverage(overlap), overlap_provenance(overlap)]


def _heroes(overlap: Overlap) -> list[Hero]:
    """How much of each mask is in the other, or in all of several."""
    if len(overlap.masks) > 2:
        consensus = overlap.consensus()
        if not consensus.num_any:
            return [Hero("", "–", "nothing is selected in any mask", 0.0, "nothing to share")]
        figure = percent(consensus.num_common, consensus.num_any)
        words = f"of {consensus.num_any:,} weights in any of {len(overlap.masks)} masks are in all"
        under = f"{consensus.num_common:,} in all"
        return [Hero("", figure, words, consensus.num_common / consensus.num_any, under)]
    shared = overlap.total()
    chance = list(shared.nulls.values())[-1].chance
    finest = overlap.nulls[-1]
    heroes = []
    for key, whole, other, num in (
        ("o1", "A", "B", shared.num_first),
        ("o2", "B", "A", shared.num_second),
    ):
        ratio = getattr(shared, key)
        if ratio is None:
            heroes.append(Hero("", "–", f"{whole} selects nothing", 0.0, "nothing to share"))
            continue
        words = f"of {num:,} weights of {whole} are in {other}"
        expected = ratio_text(getattr(chance, key))
        under = f"{shared.intersection:,} shared; {expected} by chance ({finest})"
        heroes.append(Hero("", ratio_text(ratio), words, ratio, under))
    return heroes
