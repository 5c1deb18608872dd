"""What one model answered and what it forgot, and what that says of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import fmean
from typing import Any, ClassVar

from trimtab.results.schema import Amount
from trimtab.results.statistics import (
    Interval,
    clustered_interval,
    mcnemar,
    mean_interval,
    normal_interval,
    paired_interval,
    standard_error,
    wilson,
)
from trimtab.words import one_line, out_of, plural

__all__ = ["Answers", "Forgetting", "answers_difference"]


@dataclass(frozen=True)
class Answers:
    """Answers of one model to some questions.

    Attributes:
        greedy: The greedy completion of each question, as text.
        greedy_correct: Whether it is right.
        greedy_ended: Whether it ended before the length limit.
        num_samples: Completions sampled for each question; 0 if none were.
        num_sampled_correct: How many of them are right, for each question.
    """

    READ_AS: ClassVar[type]

    greedy: tuple[str, ...]
    greedy_correct: tuple[bool, ...]
    greedy_ended: tuple[bool, ...]
    num_samples: int
    num_sampled_correct: tuple[int, ...]

    def __repr__(self) -> str:
        right = out_of(self.num_greedy_correct, self.num_questions, "question")
        return one_line(self, f"{right} right, greedily")

    @property
    def num_questions(self) -> int:
        """Questions asked."""
        return len(self.greedy)

    @property
    def num_greedy_correct(self) -> int:
        """Questions whose greedy completion is right."""
        return sum(self.greedy_correct)

    @property
    def greedy_accuracy(self) -> float:
        """Share of the questions whose greedy completion is right."""
        return self.num_greedy_correct / self.num_questions

    @property
    def greedy_standard_error(self) -> float:
        """Standard error of `greedy_accuracy` over questions (binomial)."""
        share = self.greedy_accuracy
        return float((share * (1 - share) / self.num_questions) ** 0.5)

    @property
    def greedy_interval(self) -> Interval:
        """Of `greedy_accuracy` (Wilson)."""
        return wilson(self.greedy_accuracy, self.num_questions)

    @property
    def sampled_shares(self) -> tuple[float, ...]:
        """Share of right samples of each question; empty if there are no samples."""
        if not self.num_samples:
            return ()
        return tuple(correct / self.num_samples for correct in self.num_sampled_correct)

    @property
    def sampled_accuracy(self) -> float | None:
        """Share of the sampled completions that are right; None without samples."""
        if not self.num_samples:
            return None
        return sum(self.num_sampled_correct) / (self.num_questions * self.num_samples)

    @property
    def sampled_standard_error(self) -> float | None:
        """Standard error of `sampled_accuracy`, clustered by question.

        None without samples, and for fewer than two questions.
        """
        return standard_error(self.sampled_shares)

    @property
    def sampled_interval(self) -> Interval | None:
        """Of `sampled_accuracy`, by the same clusters; None without samples."""
        if not self.num_samples:
            return None
        return clustered_interval(self.sampled_shares, self.num_samples)

    def of(self, places: Sequence[int]) -> Answers:
        """The answers to some of the questions."""
        return Answers(
            tuple(self.greedy[place] for place in places),
            tuple(self.greedy_correct[place] for place in places),
            tuple(self.greedy_ended[place] for place in places),
            self.num_samples,
            tuple(self.num_sampled_correct[place] for place in places) if self.num_samples else (),
        )

    def figures(self) -> dict[str, Any]:
        """Counts and accuracies with their intervals, as plain data."""
        return {
            "num_questions": self.num_questions,
            "num_greedy_correct": self.num_greedy_correct,
            "num_greedy_not_ended": self.num_questions - sum(self.greedy_ended),
            "greedy_accuracy": self.greedy_accuracy,
            "greedy_standard_error": self.greedy_standard_error,
            "greedy_interval": list(self.greedy_interval),
            "num_samples": self.num_samples,
            "sampled_accuracy": self.sampled_accuracy,
            "sampled_standard_error": self.sampled_standard_error,
            "sampled_interval": _listed(self.sampled_interval),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the figures, and every answer."""
        sampled = self.num_sampled_correct if self.num_samples else (0,) * self.num_questions
        rows = zip(self.greedy, self.greedy_correct, self.greedy_ended, sampled, strict=True)
        names = ("greedy", "correct", "ended", "num_sampled_correct")
        return {
            **self.figures(),
            "answers": [dict(zip(names, row, strict=True)) for row in rows],
        }


@dataclass(frozen=True)
class _Answer:
    """A row of the JSON."""

    greedy: str
    correct: bool
    ended: bool
    num_sampled_correct: int


@dataclass(frozen=True)
class _Rows:
    """Answers as the JSON has them; the figures beside them are computed anew."""

    PLAIN: ClassVar = (
        *("num_questions=_derived", "num_greedy_correct=_derived", "greedy_accuracy=_derived"),
        *("num_greedy_not_ended=_derived", "greedy_standard_error=_derived"),
        *("greedy_interval=_derived", "num_samples", "sampled_accuracy=_derived"),
        *("sampled_standard_error=_derived", "sampled_interval=_derived", "answers"),
    )

    num_samples: int
    answers: tuple[_Answer, ...]

    def problems(self) -> Iterator[str]:
        """What nobody can have answered."""
        if self.num_samples < 0:
            yield f"num_samples is {self.num_samples}"
        for place, row in enumerate(self.answers):
            if not 0 <= row.num_sampled_correct <= self.num_samples:
                yield (
                    f"answers[{place}].num_sampled_correct is {row.num_sampled_correct} of "
                    f"{self.num_samples} samples"
                )

    def made(self) -> Answers:
        """The answers by column."""
        rows, sampled = self.answers, self.answers if self.num_samples else ()
        return Answers(
            greedy=tuple(row.greedy for row in rows),
            greedy_correct=tuple(row.correct for row in rows),
            greedy_ended=tuple(row.ended for row in rows),
            num_samples=self.num_samples,
            num_sampled_correct=tuple(row.num_sampled_correct for row in sampled),
        )


