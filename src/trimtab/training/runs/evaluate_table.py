"""`[evaluate]`, of run files and of sweep files: held-out questions, and when to ask them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class QuestionsTable:
    """`[evaluate]` of a sweep file: the questions for the trained models.

    Attributes:
        task: `addition`, or `reasoning_gym:` and a name; None for that of the run.
        file: JSON Lines with `prompt` and the correct answer; prompts of the training data are
            excluded.
        kind: How answers to `file` are judged; None for the reward of the run, or `exact`.
        pattern: Regular expression for `kind = "regex"`.
        column: The column with the correct answer in `file`.
        questions: Maximum number of questions; None for all.
    """

    task: str | None = None
    file: str | None = None
    kind: Literal["exact", "regex", "math"] | None = "exact"
    pattern: str | None = None
    column: str = "answer"
    questions: int | None = None

    def problems(self) -> Iterator[str]:
        """Contradictions, and numbers out of range."""
        if self.task is not None and self.file is not None:
            yield "evaluate: expected one of task and file, or none"
        default = type(self)()
        names = ("kind", "pattern", "column")
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        if self.file is None:
            yield from (f"evaluate.{name} has no effect without file" for name in changed)
        elif self.kind is None:
            yield from (f"evaluate.{name} has no effect without kind" for name in changed)
        if self.questions is not None and self.questions < 1:
            yield f"evaluate.questions is {self.questions}, expected at least 1"


@dataclass(frozen=True)
class EvaluateTable(QuestionsTable):
    """`[evaluate]` of a run file: what is evaluated while the model trains.

    Attributes:
        every: Optimizer steps between two evaluations; the first is before training, the last after
            the last step.
        data: JSON Lines with rows like those of the training data, to take the loss of.
        batch_size: Completions generated at a time.
    """

    kind: Literal["exact", "regex", "math"] | None = None
    every: int = 0
    data: str | None = None
    batch_size: int = 32

    @property
    def asks(self) -> bool:
        """Whether questions are asked: those that are named, or if there is no `data`."""
        return self.task is not None or self.file is not None or self.data is None

    def problems(self) -> Iterator[str]:
        """Contradictions, and numbers out of range."""
        yield from super().problems()
        if self.questions is not None and not self.asks:
            yield "evaluate.questions has no effect with data alone: name a task or a file"
        if self.every < 1:
            yield f"evaluate.every is {self.every}, expected a number of steps from 1 on"
        if self.batch_size < 1:
            yield f"evaluate.batch_size is {self.batch_size}, expected at least 1"
