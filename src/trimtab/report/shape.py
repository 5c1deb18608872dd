"""Sections of the page on the rank and the geometry of the update, where they were analysed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report import charts
from trimtab.report.arms import Arm
from trimtab.report.blocks import Column, Figure, Key, Section, Table, run_column, table
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import magnitude, named, plural, printable

__all__ = ["RANKS", "SHARES", "geometry", "rank"]

RANKS = {
    "matrix_rank": "matrix rank",
    "rank_atol=1e-06": "singular values > 1e-06",
    "energy_rank": "99 % energy rank",
    "entropy_rank": "entropy rank",
    "stable_rank": "stable rank",
}
"""Rank of an update -> how it is called."""

SHARES = {
    "energy_left": "update in top output directions",
    "energy_right": "update in top input directions",
    "energy_both": "update in both",
    "low_magnitude_mask": "changes on the smallest weights",
    "principal_mask": "changes on the principal weights",
}
"""Share of an update -> how it is called."""

_NUM_TENSORS = 300


def rank(arms: Sequence[Arm]) -> Section | None:
    """Ranks of the update of every matrix beside those of the same update shuffled."""
    sections = _sections(arms, "rank")
    if not sections:
        return None
    labels = [arm.label for arm in arms]
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for rank_key, name in RANKS.items():
        for label, section in sections.items():
            summary = section["summary"].get(rank_key)
            if summary is None or summary["mean"] is None:
                continue
            texts = [
                percent(summary[key], 1) for key in ("mean", "random_mean", "min", "random_min")
            ]
            run = (label,) if label else ()
            cells.append((name, *run, *texts))
            rows.append(
                {
                    "arm": label,
                    "name": name,
                    "measured": 100 * summary["mean"],
                    "reference": 100 * summary["random_mean"],
                    "tip_0": " · ".join((name, *run)),
                    "tip_1": texts[0],
                    "tip_2": texts[1],
                }
            )
    numbers = table(
        "Rank as a share of the most that the shape allows",
        [
            ("figure", "text"),
            *run_column(labels),
            ("mean", "number"),
            ("shuffled, mean", "number"),
            ("least", "number"),
            ("shuffled, least", "number"),
        ],
        cells,
    )
    figure = Figure(
        "Rank of the update, as a share of full rank",
        charts.reference_dots(
            charts.Marks(rows, ("figure", "update", "shuffled update")),
            labels,
            axis="mean over matrices (% of full rank)",
            domain=(0, 100),
        ),
        "A dot is the mean over all matrices; its tick is the same figure for a random update of "
        "the same density and the same values. Only a dot well to the left of its tick says that "
        "the update has fewer directions than chance.",
        numbers,
        (*_run_keys(arms, "update"), Key("tick", "shuffled update")),
    )
    counted = [
        _prefixed(
            label,
            f"{plural(section['num_matrices'], 'matrix', 'matrices')} analysed, of which "
            f"{section['num_zero_updates'] or 'none'} did not change at all (rank 0); "
            f"{plural(len(section['skipped']), 'tensor')} left out.",
        )
        for label, section in sections.items()
    ]
    intro = (
        "A sparse random matrix has nearly full rank, so a high rank by itself says nothing. Each "
        "figure is set beside that of a control: the elements of the same update in random order."
    )
    details = [_ranks_by_tensor(label, section) for label, section in sections.items()]
    skipped = [
        _skipped(label, section) for label, section in sections.items() if section["skipped"]
    ]
    return Section("Rank of the update", (intro, *counted), (figure, *details, *skipped))


def _ranks_by_tensor(label: str, section: Mapping[str, Any]) -> Table:
    def cell(row: Mapping[str, Any], figure: str) -> str:
        return f"{row['update'][figure]['value']:.4g} / {row['random'][figure]['value']:.4g}"

    columns: list[Column] = [("tensor", "code"), ("shape", "number"), ("method", "text")]
    columns += [(name, "number") for name in RANKS.values()]
    return table(
        named(label, "Rank of every matrix, update / shuffled"),
        columns,
        [
            (
                printable(name),
                " × ".join(map(str, row["shape"])),
                printable(row["method"]),
                *(cell(row, figure) for figure in RANKS),
            )
            for name, row in section["by_tensor"].items()
        ],
        limit=_NUM_TENSORS,
    )


def geometry(arms: Sequence[Arm]) -> Section | None:
    """Where in the matrices the update lies, each share beside its chance."""
    sections = _sections(arms, "geometry")
    if not sections:
        return None
    labels = [arm.label for arm in arms]
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for share_key, name in SHARES.items():
        for label, section in sections.items():
            summary = section["summary"].get(share_key)
            if summary is None:
                continue
            share, chance = percent(summary["share"], 1), percent(summary["chance"], 1)
            lift = f"{summary['lift']:.2f}"
            run = (label,) if label else ()
            cells.append((name, *run, share, chance, lift))
            rows.append(
                {
                    "arm": label,
                    "name": name,
                    "measured": 100 * summary["share"],
                    "reference": 100 * summary["chance"],
                    "tip_0": " · ".join((name, *run)),
                    "tip_1": share,
                    "tip_2": chance,
                    "tip_3": lift,
                }
            )
    numbers = table(
        "Shares and their chance",
        [
            ("share of", "text"),
            *run_column(labels),
            ("share", "number"),
            ("chance", "number"),
            ("lift", "number"),
        ],
        cells,
    )
    figure = Figure(
        "Where the update lies, beside chance",
        charts.reference_dots(
            charts.Marks(rows, ("share of", "share", "chance", "lift")),
            labels,
            axis="share (%)",
            domain=(0, 100),
        ),
        "A dot on its tick is where a random update would lie. Small weights move more easily in "
        "a low-precision format, so a dot to the right of its tick on the smallest weights is no "
        "sign of a preference by itself.",
        numbers,
        (*_run_keys(arms, "update"), Key("tick", "chance")),
    )
    texts = [
        _prefixed(
            label,
            f"{plural(section['num_matrices'], 'matrix', 'matrices')} analysed, "
            f"{plural(len(section['skipped']), 'tensor')} left out. Top directions are the "
            f"{percent(section['principal'], 1, 0)} of largest singular values of base; masks hold "
            f"{percent(section['mask'], 1, 0)} of the elements. Norm of the update over that of "
            f"base: {magnitude(section['summary']['relative_update'])}; shift of the singular "
            f"values (NSS): {magnitude(section['summary']['spectral_shift'])}.",
        )
        for label, section in sections.items()
    ]
    skipped = [
        _skipped(label, section) for label, section in sections.items() if section["skipped"]
    ]
    return Section("Geometry of the update", tuple(texts), (figure, *skipped))


def _sections(arms: Sequence[Arm], name: str) -> dict[str, Mapping[str, Any]]:
    return {
        arm.label: arm.comparison.analyses[name] for arm in arms if name in arm.comparison.analyses
    }


def _run_keys(arms: Sequence[Arm], single: str) -> list[Key]:
    return [
        Key(f"dot-{place % NUM_COLOURS}", printable(arm.label) or single)
        for place, arm in enumerate(arms)
    ]


def _prefixed(label: str, text: str) -> str:
    return f"{label}: {text}" if label else text


def _skipped(label: str, section: Mapping[str, Any]) -> Table:
    rows = section["skipped"]
    return table(
        named(label, f"Left out ({len(rows):,})"),
        [("tensor", "code"), ("shape", "number"), ("reason", "text")],
        [
            (
                printable(row["name"]),
                " × ".join(map(str, row["shape"])) or "scalar",
                printable(row["reason"]),
            )
            for row in rows
        ],
        limit=_NUM_TENSORS,
    )
