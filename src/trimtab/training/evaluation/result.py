"""The result of an evaluation: what models answered to the same questions, and what they forgot.

An `Evaluation` is complete in itself: tables and reports are drawn from it, or from its JSON, and
no model is needed. What is kept are answers and sums; accuracies, intervals and differences are
derived from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trimtab.checkpoints.record import CheckpointRecord, check_format
from trimtab.errors import ResultFormatError
from trimtab.training.evaluation.answers import Answers, difference
from trimtab.training.evaluation.baseline import majority_baseline
from trimtab.training.evaluation.forgetting import Forgetting
from trimtab.training.evaluation.intervals import CONFIDENCE, normal_interval
from trimtab.words import one_line

__all__ = ["FORMAT", "FORMAT_VERSION", "AskedQuestions", "EvaluatedModel", "Evaluation"]

FORMAT = "trimtab.evaluation"
FORMAT_VERSION = 1
"""History: 1, the first."""


@dataclass(frozen=True)
class AskedQuestions:
    """What the models were asked.

    Attributes:
        prompts: Texts, or lists of messages.
        answers: The right answer of each, as written; None where there is no single one.
        levels: The level of each; None if the questions have none.
        by: What the levels are.
        record: Where they come from, how answers were drawn and judged.
    """

    prompts: tuple[Any, ...]
    answers: tuple[Any, ...]
    levels: tuple[Any, ...] | None
    by: str | None
    record: Mapping[str, Any]

    __repr__ = one_line

    def places_by_level(self) -> dict[Any, list[int]]:
        """Level -> places of its questions; numbers in their order, then texts in theirs."""
        groups: dict[Any, list[int]] = {}
        for place, level in enumerate(self.levels or ()):
            groups.setdefault(level, []).append(place)
        return dict(sorted(groups.items(), key=lambda item: _level_order(item[0])))

    def baseline(self, places: Sequence[int] | None = None) -> dict[str, Any] | None:
        """What the best constant answer scores; None where a question has no single answer."""
        chosen = self.answers if places is None else [self.answers[place] for place in places]
        if any(answer is None for answer in chosen):
            return None
        return majority_baseline(chosen).to_dict()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        levels = self.levels or (None,) * len(self.prompts)
        rows = zip(self.prompts, self.answers, levels, strict=True)
        return {
            "num_questions": len(self.prompts),
            "by": self.by,
            "majority_baseline": self.baseline(),
            "record": dict(self.record),
            "rows": [dict(zip(("prompt", "answer", "level"), row, strict=True)) for row in rows],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AskedQuestions:
        """The inverse of `to_dict`."""
        rows, by = data["rows"], data["by"]
        if not all(_is_prompt(row["prompt"]) for row in rows):
            raise TypeError("a prompt that is neither a text nor a list of messages")
        return cls(
            prompts=tuple(row["prompt"] for row in rows),
            answers=tuple(row["answer"] for row in rows),
            levels=None if by is None else tuple(row["level"] for row in rows),
            by=by,
            record=dict(data["record"]),
        )


def _is_prompt(prompt: Any) -> bool:
    return isinstance(prompt, str) or all(isinstance(message["content"], str) for message in prompt)


def _level_order(level: Any) -> tuple[bool, Any]:
    return (isinstance(level, str), level)


@dataclass(frozen=True)
class EvaluatedModel:
    """One model, and what was found of it.

    Attributes:
        record: The checkpoint; its id is what it is called.
        answers: To the questions, if any were asked.
        forgetting: Against the base, if there was one and this is another.
        suites: Task of lm-evaluation-harness -> its metrics, if any were run.
    """

    record: CheckpointRecord
    answers: Answers | None = None
    forgetting: Forgetting | None = None
    suites: Mapping[str, Mapping[str, Any]] | None = None

    def __repr__(self) -> str:
        return one_line(
            self,
            self.record.id
            + (
                f": {self.answers.num_greedy_correct} of {self.answers.num_questions} right"
                if self.answers
                else ""
            ),
        )


@dataclass(frozen=True)
class Evaluation:
    """Models beside each other: the first is what the others are set against.

    Attributes:
        models: In the order given; the base, if there is one, comes first.
        questions: What they were asked; None if nothing.
        text: What the forgetting probe read; None if there was none.
        settings: Seed, batch size and the like.
        provenance: trimtab version, command, date, device, versions.
    """

    models: tuple[EvaluatedModel, ...]
    questions: AskedQuestions | None
    text: Mapping[str, Any] | None
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            ", ".join(repr(model).removeprefix("EvaluatedModel(")[:-1] for model in self.models),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "provenance": dict(self.provenance),
            "settings": dict(self.settings),
            "confidence": CONFIDENCE,
            "questions": None if self.questions is None else self.questions.to_dict(),
            "text": None if self.text is None else dict(self.text),
            "models": [self._model(model) for model in self.models],
            "by_level": self._by_level(),
        }

    def _model(self, model: EvaluatedModel) -> dict[str, Any]:
        return {
            "checkpoint": model.record.to_dict(),
            "answers": None if model.answers is None else model.answers.to_dict(),
            "difference": self._difference(model),
            "forgetting": None if model.forgetting is None else model.forgetting.to_dict(),
            "suites": None if model.suites is None else _with_intervals(model.suites),
        }

    def _difference(
        self, model: EvaluatedModel, places: Sequence[int] | None = None
    ) -> dict[str, Any] | None:
        """Of a model from the first one; None for the first itself."""
        first, second = self.models[0].answers, model.answers
        if model is self.models[0] or first is None or second is None:
            return None
        if places is None:
            return difference(first, second)
        return difference(first.of(places), second.of(places))

    def _by_level(self) -> list[dict[str, Any]] | None:
        if self.questions is None or self.questions.by is None:
            return None
        return [
            {
                "level": level,
                "num_questions": len(places),
                "majority_baseline": self.questions.baseline(places),
                "models": [
                    {
                        "id": model.record.id,
                        **({} if model.answers is None else model.answers.of(places).figures()),
                        "difference": self._difference(model, places),
                    }
                    for model in self.models
                ],
            }
            for level, places in self.questions.places_by_level().items()
        ]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_dict`.

        Raises:
            ResultFormatError: The data is no evaluation, of another version, or damaged.
        """
        check_format(data, FORMAT, FORMAT_VERSION, what="evaluation", command="trimtab evaluate")
        try:
            asked = data["questions"]
            evaluation = cls(
                models=tuple(_read_model(row) for row in data["models"]),
                questions=None if asked is None else AskedQuestions.from_dict(asked),
                text=data["text"],
                settings=dict(data["settings"]),
                provenance=dict(data["provenance"]),
            )
            evaluation._check()
            evaluation.to_dict()  # derives every figure: what cannot be is damaged
        except (
            *(KeyError, TypeError, ValueError, AttributeError),
            *(IndexError, ZeroDivisionError, OverflowError),
        ) as error:
            raise ResultFormatError(f"damaged evaluation: {error!r} while reading it") from error
        return evaluation

    def _check(self) -> None:
        """Raise ValueError or TypeError if it is not such as `evaluate` makes them."""
        first, *others = self.models  # a ValueError if there are none
        if len({model.record.id for model in self.models}) < len(self.models):
            raise ValueError("two models of one name")
        asked = None if self.questions is None else len(self.questions.prompts)
        for model in self.models:
            answered = None if model.answers is None else model.answers.num_questions
            if answered != asked:
                raise ValueError(f"{model.record.id} answered {answered} of {asked} questions")
            if _metrics(model) != _metrics(first):
                raise ValueError(f"{model.record.id} was given other suites")
        has_read = [model.forgetting is not None for model in others]
        if first.forgetting is not None or has_read != [self.text is not None] * len(others):
            raise ValueError("not all models but the base were read beside it")
        if self.text is not None:
            if not others:
                raise ValueError("a text, and no model beside the base")
            _check_types(self.text, {"source": str})
        _check_types(self.settings, _SETTINGS)
        if self.questions is not None:
            _check_types(self.questions.record, _RECORD)


