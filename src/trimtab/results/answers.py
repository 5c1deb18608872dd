"""The answers of one model, its forgetting, and the figures derived from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import fmean
from typing import Any, ClassVar

from trimtab.results import statistics
from trimtab.results.schema import Amount, fields_to_plain, to_plain
from trimtab.words import one_line, out_of, plural


@dataclass(frozen=True)
class Answer:
    """The answer of a model to one question.

    Attributes:
        greedy: The greedy completion, as text.
        correct: Whether it is right.
        ended: Whether it ended before the length limit.
        num_sampled_correct: How many of the sampled completions are right.
    """

    greedy: str
    correct: bool
    ended: bool
    num_sampled_correct: int = 0


@dataclass(frozen=True)
class Answers:
    """Answers of one model to some questions.

    Attributes:
        num_samples: Completions sampled for each question; 0 if none were.
        answers: One for each question.
    """

    PLAIN: ClassVar = (
        *("num_questions", "num_greedy_correct", "num_greedy_not_ended", "greedy_accuracy"),
        *("greedy_standard_error", "greedy_interval", "num_samples", "sampled_accuracy"),
        *("sampled_standard_error", "sampled_interval", "answers"),
    )

    num_samples: int
    answers: tuple[Answer, ...]

    def __repr__(self) -> str:
        right = out_of(self.num_greedy_correct, self.num_questions, "question")
        return one_line(self, f"{right} right, greedily")

    @property
    def num_questions(self) -> int:
        """Questions asked."""
        return len(self.answers)

    @property
    def num_greedy_correct(self) -> int:
        """Questions whose greedy completion is right."""
        return sum(answer.correct for answer in self.answers)

    @property
    def num_greedy_not_ended(self) -> int:
        """Questions whose greedy completion was cut by the length limit."""
        return sum(not answer.ended for answer in self.answers)

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
    def greedy_interval(self) -> statistics.Interval:
        """Interval of `greedy_accuracy` (Wilson)."""
        return statistics.wilson(self.greedy_accuracy, self.num_questions)

    @property
    def sampled_shares(self) -> tuple[float, ...]:
        """Share of right samples of each question; empty if there are no samples."""
        if not self.num_samples:
            return ()
        return tuple(answer.num_sampled_correct / self.num_samples for answer in self.answers)

    @property
    def sampled_accuracy(self) -> float | None:
        """Share of the sampled completions that are right; None without samples."""
        if not self.num_samples:
            return None
        num_right = sum(answer.num_sampled_correct for answer in self.answers)
        return num_right / (self.num_questions * self.num_samples)

    @property
    def sampled_standard_error(self) -> float | None:
        """Standard error of `sampled_accuracy`, clustered by question.

        None without samples, and for fewer than two questions.
        """
        return statistics.standard_error(self.sampled_shares)

    @property
    def sampled_interval(self) -> statistics.Interval | None:
        """Interval of `sampled_accuracy`, by the same clusters; None without samples."""
        if not self.num_samples:
            return None
        return statistics.clustered_interval(self.sampled_shares, self.num_samples)

    def subset(self, indices: Sequence[int]) -> Answers:
        """The answers to some of the questions."""
        return Answers(self.num_samples, tuple(self.answers[index] for index in indices))

    def figures(self) -> dict[str, Any]:
        """Counts and accuracies with their intervals, as plain data."""
        return {key: value for key, value in fields_to_plain(self).items() if key != "answers"}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the figures, and every answer."""
        return fields_to_plain(self)

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        if self.num_samples < 0:
            yield f"num_samples is {self.num_samples}"
        for index, answer in enumerate(self.answers):
            if not 0 <= answer.num_sampled_correct <= self.num_samples:
                yield (
                    f"answers[{index}].num_sampled_correct is {answer.num_sampled_correct} of "
                    f"{self.num_samples} samples"
                )


