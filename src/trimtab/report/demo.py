"""The sections of a demo page that a comparison does not know: did the runs learn, at what cost.

The record of a demo is plain data, `DemoRecord`, so that it is saved as JSON beside the page and
the page can be drawn again from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite, nan
from typing import Any, NotRequired, TypedDict

from trimtab.elements.counts import percent
from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.evaluation_wording import interval_text, share_text
from trimtab.report.learning_charts import accuracy_dots, learning_curve
from trimtab.report.vega import NUM_COLOURS
from trimtab.report.wording import printable

__all__ = [
    "ArmRecord",
    "DemoRecord",
    "OptimizerRecord",
    "Score",
    "cost",
    "learned",
    "score_text",
]


class Score(TypedDict):
    """How many answers were right, of how many.

    Attributes:
        correct: Right answers.
        total: All answers.
        interval: Both ends of the 95 % interval of their ratio, as `trimtab evaluate` has it; none
            for what a constant answer scores.
    """

    correct: int
    total: int
    interval: NotRequired[Sequence[float] | None]


class BeforeRecord(TypedDict):
    """The base on the held-out questions."""

    accuracy_greedy: Score
    accuracy_sampled: Score


class Baseline(Score):
    """What always giving the most frequent answer would score."""

    answer: str


class OptimizerRecord(TypedDict):
    """What a run trained, and what its optimizer kept in memory for that.

    Attributes:
        num_selected: Elements trained.
        num_elements: All elements.
        state_bytes: Running means of the optimizer.
        index_bytes: Positions of the elements trained; 0 where all are.
    """

    num_selected: int
    num_elements: int
    state_bytes: int
    index_bytes: int


class ArmRecord(BeforeRecord):
    """One run of a demo: the scores after training, and what training took.

    Attributes:
        history: One entry for each step: `step` and `reward` or `loss`; other keys are ignored.
        seconds: Wall time of training.
        loss_tokens: Tokens whose loss was trained on.
        settings: Whatever the run should be known by (`lr`, `steps`, ...), as plain data.
        optimizer: What it trained.
        same_answers: Held-out questions to which it gives the greedy answer of the run whose
            changes are the mask.
        about: A sentence on what the run is.
    """

    history: Sequence[Mapping[str, float]]
    seconds: float
    loss_tokens: int
    settings: Mapping[str, Any]
    optimizer: NotRequired[OptimizerRecord]
    same_answers: NotRequired[Score]
    about: NotRequired[str]


class DemoRecord(TypedDict):
    """What a demo did, besides the comparisons of its runs with their base.

    Attributes:
        base_id: Name of the base model.
        model_note: A sentence on the base that readers must know (de-quantised 4-bit weights).
        task: What the runs trained on, to follow "trained on": `one-digit addition, ...`.
        before: The base on the held-out questions.
        majority_baseline: What a constant answer scores on the same questions.
        arms: The runs, by label. Those that have comparisons or identity checks have the same
            label there.
        full: Label of the run whose changes are the mask; needed with identity checks.
        mask_notes: Sentences on how the masks were trained.
    """

    base_id: str
    model_note: str
    task: NotRequired[str]
    before: BeforeRecord
    majority_baseline: Baseline
    arms: Mapping[str, ArmRecord]
    full: NotRequired[str]
    mask_notes: NotRequired[Sequence[str]]


def _share_text(score: Score) -> str:
    share = percent(score["correct"], score["total"], digits=1)
    return f"{share} ({score['correct']:,} of {score['total']:,})"


def _interval_text(score: Score) -> str:
    interval = score.get("interval")
    return "–" if interval is None else interval_text(interval)


def score_text(score: Score) -> str:
    """A score with its interval, in percent: `81.2 % [64.7, 91.1]`."""
    return share_text(score["correct"], score["total"], score.get("interval"))


def learned(demo: DemoRecord) -> Section:
    """Held-out accuracy before and after, and the learning curves."""
    models: list[tuple[str, str, BeforeRecord]] = [
        ("base", "", demo["before"]),
        *((f"after {label}", label, arm) for label, arm in demo["arms"].items()),
    ]
    rows: list[dict[str, Any]] = []
    for model, arm, record in models:
        scores = {"greedy": record["accuracy_greedy"], "sampled": record["accuracy_sampled"]}
        for way, score in scores.items():
            share = score["correct"] / score["total"] if score["total"] else 0.0
            low, high = score.get("interval") or (share, share)
            rows.append(
                {
                    "model": model,
                    "arm": arm,
                    "way": way,
                    "accuracy": 100 * share,
                    "low": 100 * low,
                    "high": 100 * high,
                    "tip_0": model,
                    "tip_1": way,
                    "tip_2": _share_text(score),
                    "tip_3": _interval_text(score),
                }
            )
    baseline = demo["majority_baseline"]
    labels = list(demo["arms"])
    total = baseline["total"]
    figure = Figure(
        "Held-out accuracy before and after training",
        accuracy_dots(
            rows,
            [model for model, _, _ in models],
            labels,
            baseline=100 * baseline["correct"] / total if total else None,
        ),
        "Filled dots are greedy answers, rings are sampled ones. Whiskers are 95 % intervals "
        "(Wilson's), over questions: several samples of one question are not independent. A model "
        f"that learned nothing but the most frequent answer ({printable(baseline['answer'])}) "
        "would stand on the dashed line.",
        _scores(models, baseline),
        (
            Key("dot-ink", "greedy"),
            Key("ring-ink", "sampled"),
            Key("whisker", "95 % interval"),
            Key("dashed", f"majority answer, {_share_text(baseline)}"),
        ),
    )
    curves = [
        curve
        for measure in ("reward", "loss")
        if (curve := _curve(demo, labels, measure)) is not None
    ]
    return Section("Did they learn?", blocks=(figure, *curves))


def _scores(models: Iterable[tuple[str, str, BeforeRecord]], baseline: Baseline) -> Table:
    rows = [
        (
            model,
            _share_text(record["accuracy_greedy"]),
            _interval_text(record["accuracy_greedy"]),
            _share_text(record["accuracy_sampled"]),
            _interval_text(record["accuracy_sampled"]),
        )
        for model, _, record in models
    ]
    answer = f"always “{printable(baseline['answer'])}”"
    return table(
        "Accuracy on the held-out questions",
        [
            ("model", "text"),
            ("greedy", "number"),
            ("95 % interval", "number"),
            ("sampled", "number"),
            ("95 % interval", "number"),
        ],
        [*rows, (answer, _share_text(baseline), "–", "–", "–")],
        is_folded=False,
    )


def _curve(demo: DemoRecord, labels: Sequence[str], measure: str) -> Figure | None:
    points = [
        (label, int(entry["step"]), entry[measure])
        for label in labels
        for entry in demo["arms"][label]["history"]
        if isfinite(entry.get(measure, nan))
    ]
    if not points:
        return None
    runs = list(dict.fromkeys(label for label, _, _ in points))
    spec = learning_curve(
        [
            {
                "arm": label,
                "step": step,
                "value": value,
                "tip_0": label,
                "tip_1": str(step),
                "tip_2": f"{value:.4g}",
            }
            for label, step, value in points
        ],
        labels,
        measure,
    )
    what = {"reward": "Mean reward of the batch", "loss": "Loss of the batch"}[measure]
    numbers = table(
        f"{what}, step by step",
        [("run", "text"), ("step", "number"), (measure, "number")],
        [(label, str(step), f"{value:.4g}") for label, step, value in points],
    )
    keys = tuple(Key(f"dot-{labels.index(run) % NUM_COLOURS}", run) for run in runs)
    reading = "One dot for each training step, on the questions of that step."
    return Figure(f"{what} at every step", spec, reading, numbers, keys)


def cost(demo: DemoRecord) -> Section:
    """Time, trained tokens and settings of the runs side by side; what all share stands apart."""
    records = list(demo["arms"].values())
    rows = {
        "training time": [f"{record['seconds']:,.0f} s" for record in records],
        "tokens with a loss": [f"{record['loss_tokens']:,}" for record in records],
    }
    shared = {}
    for key in dict.fromkeys(key for record in records for key in record["settings"]):
        name = printable(key.replace("_", " "))
        cells = [_setting(record["settings"].get(key)) for record in records]
        if len(records) > 1 and len(set(cells)) == 1:
            shared[name] = cells[0]
        else:
            rows[name] = cells
    columns: list[Column] = [("", "text"), *((label, "number") for label in demo["arms"])]
    lines = [(name, *cells) for name, cells in rows.items()]
    blocks = [table("The runs", columns, lines, is_folded=False)]
    if shared:
        settings: list[Column] = [("", "text"), ("every run", "text")]
        blocks.append(table("The same in every run", settings, shared.items(), is_folded=False))
    return Section("What the runs took", blocks=tuple(blocks))


def _setting(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    if isinstance(value, bool | str):
        return printable(str(value))
    return f"{value:,}" if isinstance(value, int) else printable(f"{value}")
