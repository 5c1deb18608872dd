"""The report of an overlap: what masks share, compared with chance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from trimtab.elements.counts import percent
from trimtab.masks.overlap_chance import (
    INDEPENDENT,
    MAGNITUDE,
    PER_TENSOR,
    AgainstNull,
    Null,
    Shared,
)
from trimtab.masks.overlap_result import Overlap
from trimtab.report import chance, charts, vega
from trimtab.report import document as doc
from trimtab.report.records import mask_file, mask_text
from trimtab.report.wording import count, kinds_in_order, layer_text, printable
from trimtab.words import are, plural

_LIFTS = "The last columns are the lift over each null: shared / expected."


def overlap_document(overlap: Overlap) -> doc.Document:
    """The document of an overlap."""
    texts = dict(zip(chance.letters(overlap), map(mask_text, overlap.masks), strict=True))
    first, *others = map(mask_file, overlap.masks)
    base = {} if overlap.base is None else {"base": printable(overlap.base.id)}
    caveat = chance.NO_BASE if overlap.base is None else None
    if len(overlap.masks) > 2:
        sentences = [common_sentence(overlap)]
    else:
        shared = overlap.total()
        over_nulls = {null: against.lift for null, against in shared.nulls.items()}
        lifts = chance.times_sentence(over_nulls, CHANCES)
        sentences = [shared_sentence(shared, "A", "B"), *([lifts] if lifts else [])]
    return doc.Document(
        title=f"{first} and {', '.join(others)}",
        heading="Do the masks select the same weights?",
        subtitle=(first, ", ".join(others)),
        facts=texts | base,
        headlines=sentences[:1],
        summary=sentences[1:],
        heroes=_heroes(overlap),
        warnings=(chance.other_base_sentence(overlap),),
        caveats=(caveat,),
        coverage=chance.coverage_sentence(overlap),
        is_complete=overlap.coverage.is_complete,
        paragraphs=(
            "; ".join(f"{letter} is {text}" for letter, text in texts.items()) + ".",
            " ".join(sentences),
            caveat,
        ),
        sections=[
            *_sections(overlap),
            chance.overlap_coverage(overlap),
            chance.overlap_provenance(overlap),
        ],
        source=f"masks {first} and {', '.join(others)} · magnitudes of "
        f"{base.get('base', 'no base')}",
        date=overlap.provenance.get("date", ""),
    )


def _sections(overlap: Overlap) -> list[doc.Section]:
    if len(overlap.masks) == 2:
        return [chance.against_chance(overlap), _where(overlap)]
    series = [_over_the_series(overlap)] if overlap.is_series else []
    return [*series, _every_pair(overlap), _agreed(overlap)]


def _counts(first: str, second: str) -> tuple[doc.Column[Shared], ...]:
    """Columns on what two masks share, by their names."""
    return (
        doc.Column(f"in {first}", lambda shared: count(shared.num_first), drop=1),
        doc.Column(f"in {second}", lambda shared: count(shared.num_second), drop=2),
        doc.Column("shared", lambda shared: count(shared.intersection)),
        doc.Column(
            "o1",
            lambda shared: chance.ratio_text(shared.o1),
            drop=4,
            note=f"“o1” is the share of {first} that is in {second}, “o2” that of {second} in "
            f"{first}.",
        ),
        doc.Column("o2", lambda shared: chance.ratio_text(shared.o2), drop=5),
    )


def _lifts(overlap: Overlap) -> tuple[doc.Column[Shared], ...]:
    """A column for the lift over each null."""

    def column(null: Null) -> doc.Column[Shared]:
        return doc.Column(
            _short_name(null), lambda shared: chance.lift_text(shared.nulls[null].lift)
        )

    return tuple(map(column, overlap.nulls))


def _where(overlap: Overlap) -> doc.Section:
    """Two masks: the lift over each null, by kind and by layer."""
    kinds = doc.rows_by_kind(overlap.by_kind(), overlap.total())
    elements = doc.Column[Shared]("elements", lambda shared: count(shared.num_elements), drop=3)
    columns = (elements, *_counts("A", "B"), *_lifts(overlap))
    figure = doc.Figure(
        "Lift by kind, over each null",
        lambda: _lift_by_kind(kinds, overlap.nulls),
        "At 1 (the line) the masks share what the null expects. The axis is logarithmic: what is "
        "left at the magnitude-matched null is not explained by how large the weights were.",
        doc.table(
            "By kind",
            kinds,
            columns,
            keys=("kind",),
            has_total=True,
            is_folded=False,
            note=_LIFTS,
            brief="By kind, with the lift over each null",
        ),
        tuple(doc.Key(f"dot-{index}", null) for index, null in enumerate(overlap.nulls)),
    )
    layers = doc.table(
        "By layer",
        doc.rows_by_layer(overlap.by_layer()),
        columns,
        keys=("layer",),
        note=_LIFTS,
    )
    both = doc.table(
        "By layer and kind",
        [
            ((layer_text(layer), kind), shared)
            for (layer, kind), shared in overlap.by_layer_kind().items()
        ],
        columns,
        keys=("layer", ("kind", "code")),
        note=_LIFTS,
    )
    return doc.Section("Where", blocks=(figure, layers, both))


def _lift_by_kind(kinds: Iterable[doc.Keyed[Shared]], nulls: Sequence[Null]) -> dict[str, Any]:
    marks = charts.marks_of(
        _against_each_null(kinds),
        ("kind", "null"),
        (_LIFT, _SHARED, _EXPECTED, _Z),
        lambda names, row: (
            {"name": printable(names[0]), "arm": names[1], "lift": row[1].lift}
            if row[1].lift
            else None
        ),
    )
    return charts.lift_dots(marks, nulls)


def _against_each_null(
    rows: Iterable[doc.Keyed[Shared]],
) -> list[doc.Keyed[tuple[Shared, AgainstNull]]]:
    """A row for each null, instead of each row."""
    return [
        ((*names, null), (shared, against))
        for names, shared in rows
        for null, against in shared.nulls.items()
    ]


_SHARED = doc.Column[tuple[Shared, AgainstNull]]("shared", lambda row: count(row[0].intersection))
_EXPECTED = doc.Column[tuple[Shared, AgainstNull]](
    "expected", lambda row: chance.count_text(row[1].expected)
)
_LIFT = doc.Column[tuple[Shared, AgainstNull]]("lift", lambda row: chance.lift_text(row[1].lift))
_Z = doc.Column[tuple[Shared, AgainstNull]]("z", lambda row: chance.z_text(row[1].z))
_P = doc.Column[tuple[Shared, AgainstNull]]("p", lambda row: chance.probability_text(row[1]))

Pair = tuple[Shared, float | None]
"""What two masks share, and the share of the first that is in the second."""


def _every_pair(overlap: Overlap) -> doc.Section:
    """Three masks or more: shares and lifts of every pair."""
    names, finest = chance.letters(overlap), overlap.nulls[-1]
    totals = {pair: overlap.total(*pair) for pair in overlap.pairs}
    pairs: dict[tuple[str, str], Pair] = {}
    for (first, second), shared in totals.items():
        pairs[names[first], names[second]] = shared, shared.o1
        pairs[names[second], names[first]] = shared, shared.o2

    def lift(null: Null) -> Callable[[Pair], float | None]:
        return lambda pair: pair[0].nulls[null].lift

    def lift_column(null: Null) -> doc.Column[Pair]:
        return doc.Column(f"lift, {null}", lambda pair: chance.lift_text(lift(null)(pair)))

    columns: dict[str, doc.Column[Pair]] = {
        "Share of the mask of the row that is in that of the column": doc.Column(
            "share", lambda pair: chance.ratio_text(pair[1])
        ),
        "Jaccard": doc.Column("Jaccard", lambda pair: chance.ratio_text(pair[0].jaccard)),
        **{f"Lift over the {null} null": lift_column(null) for null in overlap.nulls},
    }
    hover = (
        *columns.values(),
        doc.Column[Pair]("shared", lambda pair: count(pair[0].intersection)),
    )

    def squares(title: str, value: Callable[[Pair], float | None], low: float, high: float) -> Any:
        marks = charts.marks_of(
            [((f"{row} in {column}",), pair) for (row, column), pair in sorted(pairs.items())],
            ("share of",),
            hover,
            lambda key, pair: {
                **dict(zip(("row", "column"), key[0].split(" in "), strict=True)),
                "value": value(pair) or 0.0,
                "label": columns[title].cell(pair),
            },
        )
        return _pair_matrix(marks, names, lowest=low, highest=high)

    share_title, *_, lift_title = columns
    ordered = [
        ((names[first], names[second]), shared) for (first, second), shared in totals.items()
    ]
    highest = charts.nice_ceiling(
        max([1.1, *(lift(finest)(pair) or 0.0 for pair in pairs.values())])
    )
    matrices = [_matrix(names, pairs, title, column.cell) for title, column in columns.items()]
    return doc.Section(
        "Every pair",
        blocks=(
            *([] if overlap.is_series else matrices),
            doc.Figure(
                share_title,
                lambda: squares(share_title, lambda pair: pair[1], 0.0, 1.0),
                "Two masks of different densities share different shares of each.",
                doc.table(
                    "Every pair",
                    ordered,
                    (*_counts("the first", "the second"), *_lifts(overlap)),
                    keys=("first", "second"),
                    is_folded=False,
                    note=_LIFTS,
                ),
            ),
            doc.Figure(
                lift_title,
                lambda: squares(lift_title, lift(finest), min(1.0, highest), highest),
                "1 is what the null expects; the lifts over the other nulls are in the table.",
                doc.table(
                    "Every pair against each null",
                    _against_each_null(ordered),
                    (_SHARED, _EXPECTED, _LIFT, _Z, _P),
                    keys=("first", "second", "null"),
                    note=chance.NULLS,
                ),
            ),
        ),
    )


def _matrix(
    names: Sequence[str],
    pairs: Mapping[tuple[str, str], Pair],
    title: str,
    cell: Callable[[Pair], str],
) -> doc.Table:
    """A figure of every pair, as a terminal shows it."""
    rows = [
        (row, *(cell(pairs[row, column]) if row != column else "" for column in names))
        for row in names
    ]
    columns = (doc.Column[Any]("", role="text"), *map(doc.Column[Any], names))
    return doc.plain_table(title, columns, rows, brief=title, on_page=False)


def _over_the_series(overlap: Overlap) -> doc.Section:
    """Masks in the order of time: each compared with the last."""
    names, last = chance.letters(overlap), len(overlap.masks) - 1
    rows = [((names[index],), overlap.total(index, last)) for index in range(last)]
    of_it, in_it = f"of it in {names[last]}", f"of {names[last]} in it"
    lines = {of_it: "o1", in_it: "o2"}
    marks = charts.marks_of(
        [((*key, title), shared) for key, shared in rows for title in lines],
        ("mask", "share"),
        (
            doc.Column[Shared]("o1", lambda shared: chance.ratio_text(shared.o1)),
            doc.Column[Shared]("o2", lambda shared: chance.ratio_text(shared.o2)),
            doc.Column[Shared]("weights", lambda shared: count(shared.intersection)),
        ),
        lambda key, shared: (
            None
            if (ratio := getattr(shared, lines[key[1]])) is None
            else {"arm": key[1], "at": names.index(key[0]) + 1, "value": 100 * ratio}
        ),
    )
    figure = doc.Figure(
        f"Each mask against the last, {names[last]}",
        lambda: charts.shares_over_time(
            marks,
            list(lines),
            time="mask, in the order given",
            axis="shared (%)",
            domain=(charts.percent_floor(marks.values("value")), 100.0),
        ),
        "How much of an early mask stays to the end, and how much of the last one it already has.",
        doc.table(
            "Against the last",
            rows,
            (
                doc.Column("selected", lambda shared: count(shared.num_first)),
                doc.Column("shared", lambda shared: count(shared.intersection), drop=1),
                doc.Column(of_it, lambda shared: chance.ratio_text(shared.o1)),
                doc.Column(in_it, lambda shared: chance.ratio_text(shared.o2)),
                doc.Column("Jaccard", lambda shared: chance.ratio_text(shared.jaccard), drop=2),
                *_lifts(overlap),
            ),
            keys=("mask",),
            is_folded=False,
            note=_LIFTS,
            brief=f"Each mask against the last, {names[last]}, with the lift over each null",
        ),
        tuple(doc.Key(f"dot-{index}", title) for index, title in enumerate(lines)),
    )
    return doc.Section("Early and late", blocks=(figure,))


def _agreed(overlap: Overlap) -> doc.Section:
    """Three masks or more: number of weights by the number of masks that select them."""
    consensus, by_kind = overlap.consensus(), overlap.consensus_by_kind()
    expected = {null: consensus.expected_by_count(null) for null in overlap.nulls}
    numbers: dict[str, Sequence[float]] = {chance.MEASURED: consensus.num_by_count}
    numbers |= {str(null): by_count for null, by_count in expected.items()}
    nulls: list[tuple[str, doc.Role]] = [(_short_name(null), "number") for null in overlap.nulls]
    counts = [str(index) for index in range(len(consensus.num_by_count))]
    title = "Weights in exactly so many masks"
    marks = charts.marks_of(
        [
            ((index, name), (consensus.num_by_count[int(index)], weights))
            for name, by_count in numbers.items()
            for index, weights in zip(counts, by_count, strict=True)
        ],
        ("masks", ""),
        (
            doc.Column("weights", lambda row: chance.count_text(row[1])),
            doc.Column("measured ÷ this", lambda row: chance.lift_text(row[0] / row[1])),
        ),
        lambda names, row: (
            {"count": names[0], "arm": names[1], "weights": row[1]} if row[1] > 0 else None
        ),
    )
    figure = doc.Figure(
        title,
        lambda: _counts_by_mask(marks, list(numbers), counts),
        "A dot is what was measured, a tick what a null expects; the axis is logarithmic.",
        doc.plain_table(
            f"{title}, and expected under each null",
            [("in so many masks", "text"), ("weights", "number"), *nulls],
            [
                (
                    index,
                    count(num),
                    *(chance.count_text(by_count[int(index)]) for by_count in expected.values()),
                )
                for index, num in zip(counts, consensus.num_by_count, strict=True)
            ],
            is_folded=False,
            brief=f"{title}, and how many each null expects",
        ),
        tuple(doc.Key(f"dot-{index}", name) for index, name in enumerate(numbers)),
    )
    groups = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    common = doc.plain_table(
        "In all masks, by kind",
        [("kind", "text"), ("in any", "number"), ("in all", "number"), *nulls],
        [
            (
                name,
                count(group.num_any),
                count(group.num_common),
                *(chance.lift_text(group.common_lift(null)) for null in overlap.nulls),
            )
            for name, group in {**groups, "all": consensus}.items()
        ],
        has_total=True,
        note="The last columns are the lift over each null: in all masks / expected.",
    )
    return doc.Section("What all agree on", (common_sentence(overlap),), (figure, common))


def _pair_matrix(
    marks: charts.Marks, names: Sequence[str], *, lowest: float, highest: float
) -> dict[str, Any]:
    """A square with its figure for each pair of masks, shaded by its value."""
    places = {
        "x": vega.category("column", names, padding=0.04, orient="top", labelAngle=0),
        "y": vega.category("row", names, padding=0.04),
    }
    depth = {
        "field": "value",
        "type": "quantitative",
        "scale": {"domain": [lowest, highest], "range": [0.05, 0.6], "clamp": True},
        "legend": None,
    }
    shaded = {**places, "fillOpacity": depth, "tooltip": marks.tooltip}
    written = {**places, "text": {"field": "label", "type": "nominal"}}
    return vega.chart(
        marks.rows,
        vega.layer("rect", shaded, fill="var(--accent)", cursor="help"),
        vega.layer("text", written, fontSize=11, fill="var(--ink)"),
        width=min(vega.WIDTH, 40 + 64 * len(names)),
        height=30 * len(names),
    )


def _counts_by_mask(
    marks: charts.Marks, arms: Sequence[str], counts: Sequence[str]
) -> dict[str, Any]:
    """Weights by number of masks: measured as dots, expected as ticks."""
    powers = [log10(weights) for weights in marks.values("weights")] or [0.0]
    domain = [10.0 ** floor(min(powers)), 10.0 ** max(ceil(max(powers)), floor(min(powers)) + 1)]
    scale = {"type": "log", "domain": domain}
    places = {
        "x": vega.category(
            "count", counts, "masks that select a weight", padding=None, labelAngle=0
        ),
        "y": vega.quantity("weights", "weights", scale=scale, format="~s", tickCount=6),
        "color": vega.arm_colours(arms),
        "tooltip": marks.tooltip,
    }
    is_measured = {"field": "arm", "equal": chance.MEASURED}
    tick: dict[str, Any] = {"thickness": 3, "width": 34, "orient": "horizontal"}
    return vega.chart(
        marks.rows,
        vega.layer("tick", places, where={"not": is_measured}, **tick),
        vega.dots(places, where=is_measured),
        height=240,
    )


def _heroes(overlap: Overlap) -> list[doc.Hero]:
    """How much of each mask is in the other, or in all of several."""
    if len(overlap.masks) > 2:
        consensus = overlap.consensus()
        if not consensus.num_any:
            return [doc.Hero("", "–", "nothing is selected in any mask", 0.0, "nothing to share")]
        figure = percent(consensus.num_common, consensus.num_any)
        words = f"of {consensus.num_any:,} weights in any of {len(overlap.masks)} masks are in all"
        under = f"{consensus.num_common:,} in all"
        return [doc.Hero("", figure, words, consensus.num_common / consensus.num_any, under)]
    shared = overlap.total()
    finest, against = list(shared.nulls.items())[-1]
    heroes = []
    for key, whole, other, num in (
        ("o1", "A", "B", shared.num_first),
        ("o2", "B", "A", shared.num_second),
    ):
        ratio = getattr(shared, key)
        if ratio is None:
            heroes.append(doc.Hero("", "–", f"{whole} selects nothing", 0.0, "nothing to share"))
            continue
        words = f"of {num:,} weights of {whole} are in {other}"
        expected = chance.ratio_text(getattr(against.chance, key))
        under = f"{shared.intersection:,} shared; {expected} by chance ({finest})"
        heroes.append(doc.Hero("", chance.ratio_text(ratio), words, ratio, under))
    return heroes


def shared_sentence(shared: Shared, first: str, second: str) -> str:
    """The main figures of two masks."""
    if not shared.num_first or not shared.num_second:
        empty = " and ".join(
            name
            for name, num in ((first, shared.num_first), (second, shared.num_second))
            if not num
        )
        return f"Nothing that was compared is selected in {empty}: there is nothing to share."
    return (
        f"{chance.ratio_text(shared.o1)} of {first} is in {second}, and "
        f"{chance.ratio_text(shared.o2)} of {second} in {first}: "
        f"{plural(shared.intersection, 'shared weight')}, "
        f"{chance.ratio_text(shared.jaccard)} of those in either."
    )


CHANCES: Mapping[Null, str] = {
    INDEPENDENT: "what masks of these densities share by chance",
    PER_TENSOR: "that with the densities kept in each tensor",
    MAGNITUDE: "that with them kept in each tensor at each magnitude",
}


def common_sentence(overlap: Overlap) -> str:
    """What all of several masks share."""
    consensus = overlap.consensus()
    num = len(overlap.masks)
    if not consensus.num_any:
        return "Nothing that was compared is selected in any of the masks."
    lifts = {null: consensus.common_lift(null) for null in consensus.nulls}
    sentence = (
        f"{plural(consensus.num_common, 'weight')} "
        f"{are(consensus.num_common)} in all {num} masks, "
        f"{percent(consensus.num_common, consensus.num_any)} of those in any."
    )
    return f"{sentence} {chance.times_sentence(lifts, CHANCES)}".rstrip()


def _short_name(null: Null) -> str:
    """Name of a null in a heading."""
    return "magnitude" if null == MAGNITUDE else null
