"""The report of a comparison: what changed, and the results of its analyses.

Each figure of an analysis is shown with a control: the prediction from precision alone, the same
update shuffled, or chance. `frame` and `comparison_sections` also serve a demo with several runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.measure.compare_result import COVERAGE_LISTS, Comparison
from trimtab.report import charts, wording
from trimtab.report import document as doc
from trimtab.report.changes import Run, how_far, how_large, largest_movers, predicted_share, where
from trimtab.report.records import Covered, checkpoints_table, coverage_section, settings_table
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


def comparison_document(comparison: Comparison) -> doc.Document:
    """What a report says about one comparison."""
    run = Run("", comparison)
    base, tuned = wording.endpoints(comparison)
    figure, words = wording.headline(run.total, run.criterion)
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
        f"Update: L2 {wording.magnitude(counts.update_l2)}, largest "
        f"{wording.magnitude(counts.update_max_abs)}, "
        f"{plural(counts.num_increased, 'element')} up, {counts.num_decreased:,} down."
    )


def frame(runs: Sequence[Run], **parts: Any) -> doc.Document:
    """A document on runs from one base.

    Args:
        runs: At least one.
        parts: Attributes of the document that differ between one run and several.
    """
    conversions = dict.fromkeys(
        wording.printable(run.comparison.conversion) for run in runs if run.comparison.conversion
    )
    criteria = ", ".join(dict.fromkeys(run.criterion for run in runs))
    gaps = [run for run in runs if not run.comparison.coverage.is_complete]
    return doc.Document(
        **parts,
        source=f"criterion {criteria} · {' → '.join(parts['subtitle'])}",
        heroes=[_hero(run) for run in runs],
        conversion="; ".join(conversions),
        coverage="; ".join(
            wording.labelled(
                run.label if gaps else "", wording.coverage_sentence(run.comparison.coverage)
            )
            for run in gaps or runs[:1]
        ),
        is_complete=not gaps,
        date=runs[0].comparison.provenance.get("date", ""),
    )


def _hero(run: Run) -> doc.Hero:
    figure, words = wording.headline(run.total, run.criterion)
    changed = run.total.num_changed.get(run.criterion, 0)
    return doc.Hero(
        label=run.label,
        figure=figure,
        words=words,
        filled=1 - (run.total.sparsity(run.criterion) or 0.0),
        under=f"{changed:,} changed (criterion: {run.criterion})",
    )


def comparison_sections(runs: Sequence[Run]) -> list[doc.Section | None]:
    """Sections on the changes, the analyses, the coverage and the provenance."""
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
                run.label: Covered(wording.coverage_sentence(coverage), coverage, COVERAGE_LISTS)
                for run in runs
                for coverage in (run.comparison.coverage,)
            },
            _TITLES,
        ),
        _provenance(runs),
    ]


def _provenance(runs: Sequence[Run]) -> doc.Section:
    """Ids, revisions, hashes, dtypes and settings of the comparisons."""
    records: dict[str, CheckpointRecord] = {"base": runs[0].comparison.base}
    for run in runs:
        records[run.label or "tuned"] = run.comparison.tuned
    return doc.Section("Provenance", blocks=(checkpoints_table(records), *map(_settings, runs)))


def _settings(run: Run) -> doc.Table:
    comparison = run.comparison
    entries: dict[str, object] = {
        "criterion of the headline": comparison.criterion,
        "conversion": comparison.conversion or "none: compared as stored",
        **comparison.provenance,
    }
    return settings_table(
        wording.named(run.label, "Comparison"), entries, is_folded=bool(run.label)
    )


def compared(runs: Sequence[Run]) -> str:
    """What was compared, and what "changed" means."""
    first = runs[0].comparison
    dtypes = dict.fromkeys(tensor.dtype for run in runs for tensor in run.comparison.tensors)
    stored = f" ({', '.join(map(wording.printable, dtypes))})" if dtypes else ""
    how = "as stored" if first.conversion is None else wording.printable(first.conversion)
    which = "The tuned checkpoint was" if len(runs) == 1 else "Each tuned checkpoint was"
    criteria = dict.fromkeys(run.criterion for run in runs)
    return (
        f"{which} compared with its base weight by weight, {how}{stored}: "
        f"{plural(len(first.tensors), 'tensor')}, {runs[0].total.num_elements:,} weights. "
        + " ".join(map(wording.changed_means, criteria))
    )


_RANKS = {
    "matrix_rank": "matrix rank",
    "rank_atol=1e-06": "singular values > 1e-06",
    "energy_rank": "99 % energy rank",
    "entropy_rank": "entropy rank",
    "stable_rank": "stable rank",
}
"""Rank of an update -> its name."""

_SHARES = {
    "energy_left": "update in top output directions",
    "energy_right": "update in top input directions",
    "energy_both": "update in both",
    "low_magnitude_mask": "changes on the smallest weights",
    "principal_mask": "changes on the principal weights",
}
"""Share of an update -> its name."""

_NUM_TENSORS = 300

Analysed = tuple[str, Mapping[str, Any]]
"""A run and its section of an analysis, as plain data."""


def _analysed(runs: Sequence[Run], name: str) -> list[Analysed]:
    return [
        (run.label, run.comparison.analyses[name])
        for run in runs
        if name in run.comparison.analyses
    ]


def _brief(runs: Sequence[Run], title: str) -> str | None:
    """The title in a terminal, which shows the analyses of a single run only."""
    return title if len(runs) == 1 else None


def precision(runs: Sequence[Run]) -> doc.Section | None:
    """Measured sparsity, compared with the prediction from LR, steps and the stored dtype."""
    sections = _analysed(runs, "precision")
    if not sections:
        return None
    kinds = wording.kinds_in_order(kind for _, section in sections for kind in section["by_kind"])
    by_label = {run.label: run for run in runs}
    rows = []
    for kind in (*kinds, None):
        for label, section in sections:
            row = section["total"] if kind is None else section["by_kind"].get(kind)
            counts, criterion = by_label[label].kind(kind), by_label[label].measured_by
            if row and row["num_elements"] and counts is not None and counts.num_elements:
                rows.append(
                    ((kind or "all", label), (wording.sparsity_text(counts, criterion), row))
                )

    def predicted(
        heading: str, model: str, note: str = ""
    ) -> doc.Column[tuple[wording.Shown, Any]]:
        return doc.Column(heading, lambda row: predicted_share(row[1], model), note=note)

    columns = (
        doc.Column[tuple[wording.Shown, Any]]("measured", lambda row: row[0]),
        predicted("one step", "one_step"),
        predicted("random walk", "random_walk"),
        predicted("straight line", "straight_line"),
        predicted(
            "Adam at worst",
            "adam_bound",
            "“Adam at worst” bounds the changes by these Adam steps under any gradients.",
        ),
    )
    measured, one_step, walk, line, _ = columns
    marks = charts.marks_of(
        rows,
        ("kind", "run"),
        (measured, walk, one_step, line),
        lambda names, row: {
            "arm": names[1],
            "name": wording.printable(names[0]),
            "measured": 100 * (row[0].value or 0),
            "to": 100 * (predicted_share(row[1], "one_step").value or 0),
            "reference": 100 * (predicted_share(row[1], "random_walk").value or 0),
            "from": 100 * (predicted_share(row[1], "straight_line").value or 0),
        },
    )
    labels = [run.label for run in runs]
    figure = doc.Figure(
        "Unchanged elements, measured and predicted from precision alone",
        lambda: charts.reference_dots(
            marks,
            labels,
            axis="unchanged (%)",
            domain=(charts.percent_floor(marks.values("measured", "from")), 100),
        ),
        "A dot on its tick is as sparse as a random walk of the same step size would leave it; to "
        "the left of the tick, more changed. The bar reaches from what one single step can change "
        "(right end) to what all steps in one direction can (left end).",
        doc.table(
            "Unchanged elements, measured and predicted",
            rows,
            columns,
            keys=("kind", "run"),
            has_total=len(sections) == 1,
        ),
        (
            *charts.run_keys((label for label, _ in sections), labels, before="measured"),
            doc.Key("tick", "random walk predicts"),
            doc.Key("span", "one step … straight line"),
        ),
    )
    settings = (_precision_settings(label, section) for label, section in sections)
    return doc.Section("What precision alone predicts", (_EXPLANATION, *settings), (figure,))


def rank(runs: Sequence[Run]) -> doc.Section | None:
    """Ranks of the update of every matrix, compared with the same update shuffled."""
    sections = _analysed(runs, "rank")
    if not sections:
        return None
    rows = [
        ((name, label), summary)
        for key, name in _RANKS.items()
        for label, section in sections
        if (summary := section["summary"].get(key)) is not None and summary["mean"] is not None
    ]

    def column(heading: str, key: str, note: str = "") -> doc.Column[Mapping[str, Any]]:
        return doc.Column(heading, lambda summary: wording.share(summary[key], 1), note=note)

    columns = (
        column("mean", "mean"),
        column(
            "shuffled, mean",
            "random_mean",
            "“shuffled” has the elements of the update in random order.",
        ),
        column("least", "min"),
        column("shuffled, least", "random_min"),
    )
    opening = f"Rank of the update, share of the most, over {_matrices(sections[0][1])}"
    figure = doc.Figure(
        "Rank of the update, as a share of full rank",
        lambda: _beside_control(
            runs,
            charts.marks_of(rows, ("rank", "run"), columns[:2], _measured("mean", "random_mean")),
            "mean over matrices (% of full rank)",
        ),
        "A dot is the mean over all matrices; its tick is the same figure for a random update of "
        "the same density and the same values. Only a dot well to the left of its tick says that "
        "the update has fewer directions than chance.",
        doc.table(
            "Rank as a share of the most that the shape allows",
            rows,
            columns,
            keys=("rank", "run"),
            brief=_brief(runs, opening),
        ),
        _keys(runs, "shuffled update"),
    )
    analysed = [
        wording.labelled(
            label,
            f"{plural(section['num_matrices'], 'matrix', 'matrices')} analysed, of which "
            f"{section['num_zero_updates'] or 'none'} did not change at all (rank 0); "
            f"{plural(len(section['skipped']), 'tensor')} left out.",
        )
        for label, section in sections
    ]
    intro = (
        "A sparse random matrix has nearly full rank, so a high rank by itself says nothing. Each "
        "figure has a control: the elements of the same update in random order."
    )
    details = [_ranks_by_tensor(label, section) for label, section in sections]
    return doc.Section(
        "Rank of the update", (intro, *analysed), (figure, *details, *_skipped(sections, "rank"))
    )


def _measured(
    figure: str, control: str
) -> Callable[[Sequence[str], Mapping[str, Any]], dict[str, Any]]:
    """The marks of a figure and its control, by their keys in a summary."""
    return lambda names, summary: {
        "arm": names[1],
        "name": names[0],
        "measured": 100 * summary[figure],
        "reference": 100 * summary[control],
    }


def _beside_control(runs: Sequence[Run], marks: charts.Marks, axis: str) -> dict[str, Any]:
    return charts.reference_dots(marks, [run.label for run in runs], axis=axis, domain=(0, 100))


def _keys(runs: Sequence[Run], control: str) -> tuple[doc.Key, ...]:
    labels = [run.label for run in runs]
    return (*charts.run_keys(labels, labels, single="update"), doc.Key("tick", control))


def _matrices(section: Mapping[str, Any]) -> str:
    left_out = len(section["skipped"])
    analysed = plural(section["num_matrices"], "matrix", "matrices")
    return f"{analysed} ({plural(left_out, 'tensor')} left out)" if left_out else analysed


def _ranks_by_tensor(label: str, section: Mapping[str, Any]) -> doc.Table:
    def cell(row: Mapping[str, Any], figure: str) -> str:
        return f"{row['update'][figure]['value']:.4g} / {row['random'][figure]['value']:.4g}"

    columns: list[tuple[str, doc.Role]] = [
        ("tensor", "code"),
        ("shape", "number"),
        ("method", "text"),
    ]
    columns += [(name, "number") for name in _RANKS.values()]
    return doc.plain_table(
        wording.named(label, "Rank of every matrix, update / shuffled"),
        columns,
        [
            (
                wording.printable(name),
                " × ".join(map(str, row["shape"])),
                wording.printable(row["method"]),
                *(cell(row, figure) for figure in _RANKS),
            )
            for name, row in section["by_tensor"].items()
        ],
        limit=_NUM_TENSORS,
    )


def geometry(runs: Sequence[Run]) -> doc.Section | None:
    """Where in the matrices the update lies, compared with chance."""
    sections = _analysed(runs, "geometry")
    if not sections:
        return None
    rows = [
        ((name, label), summary)
        for key, name in _SHARES.items()
        for label, section in sections
        if (summary := section["summary"].get(key)) is not None
    ]
    columns = (
        doc.Column[Mapping[str, Any]]("share", lambda summary: wording.share(summary["share"], 1)),
        doc.Column[Mapping[str, Any]](
            "chance", lambda summary: wording.share(summary["chance"], 1)
        ),
        doc.Column[Mapping[str, Any]](
            "lift", lambda summary: wording.Shown(f"{summary['lift']:.2f}", summary["lift"])
        ),
    )
    opening = f"Where the update lies, over {_matrices(sections[0][1])}"
    figure = doc.Figure(
        "Where the update lies, beside chance",
        lambda: _beside_control(
            runs,
            charts.marks_of(rows, ("share of", "run"), columns, _measured("share", "chance")),
            "share (%)",
        ),
        "A dot on its tick is where a random update would lie. Small weights move more easily in "
        "a low-precision format, so a dot to the right of its tick on the smallest weights does "
        "not show a preference by itself.",
        doc.table(
            "Shares and their chance",
            rows,
            columns,
            keys=("share of", "run"),
            note="Small weights move more easily in a low-precision format: a lift on them is no "
            "sign of a preference by itself.",
            brief=_brief(runs, opening),
        ),
        _keys(runs, "chance"),
    )
    texts = [
        wording.labelled(
            label,
            f"{plural(section['num_matrices'], 'matrix', 'matrices')} analysed, "
            f"{plural(len(section['skipped']), 'tensor')} left out. Top directions are the "
            f"{percent(section['principal'], 1, 0)} of largest singular values of base; masks hold "
            f"{percent(section['mask'], 1, 0)} of the elements. Norm of the update over that of "
            f"base: {wording.magnitude(section['summary']['relative_update'])}; shift of the "
            f"singular values (NSS): {wording.magnitude(section['summary']['spectral_shift'])}.",
        )
        for label, section in sections
    ]
    return doc.Section(
        "Geometry of the update", tuple(texts), (figure, *_skipped(sections, "geometry"))
    )


def _skipped(sections: Sequence[Analysed], analysis: str) -> list[doc.Table]:
    return [
        doc.plain_table(
            wording.named(label, f"Left out of the {analysis} ({len(section['skipped']):,})"),
            [("tensor", "code"), ("shape", "number"), ("reason", "text")],
            [
                (
                    wording.printable(row["name"]),
                    " × ".join(map(str, row["shape"])) or "scalar",
                    wording.printable(row["reason"]),
                )
                for row in section["skipped"]
            ],
            limit=_NUM_TENSORS,
        )
        for label, section in sections
        if section["skipped"]
    ]


_EXPLANATION = (
    "A small step on a large weight is rounded away when the weight is stored, whatever the "
    "training objective was. From the base weights, their stored number format, the learning "
    "rate and the number of steps alone one can tell which weights could change. “One step” is "
    "what a single step of that size can; a run that keeps its weights in the stored format "
    "gets no further with more of them. “Random walk” and “straight line” suppose a "
    "high-precision master copy: the expected result if every step went up or down at random, "
    "and the most that all steps together can change in one direction. None of them knows "
    "anything about the task."
)


def _precision_settings(label: str, section: Mapping[str, Any]) -> str:
    betas = ", ".join(f"{beta:g}" for beta in section["betas"])
    prefix = f"{label}: " if label else "Settings: "
    return (
        f"{prefix}learning rate {section['lr']:g}, {section['steps']:,} steps, Adam betas {betas}."
    )
