"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.evaluation import (
    accuracy,
    evaluation_provenance,
    forgetting,
    given_answers,
    suites,
)
from trimtab.report.evaluation_wording import model_names, share_text, task_text

__all__ = ["evaluation_page"]


def evaluation_page(evaluation: Mapping[str, Any]) -> Page:
    """What is told of an evaluation.

    Args:
        evaluation: Its plain data; nothing else is read.
    """
    first, *others = model_names(evaluation)
    asked = evaluation["questions"]
    sections = [
        accuracy(evaluation),
        forgetting(evaluation),
        suites(evaluation),
        given_answers(evaluation),
        evaluation_provenance(evaluation),
    ]
    return Page(
        title=", ".join((*others, first)),
        heading="What the models answered" if asked else "What the models forgot",
        subtitle=(first, ", ".join(others) or "no other model"),
        heroes=_evaluation_heroes(evaluation),
        coverage="complete: every model was given the same questions and texts",
        sections=sections,
        source=(f"{task_text(evaluation)} · " if asked else "") + ", ".join((first, *others)),
        date=evaluation["provenance"].get("date", ""),
    )


def _evaluation_heroes(evaluation: Mapping[str, Any]) -> list[Hero]:
    """The greedy accuracy of each model, or of those beside the first."""
    if evaluation["questions"] is None:
        return []
    models = list(zip(model_names(evaluation), evaluation["models"], strict=True))
    beside = ""
    if len(models) > 1:
        first, model = models.pop(0)
        beside = f"; {share_text(model['answers']['greedy_accuracy'], 1, None)} by {first}"
    return [
        Hero(
            label=name,
            figure=share_text(told["greedy_accuracy"], 1, None),
            words=f"of {told['num_questions']:,} questions are answered right, greedily{beside}",
            filled=told["greedy_accuracy"],
            under=f"{told['num_greedy_correct']:,} right",
        )
        for name, model in models
        for told in (model["answers"],)
    ]
