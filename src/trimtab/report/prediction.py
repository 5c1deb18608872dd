"""The report of a prediction: its quality, compared with guesses."""

from __future__ import annotations

from typing import Any

from trimtab.masks.overlap_chance import INDEPENDENT, MAGNITUDE, PER_TENSOR
from trimtab.masks.prediction import LOW_MAGNITUDE, PredictionScore, Quality
from trimtab.report import chance
from trimtab.report import document as doc
from trimtab.report.charts import lift_dots, marks_of
from trimtab.report.records import mask_file, mask_text, settings_table
from trimtab.report.wording import Shown, count, printable
from trimtab.words import plural

LIFT_TITLES = {
    INDEPENDENT: "random",
    PER_TENSOR: "per tensor",
    MAGNITUDE: "magnitude",
    LOW_MAGNITUDE: "smallest",
}
"""Guess -> the heading of the lift over it."""

_GUESSES = {
    INDEPENDENT: "what the same number of random weights would hit",
    PER_TENSOR: "that with the same number in each tensor",
    MAGNITUDE: "that with the same number in each tensor at each magnitude of the base's weights",
    LOW_MAGNITUDE: "what the same number of the smallest weights of each tensor would",
}
"""Guess -> its description."""

NO_BASE = (
    "No base was given, so the prediction is not set beside one by magnitude alone: where rounding "
    "lets only small weights move, whatever favours small weights predicts well."
)


def prediction_document(score: PredictionScore) -> doc.Document:
    """The document of a prediction."""
    overlap = score.overlap
    pred, true = map(mask_file, overlap.masks)
    base = {} if overlap.base is None else {"base": printable(overlap.base.id)}
    sides = dict(zip(("PRED", "TRUE"), map(mask_text, overlap.masks), strict=True))
    caveat = NO_BASE if overlap.base is None else None
    sentence, lifts, ranking = (
        _sentence(score),
        chance.times_sentence(score.total.lifts, _GUESSES),
        _ranking_sentence(score),
    )
    return doc.Document(
        title=f"{pred} as a prediction of {true}",
        heading="Which weights will move?",
        subtitle=(pred, true),
        facts=sides | base,
        headlines=[sentence],
        summary=[lifts, ranking],
        heroes=_heroes(score),
        warnings=(chance.other_base_sentence(overlap),),
        caveats=(caveat,),
        coverage=chance.coverage_sentence(overlap),
        is_complete=overlap.coverage.is_complete,
        paragraphs=(
            "; ".join(f"{side} is {text}" for side, text in sides.items()) + ".",
            f"{sentence} {lifts}".rstrip(),
            ranking,
            caveat,
        ),
        sections=[
            _where(score),
            chance.against_chance(overlap).page_only(),
            chance.overlap_coverage(overlap),
            chance.overlap_provenance(overlap),
            _ranking(score),
        ],
        source=f"masks {pred} and {true} · magnitudes of {base.get('base', 'no base')}",
        date=score.provenance.get("date", ""),
    )


def _heroes(score: PredictionScore) -> list[doc.Hero]:
    total = score.total
    heroes = []
    for ratio, whole, words, num in (
        (total.recall, "TRUE", "was predicted", total.shared.num_second),
        (total.precision, "PRED", "came true", total.shared.num_first),
    ):
        if ratio is None:
            heroes.append(doc.Hero("", "–", f"{whole} selects nothing", 0.0, "nothing to predict"))
            continue
        under = plural(total.shared.intersection, "hit")
        heroes.append(
            doc.Hero(
                "", chance.ratio_text(ratio), f"of {num:,} weights of {whole} {words}", ratio, under
            )
        )
    return heroes


