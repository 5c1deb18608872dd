"""The page of a comparison, and that of a demo: several comparisons from one base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.report.arms import Arm
from trimtab.report.blocks import Section
from trimtab.report.causes import precision
from trimtab.report.change import how_far, how_large, largest_movers, where
from trimtab.report.demo import DemoRecord, cost, learned
from trimtab.report.demo_masked import only_the_mask
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.identity import same_model
from trimtab.report.records import coverage, provenance
from trimtab.report.shape import geometry, rank
from trimtab.report.wording import (
    changed_means,
    coverage_sentence,
    endpoints,
    headline,
    plural,
    printable,
)

__all__ = ["comparison_page", "demo_page"]


def comparison_page(comparison: Comparison) -> Page:
    """What is told of one comparison.

    Args:
        comparison: The result; nothing else is read.
    """
    arms = [Arm("", comparison)]
    base, tuned = endpoints(comparison)
    return _page(
        arms,
        title=f"{tuned} against {base}",
        heading="What fine-tuning changed",
        subtitle=(base, tuned),
        paragraphs=(_compared(arms),),
        sections=_sections(arms),
    )


def demo_page(
    demo: DemoRecord,
    comparisons: Mapping[str, Comparison],
    identities: Mapping[str, Identity] | None = None,
) -> Page:
    """What is told of a demo: runs from one base, side by side.

    Args:
        demo: What the runs did, by label.
        comparisons: Each run of every weight compared with the base, by label.
        identities: See `trimtab.report.demo_masked`; by label.
    """
    arms = [Arm(label, comparison) for label, comparison in comparisons.items()]
    runs = list(demo["arms"])
    labels = ", ".join(map(printable, runs))
    task = f" trained on {demo['task']}" if "task" in demo else " trained"
    opening = (
        f"Starting from {printable(demo['base_id'])}, {plural(len(runs), 'run')}{task}. This page "
        "shows whether each learned, which weights it changed, and how many weights the size of "
        "its steps alone would lead one to expect."
    )
    masked: list[Section] = []
    if identities:
        opening += (
            " Where and how far weights moved is shown for the runs that trained every weight."
        )
        inside = {label: of for label, of in identities.items() if label not in comparisons}
        masked.append(only_the_mask(demo, comparisons, identities))
        masked += [same_model(inside, runs=runs).page_only()] if inside else []
    return _page(
        arms,
        title=f"trimtab demo: {labels}",
        heading="What training changed, run by run",
        subtitle=(printable(demo["base_id"]), labels),
        paragraphs=(opening, demo["model_note"], _compared(arms)),
        sections=(learned(demo), *masked, *_sections(arms), cost(demo)),
    )


def _sections(arms: Sequence[Arm]) -> list[Section | None]:
    return [
        where(arms),
        how_large(arms),
        how_far(arms),
        precision(arms),
        largest_movers(arms),
        rank(arms),
        geometry(arms),
        coverage(arms),
        provenance(arms),
    ]


def _compared(arms: Sequence[Arm]) -> str:
    """What was compared and what "changed" means, in plain words."""
    first = arms[0].comparison
    dtypes = dict.fromkeys(tensor.dtype for arm in arms for tensor in arm.comparison.tensors)
    stored = f" ({', '.join(map(printable, dtypes))})" if dtypes else ""
    how = "as stored" if first.conversion is None else printable(first.conversion)
    which = "The tuned checkpoint was" if len(arms) == 1 else "Each tuned checkpoint was"
    criteria = dict.fromkeys(arm.criterion for arm in arms)
    return (
        f"{which} compared with its base weight by weight, {how}{stored}: "
        f"{plural(len(first.tensors), 'tensor')}, {arms[0].total.num_elements:,} weights. "
        + " ".join(changed_means(criterion) for criterion in criteria)
    )


def _hero(arm: Arm) -> Hero:
    figure, words = headline(arm.total, arm.criterion)
    changed = arm.total.num_changed.get(arm.criterion, 0)
    return Hero(
        label=arm.label,
        figure=figure,
        words=words,
        filled=1 - (arm.comparison.sparsity or 0.0),
        under=f"{changed:,} changed (criterion: {arm.criterion})",
    )


def _page(arms: Sequence[Arm], **parts: Any) -> Page:
    conversions = dict.fromkeys(
        printable(arm.comparison.conversion) for arm in arms if arm.comparison.conversion
    )
    criteria = ", ".join(dict.fromkeys(arm.criterion for arm in arms))
    return Page(
        **parts,
        source=f"criterion {criteria} · {' → '.join(parts['subtitle'])}",
        heroes=[_hero(arm) for arm in arms],
        conversion="; ".join(conversions),
        incomplete=[
            coverage_sentence(arm.comparison.coverage)
            for arm in arms
            if not arm.comparison.coverage.is_complete
        ],
        coverage=coverage_sentence(arms[0].comparison.coverage),
        date=arms[0].comparison.provenance.get("date", ""),
    )
