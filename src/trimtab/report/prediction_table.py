"""The text that `trimtab mask score` prints: what came true, beside what guesses would get."""

from __future__ import annotations

import shutil

from trimtab.masks.prediction import PredictionScore, Quality
from trimtab.report.overlap_wording import (
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
from trimtab.report.table import aligned, told, wrapped
from trimtab.report.wording import kinds_in_order, printable

__all__ = ["render_prediction_table"]


def render_prediction_table(
    score: PredictionScore, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw a prediction as text.

    Args:
        score: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    return "\n\n".join([_opening(score, width, styled=styled), _kinds(score, width, styled=styled)])


def _opening(score: PredictionScore, width: int, *, styled: bool) -> str:
    overlap = score.overlap
    rows = zip(("PRED", "TRUE"), mask_names(overlap), selected(overlap), strict=True)
    lines = [f"{side}  {name}: {told}" for side, name, told in rows]
    if overlap.base is not None:
        lines.append(f"base  {printable(overlap.base.id)}")
    lines.append("")
    sentences = [
        (prediction_sentence(score), "1"),
        (prediction_lifts(score), ""),
        (ranking_sentence(score), ""),
        (other_base_sentence(overlap), "1;33"),
        (NO_BASE if overlap.base is None else None, "33"),
    ]
    colour = "" if overlap.coverage.is_complete else "1;33"
    sentences.append((f"Coverage {overlap_coverage_sentence(overlap)}.", colour))
    return "\n".join([*lines, *told(sentences, width, styled=styled)])


def _kinds(score: PredictionScore, width: int, *, styled: bool) -> str:
    by_kind = score.by_kind()
    rows: dict[str, Quality] = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    rows["all"] = score.total
    found = {
        "kind": list(rows),
        "elements": [f"{quality.shared.num_elements:,}" for quality in rows.values()],
        "density": [ratio_text(quality.density) for quality in rows.values()],
        "precision": [ratio_text(quality.precision) for quality in rows.values()],
        "recall": [ratio_text(quality.recall) for quality in rows.values()],
        "AP": [ratio_text(quality.average_precision) for quality in rows.values()],
    }
    titles = [LIFT_TITLES[key] for key in LIFT_TITLES if key in score.total.lifts]
    cells = zip(*(lift_cells(quality) for quality in rows.values()), strict=True)
    lifts = {
        "kind": list(rows),
        "hits": [f"{quality.shared.intersection:,}" for quality in rows.values()],
        **{title: list(column) for title, column in zip(titles, cells, strict=True)},
    }
    parts = []
    for title, columns in (("By kind", found), ("Hits, and the lift over each guess", lifts)):
        lines = aligned(columns, width)
        if styled:
            lines[-1] = f"\x1b[1m{lines[-1]}\x1b[0m"
        parts.append("\n".join([*wrapped(title, width, "", styled=False), *lines]))
    note = wrapped(precision_note(score), width, "2", styled=styled)
    return "\n\n".join([*parts, "\n".join(note)])