def _where(score: PredictionScore) -> doc.Section:
    """By kind and by layer, with the lift over each guess."""
    kinds = doc.rows_by_kind(score.by_kind(), score.total)
    guesses = [key for key in LIFT_TITLES if key in score.total.lifts]
    qualities = (
        doc.Column[Quality]("elements", lambda q: count(q.shared.num_elements), drop=1),
        doc.Column[Quality]("density", lambda q: chance.ratio_text(q.density)),
        doc.Column[Quality]("precision", lambda q: chance.ratio_text(q.precision)),
        doc.Column[Quality]("recall", lambda q: chance.ratio_text(q.recall)),
        doc.Column[Quality]("AP", lambda q: chance.ratio_text(q.average_precision)),
    )
    hits = doc.Column[Quality]("hits", lambda q: count(q.shared.intersection))
    lifts = (hits, *map(_lift_column, guesses))

    def draw() -> dict[str, Any]:
        lifts = [
            ((*names, guess), (q, lift))
            for names, q in kinds
            for guess, lift in q.lifts.items()
            if lift
        ]
        hover = (
            doc.Column[Any]("lift", lambda row: chance.lift_text(row[1])),
            doc.Column[Any]("hits", lambda row: hits.cell(row[0])),
            doc.Column[Any](
                "expected", lambda row: chance.count_text(row[0].shared.intersection / row[1])
            ),
        )
        marks = marks_of(
            lifts,
            ("kind", "guess"),
            hover,
            lambda names, row: {"name": printable(names[0]), "arm": names[1], "lift": row[1]},
        )
        return lift_dots(marks, guesses)

    note, title = _note(score), "Hits, and the lift over each guess"
    figure = doc.Figure(
        "Hits over what each guess would hit",
        draw,
        "At 1 (the line) the prediction is as good as the guess. The axis is logarithmic.",
        doc.table(
            "By kind",
            kinds,
            (*qualities, *lifts),
            keys=("kind",),
            has_total=True,
            is_folded=False,
            note=note,
        ),
        tuple(doc.Key(f"dot-{index}", key) for index, key in enumerate(guesses)),
    )
    layers = doc.table(
        "By layer",
        doc.rows_by_layer(score.by_layer()),
        (*qualities, *lifts),
        keys=("layer",),
        note=note,
    )
    # Two narrower tables for a terminal.
    brief: dict[str, Any] = {"keys": ("kind",), "has_total": True, "on_page": False}
    narrow = (
        doc.table("By kind", kinds, qualities, brief="By kind", **brief),
        doc.table(title, kinds, lifts, brief=title, note=note, **brief),
    )
    return doc.Section("Where", blocks=(figure, layers, *narrow))


def _lift_column(guess: str) -> doc.Column[Quality]:
    """The lift over one guess."""

    def cell(quality: Quality) -> Shown:
        return chance.lift_text(quality.lifts.get(guess))

    return doc.Column(LIFT_TITLES[guess], cell)


def _ranking(score: PredictionScore) -> doc.Section | None:
    if score.ranking is None:
        return None
    entries = {"file": score.ranking.id, **score.ranking.provenance}
    return doc.Section("The scores", blocks=(settings_table("Scores", entries, is_folded=True),))


def _sentence(score: PredictionScore) -> str:
    """The main figures."""
    total = score.total
    if total.precision is None or total.recall is None:
        empty = "PRED" if total.precision is None else "TRUE"
        return f"Nothing that was compared is selected in {empty}: there is nothing to predict."
    return (
        f"{chance.ratio_text(total.recall)} of TRUE is predicted, and "
        f"{chance.ratio_text(total.precision)} of PRED came true: "
        f"{plural(total.shared.intersection, 'weight')}."
    )


def _ranking_sentence(score: PredictionScore) -> str:
    """Average precision, and of which ranking."""
    total, ranking = score.total, score.ranking
    figure = chance.ratio_text(total.average_precision)
    guess = f"a random ranking has {chance.ratio_text(total.density)}"
    if ranking is None:
        return f"Average precision {figure}, of PRED alone, which ranks in two steps; {guess}."
    resolution = "" if ranking.is_exact else ", told apart by the first 16 bits (0.8 %)"
    return (
        f"Average precision {figure}, of the ranking by {printable(ranking.id or 'scores')}"
        f"{resolution}; {guess}."
    )


def _note(score: PredictionScore) -> str:
    """How to read the columns."""
    ranking = "PRED alone" if score.ranking is None else "the ranking by scores, within each row"
    finer = (
        "and in each tensor"
        if score.overlap.base is None
        else "in each tensor, and in each tensor at each magnitude; the last is over the same "
        "number of the smallest weights of each tensor"
    )
    return (
        "“density” is the share of TRUE, which is the precision and the average precision of any "
        f"guess. “AP” is average precision, of {ranking}. A lift is the number of hits over that "
        f"of random masks with the same number of elements in all, {finer}."
    )
