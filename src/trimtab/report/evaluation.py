"""Sections of the page on what models answered, and what they forgot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.charts import Marks, accuracy_dots
from trimtab.report.evaluation_wording import (
    Columns,
    accuracy_columns,
    always_text,
    asked_sentence,
    difference_columns,
    difference_note,
    forgetting_columns,
    forgetting_note,
    interval_text,
    level_columns,
    level_note,
    model_names,
    share_text,
    suite_columns,
    task_text,
    text_sentence,
)
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.wording import printable
from trimtab.results.records import CheckpointRecord

__all__ = ["accuracy", "evaluation_provenance", "forgetting", "given_answers", "suites"]

Data = Mapping[str, Any]

_NUM_ANSWERS = 40
_WORDS = ("model", "level", "task", "metric")


def accuracy(evaluation: Data) -> Section | None:
    """Accuracy of each model, differences and levels; None if nothing was asked."""
    if evaluation["questions"] is None:
        return None
    blocks: list[Figure | Table] = [_accuracy_figure(evaluation)]
    if len(evaluation["models"]) > 1:
        note = difference_note(evaluation)
        blocks.append(
            _table("Differences on the same questions", difference_columns(evaluation), note)
        )
    if evaluation["by_level"] is not None:
        by = printable(evaluation["questions"]["by"])
        blocks.append(_table(f"Accuracy by {by}", level_columns(evaluation), level_note()))
    opening = f"{task_text(evaluation)}. {asked_sentence(evaluation)}"
    return Section("Held-out accuracy", (opening,), tuple(blocks))


def _accuracy_figure(evaluation: Data) -> Figure:
    names = model_names(evaluation)
    coloured = names[1:] or names
    rows: list[dict[str, Any]] = []
    for name, model in zip(names, evaluation["models"], strict=True):
        for way in ("greedy", "sampled"):
            share, interval = (
                model["answers"][f"{way}_{what}"] for what in ("accuracy", "interval")
            )
            if share is not None:
                low, high = interval
                rows.append(
                    {
                        "model": name,
                        "arm": name if name in coloured else "",
                        "way": way,
                        "accuracy": 100 * share,
                        "low": 100 * low,
                        "high": 100 * high,
                        "tip_0": name,
                        "tip_1": way,
                        "tip_2": share_text(share, 1, None),
                        "tip_3": interval_text(interval),
                    }
                )
    baseline = evaluation["questions"]["majority_baseline"]
    constant = None if baseline is None else 100 * baseline["accuracy"]
    keys = [Key("dot-ink", "greedy")]
    if evaluation["settings"]["num_samples"]:
        keys.append(Key("ring-ink", "sampled"))
    if baseline is not None:
        share = percent(baseline["num_correct"], baseline["num_questions"], 1)
        keys.append(Key("dashed", f"{always_text(baseline)}, {share}"))
    confidence = f"{100 * evaluation['confidence']:g} %"
    keys.append(Key("whisker", f"{confidence} interval"))
    return Figure(
        "Answers that are right",
        accuracy_dots(
            Marks(rows, ("model", "decoding", "correct", "95 % interval")),
            names,
            coloured,
            baseline=constant,
        ),
        f"Whiskers are {confidence} intervals (Wilson's), over questions: several samples of one "
        "question are not independent. Models answer the same questions, so the differences below "
        "are sharper than two whiskers beside each other.",
        _table(f"Accuracy [{confidence} interval]", accuracy_columns(evaluation)),
        tuple(keys),
    )


def forgetting(evaluation: Data) -> Section | None:
    """Divergence from the base on a neutral text; None without a base."""
    if evaluation["text"] is None:
        return None
    opening = f"Read beside the base: {text_sentence(evaluation)}."
    columns = forgetting_columns(evaluation)
    return Section(
        "Forgetting",
        (opening,),
        (_table("On neutral text [95 % interval]", columns, forgetting_note()),),
    )


def suites(evaluation: Data) -> Section | None:
    """Metrics of lm-evaluation-harness; None if none were computed."""
    if evaluation["models"][0]["suites"] is None:
        return None
    return Section(
        "lm-evaluation-harness",
        blocks=(_table("Metrics [95 % interval]", suite_columns(evaluation)),),
    )


def given_answers(evaluation: Data) -> Section | None:
    """The greedy answers to the first questions; None if nothing was asked."""
    if evaluation["questions"] is None:
        return None
    names = model_names(evaluation)
    columns: list[Column] = [("question", "code"), ("right", "code")]
    told = table(
        "Greedy answers",
        [*columns, *((name, "code") for name in names)],
        [
            (
                _short(_asked(row["prompt"]), from_end=True),
                "–" if row["answer"] is None else _short(str(row["answer"])),
                *(_given(model["answers"]["answers"][place]) for model in evaluation["models"]),
            )
            for place, row in enumerate(evaluation["questions"]["rows"][:_NUM_ANSWERS])
        ],
        note=f"The first {_NUM_ANSWERS} questions at most; ✓ marks what is right. All are in the "
        "JSON.",
    )
    return Section("Answers", blocks=(told,))


def _asked(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _given(answer: Data) -> str:
    return f"{'✓' if answer['correct'] else '✗'} {_short(answer['greedy'])}"


def _short(text: str, *, from_end: bool = False) -> str:
    """One line of a text: its beginning, or its end, where what is asked stands."""
    line = printable(" ".join(text.split()))
    if len(line) <= 60:
        return line
    return f"…{line[-59:]}" if from_end else f"{line[:59]}…"


def evaluation_provenance(evaluation: Data) -> Section:
    """Ids, hashes and how the evaluation was run."""
    models = zip(model_names(evaluation), evaluation["models"], strict=True)
    records = {name: CheckpointRecord(**model["checkpoint"]) for name, model in models}
    entries = {**evaluation["settings"], **evaluation["provenance"]}
    blocks = [checkpoints_table(records), settings_table("Evaluation", entries, is_folded=False)]
    if evaluation["questions"] is not None:
        record = evaluation["questions"]["record"]
        blocks.append(settings_table("Questions", record, is_folded=False))
    if evaluation["text"] is not None:
        blocks.append(settings_table("Text", evaluation["text"], is_folded=False))
    return Section("Provenance", blocks=tuple(blocks))


def _table(title: str, columns: Columns, note: str = "") -> Table:
    return table(
        title,
        [(name, "text" if name in _WORDS else "number") for name in columns],
        list(zip(*columns.values(), strict=True)),
        is_folded=False,
        note=note,
    )
