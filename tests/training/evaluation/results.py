"""An evaluation as it comes out, made of chosen answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.results.answers import Answer, Answers, Forgetting, Passage
from trimtab.results.evaluation import AskedQuestions, EvaluatedModel, Evaluation, Question
from trimtab.results.records import CheckpointRecord

RIGHT = {
    "base": (True, False, False, True, False, False),
    "tuned": (True, True, True, True, False, True),
}


def answers_of(
    greedy: Sequence[str],
    correct: Sequence[bool],
    ended: Sequence[bool],
    num_samples: int = 0,
    num_sampled_correct: Sequence[int] = (),
) -> Answers:
    """Answers by column."""
    sampled = num_sampled_correct or (0,) * len(greedy)
    return Answers(num_samples, tuple(map(Answer, greedy, correct, ended, sampled)))


def forgetting_of(*columns: Sequence[Any]) -> Forgetting:
    """Forgetting by column."""
    return Forgetting(tuple(map(Passage, *columns)))


def make_evaluation(
    *,
    levels: tuple[Any, ...] | None = None,
    num_samples: int = 4,
    names: tuple[str, ...] = ("base", "tuned"),
    suites: bool = False,
) -> Evaluation:
    """Six questions to models called `names`; the first is the base of the others."""
    models = []
    for place, name in enumerate(names):
        right = RIGHT["tuned" if place else "base"]
        models.append(
            EvaluatedModel(
                record=CheckpointRecord(name, None, "Llama", 2, 10, {"BF16": 10}, f"{place}" * 32),
                answers=answers_of(
                    ["right" if is_right else "wrong" for is_right in right],
                    right,
                    (True, True, True, True, True, bool(place)),
                    num_samples,
                    (4, 1, place, 2, 0, place) if num_samples else (0,) * 6,
                ),
                forgetting=forgetting_of((10, 30), (0.1, 0.5), (20.0, 60.0), (24.0, 72.0))
                if place
                else None,
                suites={
                    "arc_easy": {
                        "num_questions": 10,
                        "num_shots": 0,
                        "version": 1.0,
                        "metrics": {"acc": {"value": 0.5 + place / 8, "standard_error": 0.1}},
                    }
                }
                if suites
                else None,
            )
        )
    record = {
        "source": "questions.jsonl",
        "xxh3_128": "f" * 32,
        "num_seen": 0,
        "reward": {"kind": "exact", "column": "answer"},
        "stop": None,
        "max_completion_length": 8,
    }
    return Evaluation(
        models=tuple(models),
        questions=AskedQuestions(
            by=None if levels is None else "level",
            record=record,
            rows=tuple(
                Question(f"question {place}", answer, level)
                for place, (answer, level) in enumerate(
                    zip("aabbbc", levels or (None,) * 6, strict=True)
                )
            ),
        ),
        text={"source": "a text", "xxh3_128": "e" * 32, "num_passages": 2}
        if len(names) > 1
        else None,
        settings={
            "dtype": "bf16",
            "seed": 0,
            "batch_size": 32,
            "num_samples": num_samples,
            "temperature": 1.0 if num_samples else None,
        },
        provenance={
            "trimtab_version": "0.1.0",
            "command": None,
            "date": "2026-11-21T00:00:00+00:00",
        },
    )