_SETTINGS = {
    "dtype": str,
    "seed": int,
    "batch_size": int,
    "num_samples": int,
    "temperature": float | None,
}
_RECORD = {"source": str, "num_seen": int, "max_completion_length": int}


def _check_types(data: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        if not isinstance(data[name], kind):
            raise TypeError(f"{name} is {data[name]!r}")


def _metrics(model: EvaluatedModel) -> list[tuple[str, str]] | None:
    """Task and name of each metric, which must be numbers."""
    if model.suites is None:
        return None
    found = [
        (task, name, metric)
        for task, told in model.suites.items()
        for name, metric in told["metrics"].items()
    ]
    for _, _, metric in found:
        _check_types(metric, {"value": int | float, "standard_error": int | float | None})
    return [(task, name) for task, name, _ in found]


def _with_intervals(suites: Mapping[str, Any]) -> dict[str, Any]:
    """Suites whose metrics have an interval, where the suite tells a standard error."""

    def interval(metric: Mapping[str, Any]) -> list[float] | None:
        error = metric["standard_error"]
        return None if error is None else list(normal_interval(metric["value"], error))

    return {
        task: {
            **told,
            "metrics": {
                name: {**metric, "interval": interval(metric)}
                for name, metric in told["metrics"].items()
            },
        }
        for task, told in suites.items()
    }


def _read_model(row: Mapping[str, Any]) -> EvaluatedModel:
    answers, forgetting = row["answers"], row["forgetting"]
    _check_types(row["checkpoint"], {"id": str})
    return EvaluatedModel(
        record=CheckpointRecord(**row["checkpoint"]),
        answers=None if answers is None else Answers.from_dict(answers),
        forgetting=None if forgetting is None else Forgetting.from_dict(forgetting),
        suites=row["suites"],
    )
