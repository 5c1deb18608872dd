"""Sections of the page on what masks share, beside what they would share by chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trimtab.masks.overlap_chance import Shared
from trimtab.masks.overlap_result import Overlap
from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.charts import nice_ceiling, percent_floor
from trimtab.report.overlap_charts import MEASURED, counts_by_mask, lift_dots, pair_matrix
from trimtab.report.overlap_wording import (
    common_sentence,
    count_text,
    letters,
    lift_text,
    null_cells,
    null_note,
    probability_text,
    ratio_text,
    short_name,
    z_text,
)
from trimtab.report.trajectory_charts import shares_over_time
from trimtab.report.wording import kinds_in_order, printable

__all__ = [
    "against_chance",
    "agreed",
    "every_pair",
    "lifts_by_kind",
    "over_the_series",
]

_COUNTS: tuple[Column, ...] = (
    ("in the first", "number"),
    ("in the second", "number"),
    ("shared", "number"),
    ("o1", "number"),
    ("o2", "number"),
)
_SHARES_NOTE = (
    "“o1” is the share of the first mask that is in the second, “o2” that of the second in the "
    "first. The last columns are the lift over each null: shared / expected."
)


def against_chance(overlap: Overlap) -> Section:
    """Two masks: what they share, and under each null what chance gives."""
    shared = overlap.total()
    measured = (
        MEASURED,
        f"{shared.intersection:,}",
        *map(ratio_text, shared.ratios),
        *("",) * 5,
    )
    rows = [null_cells(null, against) for null, against in shared.nulls.items()]
    columns: list[Column] = [("", "text"), ("shared", "number")]
    columns += [(title, "number") for title in ("o1", "o2", "Jaccard", "lift", "z", "p")]
    columns += [("most o1", "number"), ("most o2", "number")]
    return Section(
        "More than chance?",
        blocks=(
            table(
                "Measured, and expected under each null",
                columns,
                [measured, *rows],
                is_folded=False,
                note=null_note(),
            ),
        ),
    )


def lifts_by_kind(overlap: Overlap) -> Section:
    """Two masks: the lift of each kind over each null, and the same by layer."""
    by_kind = overlap.by_kind()
    shares = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    shares["all"] = overlap.total()
    rows: list[dict[str, Any]] = [
        {
            "arm": null,
            "name": name,
            "lift": against.lift,
            "tip_0": name,
            "tip_1": null,
            "tip_2": lift_text(against.lift),
            "tip_3": f"{shared.intersection:,}",
            "tip_4": count_text(against.expected),
            "tip_5": z_text(against.z),
        }
        for name, shared in shares.items()
        for null, against in shared.nulls.items()
        if against.lift
    ]
    figure = Figure(
        "Lift by kind, over each null",
        lift_dots(rows, overlap.nulls, list(shares)),
        "At 1 (the line) the masks share what the null expects. The axis is logarithmic: what is "
        "left at the magnitude-matched null is not explained by how large the weights were.",
        table(
            "By kind",
            [("kind", "text"), *_COUNTS, *_lift_columns(overlap)],
            [(name, *_cells(shared)) for name, shared in shares.items()],
            has_total=True,
            is_folded=False,
            note=_SHARES_NOTE,
        ),
        tuple(Key(f"dot-{place}", null) for place, null in enumerate(overlap.nulls)),
    )
    layers = table(
        "By layer",
        [("layer", "text"), *_COUNTS, *_lift_columns(overlap)],
        [(_layer(layer), *_cells(shared)) for layer, shared in overlap.by_layer().items()],
        note=_SHARES_NOTE,
    )
    both = table(
        "By layer and kind",
        [("layer", "text"), ("kind", "code"), *_COUNTS, *_lift_columns(overlap)],
        [
            (_layer(layer), printable(kind), *_cells(shared))
            for (layer, kind), shared in overlap.by_layer_kind().items()
        ],
        note=_SHARES_NOTE,
    )
    return Section("Where", blocks=(figure, layers, both))


def _lift_columns(overlap: Overlap) -> list[Column]:
    return [(short_name(null), "number") for null in overlap.nulls]


def _cells(shared: Shared) -> tuple[str, ...]:
    """Cells of `_COUNTS` and `_lift_columns`."""
    counts = shared.num_first, shared.num_second, shared.intersection
    return (
        *(f"{count:,}" for count in counts),
        ratio_text(shared.o1),
        ratio_text(shared.o2),
        *(lift_text(against.lift) for against in shared.nulls.values()),
    )


def _layer(layer: int | None) -> str:
    return "outside the layers" if layer is None else str(layer)


def every_pair(overlap: Overlap) -> Section:
    """Three masks or more: shares and lifts of every pair."""
    names = letters(overlap)
    totals = {pair: overlap.total(*pair) for pair in overlap.pairs}
    both_ways = [*totals, *((second, first) for first, second in totals)]
    finest = overlap.nulls[-1]
    shares, lifts = [], []
    for row, column in sorted(both_ways):
        shared = totals[min(row, column), max(row, column)]
        share = shared.o1 if row < column else shared.o2
        lift = shared.nulls[finest].lift
        tips = (
            f"{names[row]} in {names[column]}",
            ratio_text(share),
            f"{shared.intersection:,}",
            *(lift_text(against.lift) for against in shared.nulls.values()),
        )
        cell = {
            "row": names[row],
            "column": names[column],
            **{f"tip_{place}": tip for place, tip in enumerate(tips)},
        }
        shares.append({**cell, "value": share or 0.0, "label": ratio_text(share)})
        lifts.append({**cell, "value": lift or 0.0, "label": lift_text(lift)})
    titles = ("share of", "share", "shared", *(f"lift, {null}" for null in overlap.nulls))
    pairs = table(
        "Every pair",
        [("first", "text"), ("second", "text"), *_COUNTS, *_lift_columns(overlap)],
        [
            (names[first], names[second], *_cells(shared))
            for (first, second), shared in totals.items()
        ],
        is_folded=False,
        note=_SHARES_NOTE,
    )
    found = [shared.nulls[finest].lift or 0.0 for shared in totals.values()]
    highest = nice_ceiling(max([1.1, *found]))
    return Section(
        "Every pair",
        blocks=(
            Figure(
                "Share of the mask of the row that is in that of the column",
                pair_matrix(shares, names, lowest=0.0, highest=1.0, tips=titles),
                "Two masks of different densities share different shares of each.",
                pairs,
            ),
            Figure(
                f"Lift over the {finest} null",
                pair_matrix(lifts, names, lowest=min(1.0, highest), highest=highest, tips=titles),
                "1 is what the null expects; the lifts over the other nulls are in the table.",
                _lift_table(overlap, totals.values()),
            ),
        ),
    )


def _lift_table(overlap: Overlap, totals: Iterable[Shared]) -> Table:
    names = letters(overlap)
    return table(
        "Every pair against each null",
        [
            ("first", "text"),
            ("second", "text"),
            ("null", "text"),
            *((title, "number") for title in ("shared", "expected", "lift", "z", "p")),
        ],
        [
            (
                names[first],
                names[second],
                null,
                f"{shared.intersection:,}",
                count_text(against.expected),
                lift_text(against.lift),
                z_text(against.z),
                probability_text(against),
            )
            for (first, second), shared in zip(overlap.pairs, totals, strict=True)
            for null, against in shared.nulls.items()
        ],
        note=null_note(),
    )


def over_the_series(overlap: Overlap) -> Section:
    """Masks in the order of time: each set against the last."""
    names, last = letters(overlap), len(overlap.masks) - 1
    shares = [overlap.total(place, last) for place in range(last)]
    lines = {f"of it in {names[last]}": "o1", f"of {names[last]} in it": "o2"}
    rows = [
        {
            "arm": title,
            "at": place + 1,
            "value": 100 * ratio,
            "tip_0": names[place],
            "tip_1": f"{ratio_text(ratio)} {title}",
            "tip_2": f"{shared.intersection:,}",
        }
        for place, shared in enumerate(shares)
        for title, key in lines.items()
        if (ratio := getattr(shared, key)) is not None
    ]
    figure = Figure(
        f"Each mask against the last, {names[last]}",
        shares_over_time(
            rows,
            list(lines),
            time="mask, in the order given",
            axis="shared (%)",
            domain=(percent_floor([row["value"] for row in rows]), 100.0),
        ),
        "How much of an early mask stays to the end, and how much of the last one it already has.",
        table(
            "Against the last",
            [("first", "text"), *_COUNTS, *_lift_columns(overlap)],
            [(names[place], *_cells(shared)) for place, shared in enumerate(shares)],
            is_folded=False,
            note=_SHARES_NOTE,
        ),
        tuple(Key(f"dot-{place}", title) for place, title in enumerate(lines)),
    )
    return Section("Early and late", blocks=(figure,))


def agreed(overlap: Overlap) -> Section:
    """Three masks or more: how many weights are in exactly so many of them."""
    consensus = overlap.consensus()
    counts = [str(count) for count in range(len(consensus.num_by_count))]
    expected = {null: consensus.expected_by_count(null) for null in overlap.nulls}
    arms = [MEASURED, *overlap.nulls]
    rows = [
        {
            "arm": arm,
            "count": count,
            "weights": weights,
            "tip_0": count,
            "tip_1": arm,
            "tip_2": f"{weights:,}" if arm == MEASURED else count_text(weights),
            "tip_3": lift_text(consensus.num_by_count[int(count)] / weights),
        }
        for arm, numbers in ((MEASURED, consensus.num_by_count), *expected.items())
        for count, weights in zip(counts, numbers, strict=True)
        if weights > 0
    ]
    figure = Figure(
        "Weights in exactly so many masks",
        counts_by_mask(rows, arms, counts),
        "A dot is what was measured, a tick what a null expects; the axis is logarithmic.",
        table(
            "Weights in exactly so many masks, and expected under each null",
            [("masks", "text"), ("weights", "number"), *((null, "number") for null in expected)],
            [
                (
                    count,
                    f"{consensus.num_by_count[int(count)]:,}",
                    *(count_text(numbers[int(count)]) for numbers in expected.values()),
                )
                for count in counts
            ],
            is_folded=False,
        ),
        tuple(Key(f"dot-{place}", arm) for place, arm in enumerate(arms)),
    )
    common = table(
        "In all masks, by kind",
        [("kind", "text"), ("in any", "number"), ("in all", "number"), *_lift_columns(overlap)],
        _common_rows(overlap),
        has_total=True,
        note="The last columns are the lift over each null: in all masks / expected.",
    )
    return Section("What all agree on", (common_sentence(overlap),), (figure, common))


def _common_rows(overlap: Overlap) -> Sequence[tuple[str, ...]]:
    by_kind = overlap.consensus_by_kind()
    groups = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    groups["all"] = overlap.consensus()
    return [
        (
            name,
            f"{group.num_any:,}",
            f"{group.num_common:,}",
            *(lift_text(group.common_lift(null)) for null in overlap.nulls),
        )
        for name, group in groups.items()
    ]
