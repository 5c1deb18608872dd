"""The page of a prediction: how much came true, where, and beside what guesses would get."""

from __future__ import annotations

from typing import Any

from trimtab.masks.prediction import PredictionScore, Quality
from trimtab.report.blocks import Column, Figure, Key, Section, table
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.overlap import against_chance
from trimtab.report.overlap_charts import lift_dots
from trimtab.report.overlap_record import overlap_coverage, overlap_provenance
from trimtab.report.overlap_wording import (
    lift_text,
    mask_names,
    other_base_sentence,
    overlap_coverage_sentence,
    ratio_text,
    selected,
)
from trimtab.report.prediction_wording import (
    LIFT_TITLES,
    NO_BASE,
    lift_cells,
    precision_note,
    prediction_lifts,
    prediction_sentence,
    ranking_sentence,
)
from trimtab.report.records import settings_table
from trimtab.report.wording import kinds_in_order, printable
from trimtab.words import plural

__all__ = ["prediction_page"]


def prediction_page(score: PredictionScore) -> Page:
    """What is told of a prediction.

    Args:
        score: The result; nothing else is read.
    """
    overlap = score.overlap
    pred, true = mask_names(overlap)
    covered, warning = overlap_coverage_sentence(overlap), other_base_sentence(overlap)
    told = zip(("PRED", "TRUE"), (pred, true), selected(overlap), strict=True)
    against = "no base" if overlap.base is None else printable(overlap.base.id)
    return Page(
        title=f"{pred} as a prediction of {true}",
        heading="Which weights will move?",
        subtitle=(pred, true),
        heroes=_heroes(score),
        warnings=[warning] if warning else [],
        incomplete=[] if overlap.coverage.is_complete else [covered],
        coverage=covered,
        paragraphs=(
            "; ".join(f"{side} is {name}: {many}" for side, name, many in told) + ".",
            f"{prediction_sentence(score)} {prediction_lifts(score)}".rstrip(),
            ranking_sentence(score),
            *([NO_BASE] if overlap.base is None else []),
        ),
        sections=[
            _where(score),
            against_chance(overlap),
            overlap_coverage(overlap),
            overlap_provenance(overlap),
            _ranking(score),
        ],
        source=f"masks {pred} and {true} · magnitudes of {against}",
        date=score.provenance.get("date", ""),
    )


def _heroes(score: PredictionScore) -> list[Hero]:
    total = score.total
    heroes = []
    for ratio, whole, words, num in (
        (total.recall, "TRUE", "was predicted", total.shared.num_second),
        (total.precision, "PRED", "came true", total.shared.num_first),
    ):
        if ratio is None:
            heroes.append(Hero("", "–", f"{whole} selects nothing", 0.0, "nothing to predict"))
            continue
        under = plural(total.shared.intersection, "hit")
        heroes.append(
            Hero("", ratio_text(ratio), f"of {num:,} weights of {whole} {words}", ratio, under)
        )
    return heroes


def _where(score: PredictionScore) -> Section:
    """By kind and by layer, with the lift over each guess."""
    by_kind = score.by_kind()
    rows = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    rows["all"] = score.total
    lifts = [key for key in LIFT_TITLES if key in score.total.lifts]
    dots: list[dict[str, Any]] = [
        {
            "arm": key,
            "name": name,
            "lift": lift,
            "tip_0": name,
            "tip_1": key,
            "tip_2": lift_text(lift),
            "tip_3": f"{quality.shared.intersection:,}",
            "tip_4": f"{quality.shared.intersection / lift:,.0f}",
            "tip_5": "",
        }
        for name, quality in rows.items()
        for key, lift in quality.lifts.items()
        if lift
    ]
    columns: list[Column] = [
        *((title, "number") for title in ("elements", "density", "precision", "recall", "AP")),
        *((LIFT_TITLES[key], "number") for key in lifts),
    ]
    figure = Figure(
        "Hits over what each guess would hit",
        lift_dots(dots, lifts, list(rows)),
        "At 1 (the line) the prediction is as good as the guess. The axis is logarithmic.",
        table(
            "By kind",
            [("kind", "text"), *columns],
            [(name, *_cells(quality)) for name, quality in rows.items()],
            has_total=True,
            is_folded=False,
            note=precision_note(score),
        ),
        tuple(Key(f"dot-{place}", key) for place, key in enumerate(lifts)),
    )
    layers = table(
        "By layer",
        [("layer", "text"), *columns],
        [
            ("outside the layers" if layer is None else str(layer), *_cells(quality))
            for layer, quality in score.by_layer().items()
        ],
        note=precision_note(score),
    )
    return Section("Where", blocks=(figure, layers))


def _cells(quality: Quality) -> tuple[str, ...]:
    ratios = quality.density, quality.precision, quality.recall, quality.average_precision
    return (
        f"{quality.shared.num_elements:,}",
        *map(ratio_text, ratios),
        *lift_cells(quality),
    )


def _ranking(score: PredictionScore) -> Section | None:
    if score.ranking is None:
        return None
    entries = {"file": score.ranking.id, **score.ranking.provenance}
    return Section("The scores", blocks=(settings_table("Scores", entries, is_folded=True),))
