"""The result of an evaluation: the answers of models to the same questions, and their forgetting.

An `Evaluation` stores answers and sums; accuracies, intervals and differences are derived from
them. No model is needed to draw its tables and reports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, TypedDict

from trimtab.results.answers import Answers, Forgetting, answers_difference
from trimtab.results.records import CheckpointRecord
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance, to_plain
from trimtab.results.statistics import CONFIDENCE, Interval, normal_interval
from trimtab.words import one_line


@dataclass(frozen=True)
class MajorityBaseline:
    """The best that any constant answer scores on some questions.

    Attributes:
        answer: The most frequent right answer; the smallest among equals.
        num_correct: Questions that it answers correctly.
        num_questions: All questions.
    """

    answer: Any
    num_correct: int
    num_questions: int

    @property
    def accuracy(self) -> float:
        """Share of the questions that the constant answers correctly."""
        return self.num_correct / self.num_questions

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**self.__dict__, "accuracy": self.accuracy}


def majority_baseline(answers: Iterable[Any]) -> MajorityBaseline:
    """The best constant answer, chosen with knowledge of the questions themselves.

    Args:
        answers: The right answer of each question; answers count as equal if they are written
            alike, though a verifier may accept several ways of writing.

    Raises:
        ValueError: There are no questions.
    """
    counts = Counter(answers)
    if not counts:
        raise ValueError("no questions")
    answer = min(counts, key=lambda value: (-counts[value], value))
    return MajorityBaseline(answer, counts[answer], counts.total())


class _Message(TypedDict):
    role: str
    content: str


class _Record(TypedDict):
    source: str
    num_seen: Count
    max_completion_length: Count


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        prompt: A text, or a list of messages.
        answer: The right answer, as written; None where there is no single one.
        level: Its level, if it has one.
    """

    prompt: str | list[Annotated[Mapping[str, Any], Like(_Message, is_open=True)]]
    answer: Any
    level: str | float | None = None


@dataclass(frozen=True)
class AskedQuestions:
    """The questions that the models were asked.

    Attributes:
        by: Name of the levels; None if the questions have none.
        record: Source of the questions, and how answers were sampled and judged.
        rows: The questions.
    """

    PLAIN: ClassVar = ("num_questions", "by", "majority_baseline=baseline", "record", "rows")

    by: str | None
    record: Annotated[Mapping[str, Any], Like(_Record, is_open=True)]
    rows: tuple[Question, ...]

    __repr__ = one_line

    @property
    def num_questions(self) -> int:
        """Questions asked."""
        return len(self.rows)

    def indices_by_level(self) -> dict[Any, list[int]]:
        """Level -> indices of its questions; sorted, numbers before texts."""
        groups: dict[Any, list[int]] = {}
        for index, row in enumerate(self.rows if self.by is not None else ()):
            groups.setdefault(row.level, []).append(index)
        return dict(sorted(groups.items(), key=lambda item: (isinstance(item[0], str), item[0])))

    def baseline(self, indices: Sequence[int] | None = None) -> dict[str, Any] | None:
        """Score of the best constant answer; None if a question has no single right answer."""
        rows = self.rows if indices is None else [self.rows[index] for index in indices]
        if any(row.answer is None for row in rows):
            return None
        return majority_baseline(row.answer for row in rows).to_dict()

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        if not self.rows:
            yield "it has no rows"
        if self.by is not None and any(row.level is None for row in self.rows):
            yield f"a question has no level, and by is {self.by[:40]!a}"


class Metric(TypedDict):
    """A figure of lm-evaluation-harness."""

    value: float
    standard_error: float | None


class Suite(TypedDict):
    """Metrics of a task of lm-evaluation-harness."""

    metrics: Mapping[str, Annotated[Mapping[str, Any], Like(Metric, is_open=True)]]


class Settings(TypedDict):
    """Settings of an evaluation."""

    dtype: str
    seed: int
    batch_size: Count
    num_samples: Count
    temperature: float | None


class Text(TypedDict):
    """The text of the forgetting probe."""

    source: str


