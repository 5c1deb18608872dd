"""The report of a comparison, and the frame that a demo puts around several of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.measure.compare_result import COVERAGE_LISTS, Comparison
from trimtab.report.analyses import geometry, precision, rank
from trimtab.report.changes import Run, how_far, how_large, largest_movers, where
from trimtab.report.document import Document, Hero, Section, Table
from trimtab.report.records import Covered, checkpoints_table, coverage_section, settings_table
from trimtab.report.wording import (
    changed_means,
    coverage_sentence,
    endpoints,
    headline,
    labelled,
    magnitude,
    named,
    printable,
)
from trimtab.results.records import CheckpointRecord
from trimtab.words import plural

_TITLES = {
    "tied": "Tied tensors, counted once",
    "missing": "Only in base",
    "extra": "Only in tuned",
    "shape_mismatch": "Of another shape",
    "renamed": "Matched under another name",
    "folded": "Block scales multiplied into their weights",
}


def comparison_document(comparison: Comparison) -> Document:
    """What a report says about one comparison."""
    run = Run("", comparison)
    base, tuned = endpoints(comparison)
    figure, words = headline(run.total, run.criterion)
    return frame(
        [run],
        title=f"{tuned} against {base}",
        heading="What fine-tuning changed",
        subtitle=(base, tuned),
        facts={"base": base, "tuned": tuned},
        headlines=(f"{figure} {words} (criterion: {run.criterion})",),
        summary=(_update_sentence(run),),
        paragraphs=(compared([run]),),
        sections=comparison_sections([run]),
    )


def _update_sentence(run: Run) -> str | None:
    counts = run.total
    if not counts.num_elements:
        return None
    return (
        f"Update: L2 {magnitude(counts.update_l2)}, largest {magnitude(counts.update_max_abs)}, "
        f"{plural(counts.num_increased, 'element')} up, {counts.num_decreased:,} down."
    )


def frame(runs: Sequence[Run], **parts: Any) -> Document:
    """A document on runs from one base.

    Args:
        runs: At least one.
        parts: Of the document: what is not the same for one run and for several.
    """
    conversions = dict.fromkeys(
        printable(run.comparison.conversion) for run in runs if run.comparison.conversion
    )
    criteria = ", ".join(dict.fromkeys(run.criterion for run in runs))
    gaps = [run for run in runs if not run.comparison.coverage.is_complete]
    return Document(
        **parts,
        source=f"criterion {criteria} · {' → '.join(parts['subtitle'])}",
        heroes=[_hero(run) for run in runs],
        conversion="; ".join(conversions),
        coverage="; ".join(
            labelled(run.label if gaps else "", coverage_sentence(run.comparison.coverage))
            for run in gaps or runs[:1]
        ),
        is_complete=not gaps,
        date=runs[0].comparison.provenance.get("date", ""),
    )


def _hero(run: Run) -> Hero:
    figure, words = headline(run.total, run.criterion)
    changed = run.total.num_changed.get(run.criterion, 0)
    return Hero(
        label=run.label,
        figure=figure,
        words=words,
        filled=1 - (run.total.sparsity(run.criterion) or 0.0),
        under=f"{changed:,} changed (criterion: {run.criterion})",
    )


def comparison_sections(runs: Sequence[Run]) -> list[Section | None]:
    """Everything on what changed and why, what was compared, and where it comes from."""
    return [
        where(runs),
        how_large(runs),
        how_far(runs),
        precision(runs),
        largest_movers(runs),
        rank(runs),
        geometry(runs),
        coverage_section(
            {
                run.label: Covered(coverage_sentence(coverage), coverage, COVERAGE_LISTS)
                for run in runs
                for coverage in (run.comparison.coverage,)
            },
            _TITLES,
        ),
        _provenance(runs),
    ]


def _provenance(runs: Sequence[Run]) -> Section:
    """Ids, revisions, hashes, dtypes and how the comparisons were run."""
    records: dict[str, CheckpointRecord] = {"base": runs[0].comparison.base}
    for run in runs:
        records[run.label or "tuned"] = run.comparison.tuned
    return Section("Provenance", blocks=(checkpoints_table(records), *map(_settings, runs)))


def _settings(run: Run) -> Table:
    comparison = run.comparison
    entries: dict[str, object] = {
        "criterion of the headline": comparison.criterion,
        "conversion": comparison.conversion or "none: compared as stored",
        **comparison.provenance,
    }
    return settings_table(named(run.label, "Comparison"), entries, is_folded=bool(run.label))


def compared(runs: Sequence[Run]) -> str:
    """What was compared and what "changed" means, in plain words."""
    first = runs[0].comparison
    dtypes = dict.fromkeys(tensor.dtype for run in runs for tensor in run.comparison.tensors)
    stored = f" ({', '.join(map(printable, dtypes))})" if dtypes else ""
    how = "as stored" if first.conversion is None else printable(first.conversion)
    which = "The tuned checkpoint was" if len(runs) == 1 else "Each tuned checkpoint was"
    criteria = dict.fromkeys(run.criterion for run in runs)
    return (
        f"{which} compared with its base weight by weight, {how}{stored}: "
        f"{plural(len(first.tensors), 'tensor')}, {runs[0].total.num_elements:,} weights. "
        + " ".join(map(changed_means, criteria))
    )
