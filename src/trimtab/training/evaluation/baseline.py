"""What a constant answer scores: the floor that an accuracy stands on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["MajorityBaseline", "majority_baseline"]


@dataclass(frozen=True)
class MajorityBaseline:
    """The best that any constant answer scores on some questions.

    Attributes:
        answer: The most frequent right answer; the smallest among equals.
        num_correct: Questions that it answers.
        num_questions: All questions.
    """

    answer: Any
    num_correct: int
    num_questions: int

    @property
    def accuracy(self) -> float:
        """Share of the questions that the constant answers."""
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
