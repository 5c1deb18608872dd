"""Sections of the page on how a subnetwork forms over a series of checkpoints or steps.

Figures 2, 5, 6 and 7b of arXiv 2505.11711 are drawn here, by bits instead of within 1e-5, and each
with the cadence in its title. Figure 6 has two readings there, a share of the weights that ever
changed and one of the model; both are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import COVERAGE_LISTS, SETTLED_FROM, PointCounts, Trajectory
from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.charts import Marks, nice_ceiling, percent_floor, shares_over_time
from trimtab.report.records import checkpoints_table, listed, settings_table
from trimtab.report.trajectory_charts import ever_changed_bars
from trimtab.report.trajectory_wording import (
    FATES,
    RULE,
    cadence,
    fates,
    outside_sentence,
    point_title,
    series_coverage_sentence,
    settled_sentence,
    settled_text,
)
from trimtab.report.wording import kinds_in_order, printable
from trimtab.results.records import CheckpointRecord

__all__ = [
    "coverage_text",
    "final_subnetwork",
    "over_time",
    "trajectory_coverage",
    "trajectory_provenance",
    "what_became",
]

_TITLES = {
    "not_compared": "Not in all checkpoints with one shape, not followed",
    "tied": "Tied tensors, counted once",
    "renamed": "Matched under another name",
    "folded": "Block scales multiplied into their weights",
}

Part = Callable[[PointCounts], int]
Share = tuple[Part, Part]
"""What is counted, and of how many."""


def _all(now: PointCounts) -> int:
    return now.num_elements


def what_became(trajectory: Trajectory) -> Section:
    """Untouched, cancelled and effective weights, whole model and by kind."""
    kinds: list[str | None] = [*kinds_in_order(trajectory.final.by_kind), None]
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for kind in kinds:
        name = "all" if kind is None else printable(kind)
        last = trajectory.series(kind)[-1]
        numbers = fates(last)
        shares = {fate: percent(num, last.num_elements) for fate, num in numbers.items()}
        cells.append(
            (
                name,
                f"{last.num_elements:,}",
                *shares.values(),
                percent(last.outside_final, last.ever),
                settled_text(trajectory, "coverage", kind),
                settled_text(trajectory, "jaccard", kind),
            )
        )
        start = 0.0
        for fate in ("effective", "cancelled"):
            end = start + 100 * numbers[fate] / max(1, last.num_elements)
            tips = {"tip_0": name, "tip_1": fate, "tip_2": shares[fate]}
            tips["tip_3"] = f"{numbers[fate]:,}"
            rows.append({"name": name, "arm": fate, "from": start, "to": end, **tips})
            start = end
    spec = ever_changed_bars(
        rows,
        ("effective", "cancelled"),
        list(dict.fromkeys(row["name"] for row in rows)),
        highest=min(100.0, nice_ceiling(max(row["to"] for row in rows))),
    )
    columns: list[Column] = [("kind", "text"), ("elements", "number")]
    columns += [(fate, "number") for fate in FATES]
    columns += [("cancelled, of ever changed", "number")]
    columns += [("settled by coverage", "number"), ("by Jaccard", "number")]
    meanings = " ".join(f"{fate.capitalize()}: {meaning}." for fate, meaning in FATES.items())
    return Section(
        "What became of the weights",
        (meanings,),
        (
            Figure(
                f"Weights that ever changed, by kind (observed {cadence(trajectory)})",
                spec,
                "The length of a bar is the share of the weights that differed from the base at "
                "some point; the rest is untouched.",
                table(
                    f"Untouched, cancelled, effective (observed {cadence(trajectory)})",
                    columns,
                    cells,
                    has_total=True,
                    is_folded=False,
                    note="“Settled” is the first point from which coverage of the final "
                    "subnetwork, or Jaccard similarity with it, stays at "
                    f"{RULE} or above to the end.",
                ),
                (Key("dot-0", "effective"), Key("dot-1", "cancelled")),
            ),
        ),
    )


def over_time(trajectory: Trajectory) -> Section:
    """Update sparsity at each point, and what changed from one point to the next."""
    unchanged: dict[str, Share] = {
        "unchanged": (lambda now: now.num_elements - now.changed, _all),
        "untouched so far": (lambda now: now.untouched, _all),
    }
    moved: dict[str, Share] = {"changed since the point before": (lambda now: now.stepped, _all)}
    return Section(
        "How it came about",
        (),
        (
            _curves(
                trajectory,
                "Update sparsity over time",
                unchanged,
                "share of all weights (%)",
                "“Unchanged” weights are bit-identical to the base at this point, “untouched” ones "
                "were so at every point so far: between the two lines lie the weights that have "
                "come back.",
                from_zero=False,
            ),
            _curves(
                trajectory,
                "Update density from point to point",
                moved,
                "share of all weights (%)",
                "Weights whose bits differ from those at the point before; at the first point, "
                "from the base.",
            ),
        ),
    )


def final_subnetwork(trajectory: Trajectory) -> Section | None:
    """When the final mask was there, and what lies outside it; None where nothing changed."""
    final = trajectory.final.total.changed
    if not final:
        return None
    likeness: dict[str, Share] = {
        "coverage": (lambda now: now.in_final, lambda _: final),
        "Jaccard": (lambda now: now.in_final, lambda now: now.changed + final - now.in_final),
    }
    outside: dict[str, Share] = {
        "of the weights that ever changed": (lambda now: now.outside_final, lambda now: now.ever),
        "of the model": (lambda now: now.outside_final, _all),
    }
    sentences = (settled_sentence(trajectory), outside_sentence(trajectory))
    return Section(
        "The final subnetwork",
        tuple(sentence for sentence in sentences if sentence is not None),
        (
            _curves(
                trajectory,
                "How much of the final mask is there",
                likeness,
                "likeness to the final mask (%)",
                "“Coverage” is the share of the final subnetwork that differs from the base at "
                "this point. “Jaccard” divides the same weights by those that differ at this "
                "point, at the last one, or at both, so it also counts what will come back.",
                rule=100 * SETTLED_FROM,
                domain=(0.0, 100.0),
                more=(Key("dashed", f"settled: {RULE}"),),
            ),
            _curves(
                trajectory,
                "Weights that changed so far and are outside the final subnetwork",
                outside,
                "share (%)",
                "The same weights by two denominators.",
            ),
        ),
    )


def _curves(
    trajectory: Trajectory,
    title: str,
    shares: Mapping[str, Share],
    axis: str,
    reading: str,
    *,
    from_zero: bool = True,
    domain: tuple[float, float] | None = None,
    rule: float | None = None,
    more: Sequence[Key] = (),
) -> Figure:
    """Shares of the whole model at every point, as lines and as a table."""
    steps = trajectory.steps
    columns: list[Column] = [("point", "text")]
    for name in shares:
        columns += [(name, "number"), ("weights", "number")]
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for place, now in enumerate(trajectory.series()):
        name = point_title(trajectory, place)
        row = [name]
        for line, (part, whole) in shares.items():
            text, number = percent(part(now), whole(now)), f"{part(now):,}"
            row += [text, number]
            if whole(now):
                at = place + 1 if steps is None else steps[place]
                value = 100 * part(now) / whole(now)
                tips = {"tip_0": name, "tip_1": f"{text} {line}", "tip_2": number}
                rows.append({"arm": line, "at": at, "value": value, **tips})
        cells.append(tuple(row))
    values = [row["value"] for row in rows]
    if domain is None:
        top = min(100.0, nice_ceiling(max(values, default=0.0)))
        domain = (0.0, top) if from_zero else (percent_floor(values), 100.0)
    keys = [Key(f"dot-{place}", name) for place, name in enumerate(shares)]
    heading = f"{title} (observed {cadence(trajectory)})"
    return Figure(
        heading,
        shares_over_time(
            Marks(rows, ("point", "share", "weights")),
            list(shares),
            time="optimizer step" if steps else "point, in the order given",
            axis=axis,
            domain=domain,
            rule=rule,
        ),
        reading,
        table(heading, columns, cells),
        (*(keys if len(keys) > 1 else ()), *more),
    )


def trajectory_coverage(trajectory: Trajectory) -> Section:
    """What was followed and what was not; every gap is listed."""
    coverage = trajectory.coverage
    if coverage is None:
        return Section("Coverage", (f"Coverage is {coverage_text(trajectory)}.",))
    blocks = [
        listed(_TITLES[name], rows) for name in COVERAGE_LISTS if (rows := getattr(coverage, name))
    ]
    sentence = f"Coverage is {coverage_text(trajectory)}."
    return Section("Coverage", (sentence,), tuple(blocks), not coverage.is_complete)


def coverage_text(trajectory: Trajectory) -> str:
    """Which weights the figures speak of, to follow "coverage is"."""
    if trajectory.coverage is not None:
        return series_coverage_sentence(trajectory.coverage)
    return f"that of the tracker: {trajectory.final.total.num_elements:,} weights of the model"


def trajectory_provenance(trajectory: Trajectory) -> Section:
    """Ids, hashes and how the series was followed."""
    records: dict[str, CheckpointRecord] = {"base": trajectory.base}
    last = trajectory.final.checkpoint
    if last is not None:
        records["last"] = last
    entries = {
        "observed": trajectory.observed,
        "optimizer steps from point to point": trajectory.every,
        "conversion": trajectory.conversion or "none: compared as stored",
        **trajectory.provenance,
    }
    blocks: list[Table] = [checkpoints_table(records)]
    if last is not None:
        blocks.append(_points_table(trajectory))
    blocks.append(settings_table("Trajectory", entries, is_folded=False))
    return Section("Provenance", blocks=tuple(blocks))


def _points_table(trajectory: Trajectory) -> Table:
    """Which checkpoint each point was."""
    return table(
        "Points",
        [
            ("checkpoint", "code"),
            ("step", "number"),
            ("revision", "code"),
            ("content hash", "code"),
        ],
        [
            (
                printable(point.label),
                "–" if point.step is None else f"{point.step:,}",
                printable(record.revision or "–"),
                printable(record.content_hash),
            )
            for point in trajectory.points
            if (record := point.checkpoint) is not None
        ],
        is_folded=len(trajectory.points) > 12,
    )
