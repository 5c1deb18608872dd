"""Table of `docs/pruning.md`, drawn from a result of `trimtab evaluate` on pruned models.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.report.evaluation_wording import accuracy_columns, difference_columns, interval_text
from trimtab.results.answers import Answers, answers_difference
from trimtab.results.schema import from_plain

__all__ = ["accuracy", "beside", "measured"]

Report = Mapping[str, Any]

NAMES = {
    "demo/base": "the base",
    "demo/pruned-magnitude": "30 % pruned by magnitude",
    "demo/pruned": "30 % pruned by Wanda",
    "runs/pruned/model": "… and trained where the mask survived",
    "runs/pruned-random/model": "… or in as many survivors of each tensor, at random",
    "runs/pruned-matched/model": "… or in as many of the same magnitudes, at random",
}


def accuracy(report: Report | None) -> None:
    """What each model answers, and how that differs from the base."""
    if report is None:
        return
    told, beside = accuracy_columns(report), difference_columns(report)
    sampled = next(heading for heading in told if heading.startswith("sampled"))
    differences = dict(zip(beside["model"], beside["sampled"], strict=True))
    rows(
        ["", "right, greedily", "right, of the samples", "difference from the base, in points"],
        (
            [NAMES[name], greedy, share, differences.get(name, "")]
            for name, greedy, share in zip(
                told["model"], told["greedy"], told[sampled], strict=True
            )
            if name in NAMES
        ),
    )


def beside(report: Report | None) -> None:
    """The mask's survivors beside each control of as many, on the same questions."""
    if report is None:
        return
    answers = {
        model["checkpoint"]["id"]: from_plain(Answers, model["answers"], what="answers")
        for model in report["models"]
    }
    trained, *controls = [name for name in NAMES if name.startswith("runs/")]
    for control, words in zip(controls, ("at random", "of the same magnitudes"), strict=True):
        if control in answers and trained in answers:
            told = answers_difference(answers[control], answers[trained])
            print(
                f"- as many survivors of each tensor {words}: "
                f"{_points(told['greedy_difference'], told['greedy_interval'])} points greedily, "
                f"{_points(told['sampled_difference'], told['sampled_interval'])} of the samples"
            )


def _points(value: float, interval: list[float]) -> str:
    return f"{100 * value:+.1f} [{interval_text(interval, '+')}]"


def measured(report: Report | None) -> None:
    """What was asked, of what, and with what."""
    if report is None:
        return
    told, settings = report["provenance"], report["settings"]
    print(
        f"{report['questions']['num_questions']} held-out sums, greedily and "
        f"{settings['num_samples']} times by sampling, with intervals of "
        f"{100 * report['confidence']:g} %; {settings['dtype']}, {told['date'][:10]}, trimtab "
        f"{told['trimtab_version']}, torch {told['versions']['torch']}. One run of each: seeds of "
        "training would differ, too."
    )