Answers.READ_AS = _Rows


@dataclass(frozen=True)
class Forgetting:
    """How two models read the same text; one entry for each passage.

    Attributes:
        num_tokens: Tokens that are predicted.
        divergence: Sum of KL(base || tuned) over them, in nats.
        base_surprise: Sum of -log p of each token under the base, in nats.
        tuned_surprise: The same under the tuned model.
    """

    READ_AS: ClassVar[type]

    num_tokens: tuple[int, ...]
    divergence: tuple[float, ...]
    base_surprise: tuple[float, ...]
    tuned_surprise: tuple[float, ...]

    def __repr__(self) -> str:
        return one_line(self, f"KL {self.kl:.4g} over {plural(sum(self.num_tokens), 'token')}")

    @property
    def kl(self) -> float:
        """KL(base || tuned) of a token, in nats; every token counts alike."""
        return sum(self.divergence) / sum(self.num_tokens)

    @property
    def kl_standard_error(self) -> float | None:
        """Standard error of `kl`, over passages; None for fewer than two.

        Source:
            Cochran 1977, Sampling Techniques, sec. 6.4: the standard error of a ratio.
        """
        num = len(self.num_tokens)
        if num < 2:
            return None
        residuals = (
            divergence - self.kl * tokens
            for divergence, tokens in zip(self.divergence, self.num_tokens, strict=True)
        )
        variance = sum(residual**2 for residual in residuals) * num / (num - 1)
        return sqrt(variance) / sum(self.num_tokens)

    @property
    def kl_interval(self) -> Interval | None:
        """Of `kl`, over passages; None for fewer than two."""
        error = self.kl_standard_error
        return None if error is None else normal_interval(self.kl, error, low=0.0)

    @property
    def base_perplexity(self) -> float:
        """Of the base: e to the power of its mean surprise at a token."""
        return exp(sum(self.base_surprise) / sum(self.num_tokens))

    @property
    def tuned_perplexity(self) -> float:
        """Of the tuned model."""
        return exp(sum(self.tuned_surprise) / sum(self.num_tokens))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the figures, and the sums of each passage."""
        return {
            "num_tokens": sum(self.num_tokens),
            "kl": self.kl,
            "kl_standard_error": self.kl_standard_error,
            "kl_interval": None if self.kl_interval is None else list(self.kl_interval),
            "base_perplexity": self.base_perplexity,
            "tuned_perplexity": self.tuned_perplexity,
            "passages": [
                dict(zip(self.__dict__, passage, strict=True))
                for passage in zip(*self.__dict__.values(), strict=True)
            ],
        }


@dataclass(frozen=True)
class _Passage:
    """A row of the JSON."""

    num_tokens: int
    divergence: float
    base_surprise: Amount
    tuned_surprise: Amount


@dataclass(frozen=True)
class _Passages:
    """Passages as the JSON has them; the figures beside them are computed anew."""

    PLAIN: ClassVar = (
        *("num_tokens=_derived", "kl=_derived", "kl_standard_error=_derived"),
        "kl_interval=_derived",
        *("base_perplexity=_derived", "tuned_perplexity=_derived", "passages"),
    )

    passages: tuple[_Passage, ...]

    def problems(self) -> Iterator[str]:
        """What cannot have been read."""
        if not self.passages:
            yield "it has no passages"
        for place, row in enumerate(self.passages):
            if row.num_tokens < 1:
                yield f"passages[{place}].num_tokens is {row.num_tokens}"

    def made(self) -> Forgetting:
        """The passages by column."""
        rows = self.passages
        return Forgetting(
            num_tokens=tuple(row.num_tokens for row in rows),
            divergence=tuple(row.divergence for row in rows),
            base_surprise=tuple(row.base_surprise for row in rows),
            tuned_surprise=tuple(row.tuned_surprise for row in rows),
        )


Forgetting.READ_AS = _Passages


def answers_difference(first: Answers, second: Answers) -> dict[str, Any]:
    """What the second model gained on the first one, on the same questions, as plain data.

    Args:
        first: Answers to the questions.
        second: Answers to the same ones, with as many samples.
    """
    pairs = list(zip(first.greedy_correct, second.greedy_correct, strict=True))
    gained = sum(after and not before for before, after in pairs)
    lost = sum(before and not after for before, after in pairs)
    told: dict[str, Any] = {
        "num_questions": len(pairs),
        "num_gained": gained,
        "num_lost": lost,
        "greedy_difference": (gained - lost) / len(pairs),
        "greedy_interval": list(paired_interval(gained, lost, len(pairs))),
        "p_value": mcnemar(gained, lost),
        "sampled_difference": None,
        "sampled_standard_error": None,
        "sampled_interval": None,
    }
    if first.num_samples and second.num_samples:
        shares = zip(first.sampled_shares, second.sampled_shares, strict=True)
        moved = [after - before for before, after in shares]
        told["sampled_difference"] = fmean(moved)
        told["sampled_standard_error"] = standard_error(moved)
        told["sampled_interval"] = _listed(mean_interval(moved, -1.0, 1.0))
    return told


def _listed(interval: Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)