@dataclass(frozen=True)
class Passage:
    """Divergence of two models on a passage of text.

    Attributes:
        num_tokens: Tokens that are predicted.
        divergence: Sum of KL(base || tuned) over them, in nats.
        base_surprise: Sum of -log p of each token under the base, in nats.
        tuned_surprise: The same under the tuned model.
    """

    num_tokens: int
    divergence: float
    base_surprise: Amount
    tuned_surprise: Amount


@dataclass(frozen=True)
class Forgetting:
    """Divergence of two models on a text.

    Attributes:
        passages: In order.
    """

    PLAIN: ClassVar = (
        *("num_tokens", "kl", "kl_standard_error", "kl_interval"),
        *("base_perplexity", "tuned_perplexity", "passages"),
    )

    passages: tuple[Passage, ...]

    def __repr__(self) -> str:
        return one_line(self, f"KL {self.kl:.4g} over {plural(self.num_tokens, 'token')}")

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(passage.num_tokens for passage in self.passages)

    @property
    def kl(self) -> float:
        """Mean of KL(base || tuned) over tokens, in nats."""
        return sum(passage.divergence for passage in self.passages) / self.num_tokens

    @property
    def kl_standard_error(self) -> float | None:
        """Standard error of `kl`, over passages; None for fewer than two.

        Source:
            Cochran 1977, Sampling Techniques, sec. 6.4: the standard error of a ratio.
        """
        num = len(self.passages)
        if num < 2:
            return None
        residuals = (passage.divergence - self.kl * passage.num_tokens for passage in self.passages)
        variance = sum(residual**2 for residual in residuals) * num / (num - 1)
        return sqrt(variance) / self.num_tokens

    @property
    def kl_interval(self) -> statistics.Interval | None:
        """Interval of `kl`, over passages; None for fewer than two."""
        error = self.kl_standard_error
        return None if error is None else statistics.normal_interval(self.kl, error, low=0.0)

    @property
    def base_perplexity(self) -> float:
        """Perplexity of the base: exp of its mean surprise per token."""
        return exp(sum(passage.base_surprise for passage in self.passages) / self.num_tokens)

    @property
    def tuned_perplexity(self) -> float:
        """Perplexity of the tuned model."""
        return exp(sum(passage.tuned_surprise for passage in self.passages) / self.num_tokens)

    def problems(self) -> Iterator[str]:
        """Values that are impossible."""
        if not self.passages:
            yield "it has no passages"
        for index, passage in enumerate(self.passages):
            if passage.num_tokens < 1:
                yield f"passages[{index}].num_tokens is {passage.num_tokens}"


def answers_difference(first: Answers, second: Answers) -> dict[str, Any]:
    """Differences of the second model from the first on the same questions, as plain data.

    Args:
        first: Answers of the first model.
        second: Answers of the second one, with the same number of samples.
    """
    pairs = list(zip(first.answers, second.answers, strict=True))
    gained = sum(after.correct and not before.correct for before, after in pairs)
    lost = sum(before.correct and not after.correct for before, after in pairs)
    figures: dict[str, Any] = {
        "num_questions": len(pairs),
        "num_gained": gained,
        "num_lost": lost,
        "greedy_difference": (gained - lost) / len(pairs),
        "greedy_interval": statistics.paired_interval(gained, lost, len(pairs)),
        "p_value": statistics.mcnemar(gained, lost),
        "sampled_difference": None,
        "sampled_standard_error": None,
        "sampled_interval": None,
    }
    if first.num_samples and second.num_samples:
        shares = zip(first.sampled_shares, second.sampled_shares, strict=True)
        moved = [after - before for before, after in shares]
        figures["sampled_difference"] = fmean(moved)
        figures["sampled_standard_error"] = statistics.standard_error(moved)
        figures["sampled_interval"] = statistics.mean_interval(moved, -1.0, 1.0)
    plain: dict[str, Any] = to_plain(figures)
    return plain
