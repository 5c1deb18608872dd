"""How a prediction is put into words, the same in the terminal and in the HTML report."""

from __future__ import annotations

from trimtab.masks.overlap_chance import INDEPENDENT, MAGNITUDE, PER_TENSOR
from trimtab.masks.prediction import LOW_MAGNITUDE, PredictionScore, Quality
from trimtab.report.overlap_wording import lift_text, ratio_text
from trimtab.report.wording import plural, printable

__all__ = [
    "LIFT_TITLES",
    "NO_BASE",
    "lift_cells",
    "precision_note",
    "prediction_lifts",
    "prediction_sentence",
    "ranking_sentence",
]

LIFT_TITLES = {
    INDEPENDENT: "random",
    PER_TENSOR: "per tensor",
    MAGNITUDE: "magnitude",
    LOW_MAGNITUDE: "smallest",
}
"""What a lift is over -> the heading of its column."""

NO_BASE = (
    "No base was given, so the prediction is not set beside one by magnitude alone: where rounding "
    "lets only small weights move, whatever favours small weights predicts well."
)


def prediction_sentence(score: PredictionScore) -> str:
    """The main figures."""
    total = score.total
    if total.precision is None or total.recall is None:
        empty = "PRED" if total.precision is None else "TRUE"
        return f"Nothing that was compared is selected in {empty}: there is nothing to predict."
    return (
        f"{ratio_text(total.recall)} of TRUE is predicted, and {ratio_text(total.precision)} of "
        f"PRED came true: {plural(total.shared.intersection, 'weight')}."
    )


def prediction_lifts(score: PredictionScore) -> str:
    """What the hits are times of; empty where there is nothing to compare with."""
    parts = {
        INDEPENDENT: "what as many weights at random would hit",
        PER_TENSOR: "that with as many in each tensor",
        MAGNITUDE: "that with as many in each tensor at each magnitude of the base's weights",
        LOW_MAGNITUDE: "what as many of the smallest weights of each tensor would",
    }
    lifts = score.total.lifts
    told = [
        f"{lift_text(lifts[key])} × {parts[key]}" for key in parts if lifts.get(key) is not None
    ]
    if not told:
        return ""
    *most, last = told
    return f"This is {', '.join(most)} and {last}." if most else f"This is {last}."


def ranking_sentence(score: PredictionScore) -> str:
    """Average precision, and what it is of."""
    total, ranking = score.total, score.ranking
    figure = ratio_text(total.average_precision)
    chance = f"a random ranking has {ratio_text(total.density)}"
    if ranking is None:
        return f"Average precision {figure}, of PRED alone, which ranks in two steps; {chance}."
    resolution = "" if ranking.is_exact else ", told apart by the first 16 bits (0.8 %)"
    return (
        f"Average precision {figure}, of the ranking by {printable(ranking.id or 'scores')}"
        f"{resolution}; {chance}."
    )


def precision_note(score: PredictionScore) -> str:
    """How to read the columns."""
    of = "PRED alone" if score.ranking is None else "the ranking by scores, within each row"
    finer = (
        "and in each tensor"
        if score.overlap.base is None
        else "in each tensor, and in each tensor at each magnitude; the last is over as many of "
        "the smallest weights of each tensor"
    )
    return (
        "“density” is the share of TRUE, which is the precision and the average precision of any "
        f"guess. “AP” is average precision, of {of}. A lift is the number of hits over that of "
        f"random masks of as many elements in all, {finer}."
    )


def lift_cells(quality: Quality) -> tuple[str, ...]:
    """The lifts of one row, in the order of `LIFT_TITLES`, as far as there are any."""
    return tuple(lift_text(quality.lifts[key]) for key in LIFT_TITLES if key in quality.lifts)
