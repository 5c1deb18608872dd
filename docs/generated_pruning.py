"""Table of `docs/pruning.md`, drawn from a result of `trimtab evaluate` on pruned models.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.report.wording import points_text, share_text
from trimtab.results.answers import Answers, answers_difference
from trimtab.results.schema import from_plain

__all__ = ["accuracy", "gains", "measured"]

Report = Mapping[str, Any]

NAMES = {
    "demo/base": "the base",
    "demo/pruned-magnitude": "30 % pruned by magnitude",
    "demo/pruned": "30 % pruned by Wanda",
    "runs/pruned/model": "… and trained where the mask survived",
    "runs/pruned-random/model": "… or in the same number of random survivors per tensor",
    "runs/pruned-matched/model": "… or in the same number of the same magnitudes, at random",
}


def accuracy(report: Report | None) -> None:
    """What each model answers, and how that differs from the base."""
    if report is None:
        return
    rows(
        ["", "greedy accuracy", "sampled accuracy", "difference from the base, in points"],
        (
            [
                NAMES[name],
                share_text(answers["greedy_accuracy"], 1, answers["greedy_interval"]),
                share_text(answers["sampled_accuracy"], 1, answers["sampled_interval"]),
                ""
                if difference is None
                else points_text(difference["sampled_difference"], difference["sampled_interval"]),
            ]
            for model in report["models"]
            if (name := model["checkpoint"]["id"]) in NAMES
            for answers, difference in [(model["answers"], model["difference"])]
        ),
    )


def gains(report: Report | None) -> None:
    """The mask's survivors compared with each control of that size, on the same questions."""
    if report is None:
        return
    answers = {
        model["checkpoint"]["id"]: from_plain(Answers, model["answers"], what="answers")
        for model in report["models"]
    }
    trained, *controls = [name for name in NAMES if name.startswith("runs/")]
    for control, words in zip(controls, ("at random", "of the same magnitudes"), strict=True):
        if control in answers and trained in answers:
            difference = answers_difference(answers[control], answers[trained])
            greedy, sampled = (
                points_text(difference[f"{way}_difference"], difference[f"{way}_interval"])
                for way in ("greedy", "sampled")
            )
            print(
                f"- the same number of survivors of each tensor {words}: "
                f"{greedy} points greedy, "
                f"{sampled} sampled"
            )


def measured(report: Report | None) -> None:
    """How the models were evaluated."""
    if report is None:
        return
    info, settings = report["provenance"], report["settings"]
    print(
        f"{report['questions']['num_questions']} held-out sums, greedily and "
        f"{settings['num_samples']} times by sampling, with intervals of "
        f"{100 * report['confidence']:g} %; {settings['dtype']}, {info['date'][:10]}, trimtab "
        f"{info['trimtab_version']}, torch {info['versions']['torch']}. One run of each: other "
        "training seeds would differ, too."
    )
