"""How an evaluation is put into words and columns, the same in the terminal and in the HTML report.

It is drawn from the plain data of the JSON file (docs page "Formats"), with intervals and
differences as they stand there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report.wording import magnitude, plural, printable

__all__ = [
    "Columns",
    "accuracy_columns",
    "always_text",
    "asked_sentence",
    "difference_columns",
    "difference_note",
    "forgetting_columns",
    "forgetting_note",
    "interval_text",
    "level_columns",
    "level_note",
    "model_names",
    "share_text",
    "suite_columns",
    "task_text",
    "text_sentence",
]

Columns = dict[str, list[str]]
"""Heading -> cells, one for each row."""

Data = Mapping[str, Any]


def model_names(evaluation: Data) -> list[str]:
    """What the models are called: as they were given."""
    return [printable(model["checkpoint"]["id"]) for model in evaluation["models"]]


def task_text(evaluation: Data) -> str:
    """What was asked: `addition: 32 questions`."""
    questions = evaluation["questions"]
    text = f"{printable(questions['record']['source'])}: " + plural(
        questions["num_questions"], "question"
    )
    if num := questions["record"]["num_seen"]:
        text += f" ({num:,} more were left out: the run was trained on them)"
    return text


def asked_sentence(evaluation: Data) -> str:
    """How the questions were asked."""
    settings, record = evaluation["settings"], evaluation["questions"]["record"]
    sampled = ""
    if settings["num_samples"]:
        sampled = (
            f", and {plural(settings['num_samples'], 'sample')} of each at temperature "
            f"{settings['temperature']:g}, seed {settings['seed']}"
        )
    return (
        f"Asked greedily{sampled}; at most {plural(record['max_completion_length'], 'token')} an "
        f"answer, {settings['batch_size']:,} at a time, computed in {settings['dtype']}."
    )


def share_text(num: float, whole: float, interval: Sequence[float] | None) -> str:
    """A share with its interval, in percent: `81.2 % [64.7, 91.1]`."""
    return percent(num, whole, 1) + ("" if interval is None else f" [{interval_text(interval)}]")


def interval_text(interval: Sequence[float], sign: str = "") -> str:
    """The ends of an interval, in percent or points."""
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"{low}, {high}"


def accuracy_columns(evaluation: Data) -> Columns:
    """Accuracy of each model and of the best constant answer."""
    questions, settings = evaluation["questions"], evaluation["settings"]
    sampled = f"sampled, T = {settings['temperature'] or 0:g}"
    columns: Columns = {"model": [], "greedy": [], sampled: [], "cut off": []}

    def add(*cells: str) -> None:
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)

    for name, model in zip(model_names(evaluation), evaluation["models"], strict=True):
        told = model["answers"]
        num = told["num_questions"]
        add(
            name,
            share_text(told["num_greedy_correct"], num, told["greedy_interval"]),
            "–"
            if told["sampled_accuracy"] is None
            else share_text(told["sampled_accuracy"], 1, told["sampled_interval"]),
            f"{told['num_greedy_not_ended']:,}",
        )
    if baseline := questions["majority_baseline"]:
        add(
            always_text(baseline),
            percent(baseline["num_correct"], baseline["num_questions"], 1),
            "",
            "",
        )
    if not settings["num_samples"]:
        del columns[sampled]
    return columns


def always_text(baseline: Data) -> str:
    """What the constant answer says."""
    answer = " ".join(str(baseline["answer"]).split())
    return f"always “{printable(answer if len(answer) <= 20 else f'{answer[:19]}…')}”"


def difference_columns(evaluation: Data) -> Columns:
    """Each model against the first, on the same questions; no rows for a single model."""
    names = model_names(evaluation)
    pairs = zip(names[1:], evaluation["models"][1:], strict=True)
    rows = [(name, model["difference"]) for name, model in pairs]
    columns: Columns = {
        "model": [name for name, _ in rows],
        "gained": [f"{told['num_gained']:,}" for _, told in rows],
        "lost": [f"{told['num_lost']:,}" for _, told in rows],
        "greedy": [_points(told, "greedy") for _, told in rows],
        "p": [_p(told["p_value"]) for _, told in rows],
    }
    if evaluation["settings"]["num_samples"]:
        columns["sampled"] = [_points(told, "sampled") for _, told in rows]
    return columns


def _points(told: Data, way: str) -> str:
    """A difference in points: `+31.2 [+9.6, +49.1]`."""
    if told[f"{way}_difference"] is None:
        return "–"
    interval = told[f"{way}_interval"]
    ends = "" if interval is None else f" [{interval_text(interval, '+')}]"
    return f"{100 * told[f'{way}_difference']:+.1f}{ends}"


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def difference_note(evaluation: Data) -> str:
    """How to read the differences."""
    first = model_names(evaluation)[0]
    return (
        f"In points, from {first}. “gained” are questions that only the model answers, “lost” "
        f"those that only {first} does; “p” is McNemar's exact test, two-sided."
    )


def _added(columns: Columns, evaluation: Data) -> list[str]:
    """Add a column for each model; returns the headings, which no other column may have."""
    headings = []
    for heading in model_names(evaluation):
        while heading in columns:
            heading = f"./{heading}"
        columns[heading] = []
        headings.append(heading)
    return headings


def level_columns(evaluation: Data) -> Columns:
    """Greedy accuracy of each model at each level."""
    columns: Columns = {"level": [], "questions": [], "always": []}
    names = _added(columns, evaluation)
    for level in evaluation["by_level"]:
        baseline = level["majority_baseline"]
        num = level["num_questions"]
        columns["level"].append(printable(str(level["level"])))
        columns["questions"].append(f"{num:,}")
        columns["always"].append(
            "–" if baseline is None else percent(baseline["num_correct"], num, 1)
        )
        for name, told in zip(names, level["models"], strict=True):
            columns[name].append(
                share_text(told["num_greedy_correct"], num, told["greedy_interval"])
            )
    if set(columns["always"]) == {"–"}:
        del columns["always"]
    return columns


def level_note() -> str:
    """How to read the levels."""
    return "Greedy. “always” is the best constant answer of each level."


def text_sentence(evaluation: Data) -> str:
    """What the forgetting probe read."""
    text = evaluation["text"]
    read = [model["forgetting"] for model in evaluation["models"] if model["forgetting"]]
    return (
        f"{plural(read[0]['num_tokens'], 'token')} of {printable(text['source'])}, in "
        f"{plural(len(read[0]['passages']), 'passage')}"
    )


def forgetting_columns(evaluation: Data) -> Columns:
    """Divergence from the base and perplexity of each model."""
    columns: Columns = {"model": [], "KL(base ‖ model)": [], "perplexity": []}
    first: Iterable[Data] = (model["forgetting"] for model in evaluation["models"])
    base = next(told for told in first if told)["base_perplexity"]
    for name, model in zip(model_names(evaluation), evaluation["models"], strict=True):
        told = model["forgetting"]
        columns["model"].append(name)
        columns["KL(base ‖ model)"].append("–" if told is None else _kl(told))
        columns["perplexity"].append(f"{base if told is None else told['tuned_perplexity']:.4g}")
    return columns


def _kl(told: Data) -> str:
    return magnitude(told["kl"]) + _ends(told["kl_interval"], magnitude)


def _ends(interval: Sequence[float] | None, write: Callable[[float], str]) -> str:
    return "" if interval is None else f" [{', '.join(map(write, interval))}]"


def forgetting_note() -> str:
    """How to read the forgetting probe."""
    return (
        "“KL” is in nats a token, 0 for a model that predicts as the base does; its "
        "interval is over passages."
    )


def suite_columns(evaluation: Data) -> Columns:
    """Metrics of lm-evaluation-harness, a row for each task and metric."""
    columns: Columns = {"task": [], "metric": []}
    names = _added(columns, evaluation)
    for task, told in evaluation["models"][0]["suites"].items():
        for metric in told["metrics"]:
            columns["task"].append(printable(task))
            columns["metric"].append(printable(metric))
            for name, model in zip(names, evaluation["models"], strict=True):
                found = model["suites"][task]["metrics"][metric]
                columns[name].append(
                    f"{found['value']:.4g}" + _ends(found["interval"], "{:.4g}".format)
                )
    return columns
