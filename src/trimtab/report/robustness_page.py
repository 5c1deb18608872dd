"""The page of a robustness probe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.robustness import noises, robustness_provenance
from trimtab.report.robustness_wording import asked_text, beside_text, mask_text, verdict_counts
from trimtab.report.wording import printable

__all__ = ["robustness_page"]


def robustness_page(probe: Mapping[str, Any]) -> Page:
    """What is told of a robustness probe.

    Args:
        probe: Its plain data; nothing else is read.
    """
    name = printable(probe["provenance"]["checkpoint"]["id"])
    return Page(
        title=name,
        heading="Is the mask more fragile?",
        subtitle=(name, mask_text(probe)),
        heroes=[_hero(probe, arm) for arm in probe["arms"][1:]],
        coverage="complete: every set of weights was given the same noise, text and questions",
        sections=[noises(probe), robustness_provenance(probe)],
        source=f"{name} · {mask_text(probe)}",
        date=probe["provenance"].get("date", ""),
        paragraphs=(asked_text(probe),),
    )


def _hero(probe: Mapping[str, Any], arm: str) -> Hero:
    counts = verdict_counts(probe, arm)
    num = sum(counts.values())
    return Hero(
        label="",
        figure=f"{counts['more']} of {num}",
        words=beside_text(probe, arm),
        filled=counts["more"] / num,
        under="more fragile",
    )
