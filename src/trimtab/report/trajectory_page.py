"""The page of a trajectory."""

from __future__ import annotations

from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import Trajectory
from trimtab.report.blocks import Section
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.trajectory import (
    coverage_text,
    final_subnetwork,
    over_time,
    trajectory_coverage,
    trajectory_provenance,
    what_became,
)
from trimtab.report.trajectory_wording import FATES, cadence, cadence_sentence, endpoints_of, fates
from trimtab.report.wording import changed_means, printable

__all__ = ["trajectory_page"]


def trajectory_page(trajectory: Trajectory) -> Page:
    """What is told of a trajectory.

    Args:
        trajectory: The result; nothing else is read.
    """
    base, last = endpoints_of(trajectory)
    covered = coverage_text(trajectory)
    is_complete = trajectory.coverage is None or trajectory.coverage.is_complete
    sections: list[Section | None] = [
        what_became(trajectory),
        over_time(trajectory),
        final_subnetwork(trajectory),
        trajectory_coverage(trajectory),
        trajectory_provenance(trajectory),
    ]
    return Page(
        title=f"{base} to {last}, observed {cadence(trajectory)}",
        heading="How the subnetwork formed",
        subtitle=(base, last),
        heroes=_trajectory_heroes(trajectory),
        conversion=printable(trajectory.conversion or ""),
        incomplete=[] if is_complete else [covered],
        coverage=covered,
        paragraphs=(cadence_sentence(trajectory), changed_means("bits")),
        sections=sections,
        source=f"criterion bits, observed {cadence(trajectory)} · {base} → {last}",
        date=trajectory.provenance.get("date", ""),
    )


def _trajectory_heroes(trajectory: Trajectory) -> list[Hero]:
    """What became of the weights: effective, cancelled, untouched."""
    total = trajectory.final.total
    if not total.num_elements:
        return [Hero("", "–", "no weights were followed", 0.0, "nothing to follow")]
    numbers = fates(total)
    return [
        Hero(
            label=fate.capitalize(),
            figure=percent(numbers[fate], total.num_elements),
            words=f"of {total.num_elements:,} weights: {FATES[fate]}",
            filled=numbers[fate] / total.num_elements,
            under=f"{numbers[fate]:,} (criterion: bits; observed {cadence(trajectory)})",
        )
        for fate in ("effective", "cancelled", "untouched")
    ]