@dataclass(frozen=True)
class EvaluatedModel:
    """The results of one model.

    Attributes:
        record: The checkpoint; its id is the name of the model.
        answers: To the questions, if any were asked.
        forgetting: Compared with the base; None for the base itself, and without one.
        suites: Task of lm-evaluation-harness -> its metrics, if any were run.
    """

    PLAIN: ClassVar = ("checkpoint=record", "answers", "difference=_of_two", "forgetting", "suites")
    _of_two: ClassVar = None  # derived by the evaluation, from this model and the first

    record: CheckpointRecord
    answers: Answers | None = None
    forgetting: Forgetting | None = None
    suites: Mapping[str, Annotated[Mapping[str, Any], Like(Suite, is_open=True)]] | None = None

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
class Evaluation(Result):
    """Evaluation of one model or several; the others are compared with the first.

    Attributes:
        models: In the order given; the base, if there is one, comes first.
        questions: The questions; None if none were asked.
        text: The text of the forgetting probe; None without one.
        settings: Seed, batch size and the like.
        provenance: trimtab version, command, date, device, versions.
    """

    FORMAT = "trimtab.evaluation"
    NAME = "evaluation"
    COMMAND = "trimtab evaluate"
    ROWS = "models"
    DERIVES = True
    PLAIN: ClassVar = (
        *("provenance", "settings", "confidence=_confidence", "questions", "text"),
        *("models", "by_level=_by_level"),
    )
    _confidence: ClassVar = CONFIDENCE

    models: tuple[EvaluatedModel, ...]
    questions: AskedQuestions | None
    text: Annotated[Mapping[str, Any], Like(Text, is_open=True)] | None
    settings: Annotated[Mapping[str, Any], Like(Settings, is_open=True)]
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            ", ".join(repr(model).removeprefix("EvaluatedModel(")[:-1] for model in self.models),
        )

    def plain_models(self) -> list[dict[str, Any]]:
        """The models, each with its difference from the first, and the intervals of suites."""
        return [
            to_plain(model)
            | {"difference": self._difference(model)}
            | {"suites": None if model.suites is None else _with_intervals(model.suites)}
            for model in self.models
        ]

    def _difference(
        self, model: EvaluatedModel, indices: Sequence[int] | None = None
    ) -> dict[str, Any] | None:
        """Difference of a model from the first one; None for the first itself."""
        first, second = self.models[0].answers, model.answers
        if model is self.models[0] or first is None or second is None:
            return None
        if indices is None:
            return answers_difference(first, second)
        return answers_difference(first.subset(indices), second.subset(indices))

    def _by_level(self) -> list[dict[str, Any]] | None:
        if self.questions is None or self.questions.by is None:
            return None
        return [
            {
                "level": level,
                "num_questions": len(indices),
                "majority_baseline": self.questions.baseline(indices),
                "models": [
                    {
                        "id": model.record.id,
                        **(
                            {} if model.answers is None else model.answers.subset(indices).figures()
                        ),
                        "difference": self._difference(model, indices),
                    }
                    for model in self.models
                ],
            }
            for level, indices in self.questions.indices_by_level().items()
        ]

    def problems(self) -> Iterator[str]:
        """Values that `evaluate` does not produce."""
        if not self.models:
            yield "it has no models"
            return
        first, *others = self.models
        if len({model.record.id for model in self.models}) < len(self.models):
            yield "two models have the same name"
        num_questions = None if self.questions is None else self.questions.num_questions
        for model in self.models:
            name, answers = ascii(model.record.id[:100]), model.answers
            num_answered = None if answers is None else answers.num_questions
            if num_answered != num_questions:
                yield f"{name} answered {num_answered} of {num_questions} questions"
            elif answers is not None and answers.num_samples != self.settings["num_samples"]:
                yield f"{name} has {answers.num_samples} samples of each question"
            if _metrics(model) != _metrics(first):
                yield f"{name} was given other suites"
        has_read = [model.forgetting is not None for model in others]
        if first.forgetting is not None or has_read != [self.text is not None] * len(others):
            yield "not all models but the base were compared with it on a text"
        if self.text is not None and not others:
            yield "it has a text, and no model but the base"


def _metrics(model: EvaluatedModel) -> list[tuple[str, str]] | None:
    """Task and name of each metric."""
    if model.suites is None:
        return None
    return [(task, name) for task, suite in model.suites.items() for name in suite["metrics"]]


def _with_intervals(suites: Mapping[str, Any]) -> dict[str, Any]:
    """Suites with the interval of each metric that has a standard error."""

    def interval(metric: Mapping[str, Any]) -> Interval | None:
        error = metric["standard_error"]
        return None if error is None else normal_interval(metric["value"], error)

    return {
        task: {
            **suite,
            "metrics": {
                name: {**metric, "interval": interval(metric)}
                for name, metric in suite["metrics"].items()
            },
        }
        for task, suite in suites.items()
    }
