"""The section on why it is sparse: what precision alone predicts, beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report import charts
from trimtab.report.arms import Arm
from trimtab.report.blocks import Figure, Key, Section, run_column, table
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import kinds_in_order, printable, sparsity_text

__all__ = ["precision", "random_walk_text"]

_MODELS = ("one_step", "random_walk", "straight_line", "adam_bound")


def measured_by(arm: Arm) -> str:
    """The criterion to set beside a prediction, which knows no tolerance: `bits` or `value`."""
    return arm.criterion if arm.criterion in ("bits", "value") else "value"


def random_walk_text(arm: Arm, kind: str | None) -> str | None:
    """Sparsity that a directionless walk predicts for a kind, or for all; None if not analysed.

    Also None under a criterion with a tolerance, which the prediction cannot be compared with.
    """
    section = arm.comparison.analyses.get("precision")
    if section is None or measured_by(arm) != arm.criterion:
        return None
    row = section["total"] if kind is None else section["by_kind"].get(kind)
    return None if row is None else _left(row, "random_walk")


def _left(row: Mapping[str, Any], model: str) -> str:
    return percent(row["num_elements"] - row[model], row["num_elements"])


def precision(arms: Sequence[Arm]) -> Section | None:
    """Measured sparsity beside the one that LR, steps and the stored dtype alone predict."""
    analysed = [arm for arm in arms if "precision" in arm.comparison.analyses]
    if not analysed:
        return None
    sections = {arm.label: arm.comparison.analyses["precision"] for arm in analysed}
    kinds = kinds_in_order(kind for section in sections.values() for kind in section["by_kind"])
    rows: list[dict[str, Any]] = []
    cells: list[tuple[str, ...]] = []
    for kind in [*kinds, None]:
        for arm in analysed:
            section = sections[arm.label]
            row = section["total"] if kind is None else section["by_kind"].get(kind)
            counts = arm.total if kind is None else arm.by_kind.get(kind)
            if not row or not row["num_elements"] or counts is None or not counts.num_elements:
                continue
            name = "all" if kind is None else printable(kind)
            texts = {model: _left(row, model) for model in _MODELS}
            measured = sparsity_text(counts, measured_by(arm))
            label = (arm.label,) if arm.label else ()
            cells.append((name, *label, measured, *texts.values()))
            rows.append(
                {
                    "arm": arm.label,
                    "name": name,
                    "measured": 100 * (counts.sparsity(measured_by(arm)) or 0),
                    **{
                        end: 100 * (1 - row[model] / row["num_elements"])
                        for end, model in (
                            ("to", "one_step"),
                            ("reference", "random_walk"),
                            ("from", "straight_line"),
                        )
                    },
                    "tip_0": " · ".join((name, *label)),
                    "tip_1": measured,
                    "tip_2": texts["random_walk"],
                    "tip_3": texts["one_step"],
                    "tip_4": texts["straight_line"],
                }
            )
    numbers = table(
        "Unchanged elements, measured and predicted",
        [
            ("kind", "text"),
            *run_column(arm.label for arm in analysed),
            ("measured", "number"),
            ("one step", "number"),
            ("random walk", "number"),
            ("straight line", "number"),
            ("Adam at worst", "number"),
        ],
        cells,
        has_total=len(analysed) == 1,
        note="“Adam at worst” bounds what so many Adam steps can reach, whatever the gradients.",
    )
    dots = [
        Key(f"dot-{place % NUM_COLOURS}", f"measured {arm.label}".strip())
        for place, arm in enumerate(arms)
        if arm in analysed
    ]
    figure = Figure(
        "Unchanged elements, measured and predicted from precision alone",
        charts.reference_dots(
            charts.Marks(rows, ("kind", "measured", "random walk", "one step", "straight line")),
            [arm.label for arm in arms],
            axis="unchanged (%)",
            domain=(
                charts.percent_floor([row[end] for row in rows for end in ("measured", "from")]),
                100,
            ),
        ),
        "A dot on its tick is as sparse as a random walk of the same step size would leave it; to "
        "the left of the tick, more changed. The bar reaches from what one single step can change "
        "(right end) to what all steps in one direction can (left end).",
        numbers,
        (*dots, Key("tick", "random walk predicts"), Key("span", "one step … straight line")),
    )
    return Section(
        "What precision alone predicts",
        (_explanation(), *(_settings(label, section) for label, section in sections.items())),
        (figure,),
    )


def _explanation() -> str:
    return (
        "A small step on a large weight is rounded away when the weight is stored, whatever the "
        "training objective was. From the base weights, their stored number format, the learning "
        "rate and the number of steps alone one can tell which weights could change. “One step” is "
        "what a single step of that size can; a run that keeps its weights in the stored format "
        "gets no further with more of them. “Random walk” and “straight line” suppose a "
        "high-precision master copy: the expected result if every step went up or down at random, "
        "and the most that all steps together can change in one direction. None of them knows "
        "anything about the task."
    )


def _settings(label: str, section: Mapping[str, Any]) -> str:
    betas = ", ".join(f"{beta:g}" for beta in section["betas"])
    prefix = f"{label}: " if label else "Settings: "
    return (
        f"{prefix}learning rate {section['lr']:g}, {section['steps']:,} steps, Adam betas {betas}."
    )
