"""The report of a trajectory: how a subnetwork forms over a series of checkpoints or steps.

Draws figures 2, 5, 6 and 7b of arXiv 2505.11711, by bits instead of within 1e-5. Figure 6 can be
read as a share of the weights that ever changed or of the model; both are drawn. Every title gives
the cadence, since moves that are undone between two points are not observed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import (
    COVERAGE_LISTS,
    SETTLED_FROM,
    Likeness,
    PointCounts,
    Trajectory,
)
from trimtab.report import charts, vega, wording
from trimtab.report import document as doc
from trimtab.report import trajectory_words as words
from trimtab.report.records import checkpoints_table, listed, settings_table
from trimtab.results.records import CheckpointRecord

_TITLES = {
    "not_compared": "Not in all checkpoints with one shape, not followed",
    "tied": "Tied tensors, counted once",
    "renamed": "Matched under another name",
    "folded": "Block scales multiplied into their weights",
}
_MOST_POINTS = 24
"""Maximum number of points in a terminal; a longer series is sampled evenly."""

Part = Callable[[PointCounts], int]
Share = tuple[Part, Part]
"""Numerator and denominator of a share."""


def trajectory_document(trajectory: Trajectory) -> doc.Document:
    """The document of a trajectory."""
    base, last = words.endpoints_of(trajectory)
    has_weights = trajectory.final.total.num_elements > 0
    return doc.Document(
        title=f"{base} to {last}, observed {words.cadence(trajectory)}",
        heading="How the subnetwork formed",
        subtitle=(base, last),
        facts={"base": base, "last": last},
        headlines=(words.fates_sentence(trajectory),),
        summary=(
            words.cadence_sentence(trajectory),
            words.settled_sentence(trajectory),
            words.outside_sentence(trajectory),
        ),
        heroes=_heroes(trajectory),
        conversion=wording.printable(trajectory.conversion or ""),
        coverage=_coverage_text(trajectory),
        is_complete=trajectory.coverage is None or trajectory.coverage.is_complete,
        prints_coverage=trajectory.coverage is not None,
        paragraphs=(words.cadence_sentence(trajectory), wording.changed_means("bits")),
        sections=[
            *([doc.Section("", blocks=(_points(trajectory),))] if has_weights else []),
            _what_became(trajectory),
            _over_time(trajectory),
            _final_subnetwork(trajectory),
            _coverage(trajectory),
            _provenance(trajectory),
        ],
        source=f"criterion bits, observed {words.cadence(trajectory)} · {base} → {last}",
        date=trajectory.provenance.get("date", ""),
    )


def _heroes(trajectory: Trajectory) -> list[doc.Hero]:
    """What became of the weights: effective, cancelled, untouched."""
    total = trajectory.final.total
    if not total.num_elements:
        return [doc.Hero("", "–", "no weights were followed", 0.0, "nothing to follow")]
    numbers = words.fates(total)
    return [
        doc.Hero(
            label=fate.capitalize(),
            figure=percent(numbers[fate], total.num_elements),
            words=f"of {total.num_elements:,} weights: {words.FATES[fate]}",
            filled=numbers[fate] / total.num_elements,
            under=f"{numbers[fate]:,} (criterion: bits; observed {words.cadence(trajectory)})",
        )
        for fate in ("effective", "cancelled", "untouched")
    ]


def _all(now: PointCounts) -> int:
    return now.num_elements


def _what_became(trajectory: Trajectory) -> doc.Section:
    """Untouched, cancelled and effective weights, whole model and by kind."""
    kinds: list[str | None] = [*wording.kinds_in_order(trajectory.final.by_kind), None]
    rows: list[doc.Keyed[tuple[str | None, PointCounts]]] = [
        ((kind or "all",), (kind, trajectory.series(kind)[-1])) for kind in kinds
    ]

    def fate(name: str) -> doc.Column[tuple[str | None, PointCounts]]:
        return doc.Column(
            name,
            lambda row: wording.share(words.fates(row[1])[name], row[1].num_elements),
            drop=3 if name == "cancelled" else 0,
        )

    title = f"What became of the weights, observed {words.cadence(trajectory)}"
    numbers = doc.table(
        f"Untouched, cancelled, effective (observed {words.cadence(trajectory)})",
        rows,
        (
            doc.Column("elements", lambda row: wording.count(row[1].num_elements), drop=2),
            *map(fate, words.FATES),
            doc.Column(
                "cancelled, of ever changed",
                lambda row: wording.share(row[1].outside_final, row[1].ever),
                short="outside/ever",
                drop=1,
            ),
            doc.Column(
                "settled by coverage",
                lambda row: words.settled_text(trajectory, "coverage", row[0]),
                short="settled",
                note="“settled” is the first point from which coverage of the final subnetwork, or "
                f"Jaccard similarity with it, stays at {words.RULE} or above to the end.",
            ),
            doc.Column(
                "by Jaccard",
                lambda row: words.settled_text(trajectory, "jaccard", row[0]),
                only="page",
            ),
        ),
        keys=("kind",),
        has_total=True,
        is_folded=False,
        brief=title if trajectory.final.total.num_elements else None,
    )
    meanings = " ".join(f"{name.capitalize()}: {meaning}." for name, meaning in words.FATES.items())
    figure = doc.Figure(
        f"Weights that ever changed, by kind (observed {words.cadence(trajectory)})",
        lambda: _ever_changed_bars(rows),
        "The length of a bar is the share of the weights that differed from the base at some "
        "point; the rest is untouched.",
        numbers,
        (doc.Key("dot-0", "effective"), doc.Key("dot-1", "cancelled")),
    )
    return doc.Section("What became of the weights", (meanings,), (figure,))


def _ever_changed_bars(rows: Sequence[doc.Keyed[tuple[str | None, PointCounts]]]) -> dict[str, Any]:
    """The weights of each kind that ever changed, by their final state."""
    drawn = ("effective", "cancelled")

    def place(names: Sequence[str], counts: PointCounts) -> dict[str, Any]:
        start = 0 if names[1] == drawn[0] else counts.changed
        whole = max(1, counts.num_elements)
        ends = {
            "from": 100 * start / whole,
            "to": 100 * (start + words.fates(counts)[names[1]]) / whole,
        }
        return {"name": wording.printable(names[0]), "arm": names[1], **ends}

    marks = charts.marks_of(
        [((*names, fate), (counts, fate)) for names, (_, counts) in rows for fate in drawn],
        ("kind", "what became of them"),
        (
            doc.Column(
                "share", lambda row: wording.share(words.fates(row[0])[row[1]], row[0].num_elements)
            ),
            doc.Column("weights", lambda row: wording.count(words.fates(row[0])[row[1]])),
        ),
        lambda names, row: place(names, row[0]),
    )
    names = list(dict.fromkeys(row["name"] for row in marks.rows))
    highest = min(100.0, charts.nice_ceiling(max(marks.values("to"))))
    look: dict[str, Any] = {"tickCount": 6, "labelFlush": False}
    return vega.chart(
        marks.rows,
        height=24 * len(names),
        mark={"type": "bar", "height": {"band": 0.7}},
        encoding={
            "y": vega.category("name", names, padding=None, labelLimit=220),
            "x": vega.quantity("from", "ever changed (%)", (0, highest), **look),
            "x2": {"field": "to"},
            "color": vega.arm_colours(drawn),
            "tooltip": marks.tooltip,
        },
    )


def _over_time(trajectory: Trajectory) -> doc.Section:
    """Update sparsity at each point, and changes from point to point."""
    unchanged: dict[str, Share] = {
        "unchanged": (lambda now: now.num_elements - now.changed, _all),
        "untouched so far": (lambda now: now.untouched, _all),
    }
    moved: dict[str, Share] = {"changed since the point before": (lambda now: now.stepped, _all)}
    return doc.Section(
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


def _final_subnetwork(trajectory: Trajectory) -> doc.Section | None:
    """When the final mask formed, and changes outside it; None if nothing changed."""
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
    sentences = (words.settled_sentence(trajectory), words.outside_sentence(trajectory))
    return doc.Section(
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
                more=(doc.Key("dashed", f"settled: {words.RULE}"),),
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


def _points(trajectory: Trajectory) -> doc.Table:
    """Evenly sampled points, for a terminal."""
    num = len(trajectory.points)
    most = min(num, _MOST_POINTS)
    indices = sorted({round((index + 1) * num / most) - 1 for index in range(most)})

    def column(heading: str, part: Part, note: str = "", **more: Any) -> doc.Column[int]:
        def cell(index: int) -> wording.Shown:
            now = trajectory.points[index].total
            return wording.share(part(now), now.num_elements)

        return doc.Column(heading, cell, note=note, **more)

    def likeness(heading: str, measure: Likeness, note: str, drop: int) -> doc.Column[int]:
        cell: Callable[[int], str] = lambda index: words.likeness_text(trajectory, measure, index)  # noqa: E731
        return doc.Column(heading, cell, note=note, drop=drop)

    def outside_of_ever(index: int) -> str:
        now = trajectory.points[index].total
        return wording.share(now.outside_final, now.ever)

    steps = trajectory.steps
    title = f"Over time, observed {words.cadence(trajectory)}"
    shown = doc.table(
        title,
        [
            (
                (words.point_title(trajectory, index) if steps is None else f"{steps[index]:,}",),
                index,
            )
            for index in indices
        ],
        (
            column(
                "unchanged",
                lambda now: now.num_elements - now.changed,
                "“unchanged”: equal to the base at this point;",
            ),
            column("untouched", lambda now: now.untouched, "“untouched”: at every point so far;"),
            column("cancelled", lambda now: now.returned, drop=4),
            column("moved", lambda now: now.stepped, "“moved”: differs from the point before;"),
            likeness(
                "coverage",
                "coverage",
                "“coverage”: share of the final subnetwork that differs from the base already;",
                0,
            ),
            likeness("Jaccard", "jaccard", "“Jaccard”: similarity with the final mask;", 3),
            doc.Column(
                "outside/ever",
                outside_of_ever,
                drop=2,
                note="“outside”: differed so far and is not in the final subnetwork, as a share of "
                "what ever changed, and of all.",
            ),
            column("outside/all", lambda now: now.outside_final, drop=1),
        ),
        keys=(("step", "number") if steps else "point",),
        brief=title,
        on_page=False,
    )
    return replace(shown, num_left_out=num - len(indices))


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
    more: Sequence[doc.Key] = (),
) -> doc.Figure:
    """Shares of the whole model at every point, as lines and as a table."""
    steps = trajectory.steps
    indices: list[int] = list(range(len(trajectory.points)))
    series = trajectory.series()
    names = [words.point_title(trajectory, place) for place in indices]
    columns: list[tuple[str, doc.Role]] = [("point", "text")]
    for line in shares:
        columns += [(line, "number"), ("weights", "number")]
    cells = []
    drawn: list[dict[str, Any]] = []
    for place, now in zip(indices, series, strict=True):
        row = [names[place]]
        for line, (part, whole) in shares.items():
            text, number = wording.share(part(now), whole(now)), wording.count(part(now))
            row += [text, number]
            if text.value is not None:
                tips = {"tip_0": names[place], "tip_1": f"{text} {line}", "tip_2": number}
                index = place + 1 if steps is None else steps[place]
                drawn.append({"arm": line, "at": index, "value": 100 * text.value, **tips})
        cells.append(row)
    marks = charts.Marks(drawn, ("point", "share", "weights"))
    values = marks.values("value")
    if domain is None:
        top = min(100.0, charts.nice_ceiling(max(values, default=0.0)))
        domain = (0.0, top) if from_zero else (charts.percent_floor(values), 100.0)
    keys = [doc.Key(f"dot-{place}", name) for place, name in enumerate(shares)]
    heading = f"{title} (observed {words.cadence(trajectory)})"
    return doc.Figure(
        heading,
        lambda: charts.shares_over_time(
            marks,
            list(shares),
            time="optimizer step" if steps else "point, in the order given",
            axis=axis,
            domain=domain,
            rule=rule,
        ),
        reading,
        doc.plain_table(heading, columns, cells),
        (*(keys if len(keys) > 1 else ()), *more),
    )


def _coverage(trajectory: Trajectory) -> doc.Section:
    """What was tracked and what was not; every gap is listed."""
    coverage = trajectory.coverage
    if coverage is None:
        return doc.Section("Coverage", (f"Coverage is {_coverage_text(trajectory)}.",))
    blocks = [
        listed(_TITLES[name], rows) for name in COVERAGE_LISTS if (rows := getattr(coverage, name))
    ]
    sentence = f"Coverage is {_coverage_text(trajectory)}."
    return doc.Section("Coverage", (sentence,), tuple(blocks), not coverage.is_complete)


def _coverage_text(trajectory: Trajectory) -> str:
    """The coverage, to follow "coverage is"."""
    if trajectory.coverage is not None:
        return words.series_coverage_sentence(trajectory.coverage)
    return f"that of the tracker: {trajectory.final.total.num_elements:,} weights of the model"


def _provenance(trajectory: Trajectory) -> doc.Section:
    """Ids, hashes and settings of the trajectory."""
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
    blocks: list[doc.Table] = [checkpoints_table(records)]
    if last is not None:
        blocks.append(_points_table(trajectory))
    blocks.append(settings_table("Trajectory", entries))
    return doc.Section("Provenance", blocks=tuple(blocks))


def _points_table(trajectory: Trajectory) -> doc.Table:
    """The checkpoint of each point."""
    return doc.plain_table(
        "Points",
        [
            ("checkpoint", "code"),
            ("step", "number"),
            ("revision", "code"),
            ("content hash", "code"),
        ],
        [
            (
                wording.printable(point.label),
                "–" if point.step is None else f"{point.step:,}",
                wording.printable(record.revision or "–"),
                wording.printable(record.content_hash),
            )
            for point in trajectory.points
            if (record := point.checkpoint) is not None
        ],
        is_folded=len(trajectory.points) > 12,
    )
