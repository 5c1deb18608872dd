"""The losses whose gradients a probe takes: of samples of the model, given answers, or rewards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from trimtab.errors import SettingsError
from trimtab.training.probes.data import (
    JudgedSampler,
    Needs,
    ProbeData,
    given_completions,
    one_by_one,
    padded_samples,
    row_order,
)
from trimtab.training.rollouts.batches import Samples, token_log_probs

EPSILON = 1e-4
"""Added to the standard deviation of the rewards of a prompt, as TRL's GRPO does."""


class Term(NamedTuple):
    """One loss.

    Attributes:
        loss: None where its gradient is known to be 0.
        num_sequences: That it is made of.
        num_tokens: Completion tokens of them.
        num_groups: Prompts whose samples were set beside each other.
        num_groups_told: Those of them whose rewards differ, so that they say something.
    """

    loss: Tensor | None
    num_sequences: int
    num_tokens: int
    num_groups: int = 0
    num_groups_told: int = 0


class Losses(Protocol):
    """What a probe takes gradients of."""

    @property
    def needs(self) -> Needs:
        """What the data must have."""

    def check(self, data: ProbeData) -> None:
        """Check that the settings fit the data.

        Raises:
            SettingsError: They do not.
        """

    def num_terms(self, data: ProbeData) -> int:
        """How many losses there will be."""

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """The losses, one after the other; each is to be differentiated before the next is made."""

    def describe(self) -> dict[str, Any]:
        """What is recorded of the settings."""


@dataclass(frozen=True)
class OwnSamples:
    """The log-probability of each completion that the model itself gives.

    Attributes:
        num_prompts: How many prompts, at most; None for all.
        num_samples: Completions of each.
        batch_size: Completions sampled at a time.
    """

    num_prompts: int | None = None
    num_samples: int = 4
    batch_size: int = 32

    needs: Needs = "prompts"

    def check(self, data: ProbeData) -> None:
        """Any will do."""
        _refuse_below_one(
            num_prompts=1 if self.num_prompts is None else self.num_prompts,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
        )

    def num_terms(self, data: ProbeData) -> int:
        """One for each completion."""
        return self._num_prompts(data) * self.num_samples

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each completion, those of a prompt after each other."""
        sampler = JudgedSampler(model, tokenizer, data, seed)
        places = islice(row_order(len(data.rows.rows), seed), self._num_prompts(data))
        rows = [data.rows.rows[place] for place in places for _ in range(self.num_samples)]
        for start in range(0, len(rows), self.batch_size):
            for samples in one_by_one(sampler.draw(rows[start : start + self.batch_size], start)):
                loss = token_log_probs(model, samples, 1.0).sum()
                yield Term(loss, 1, samples.num_tokens)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "own", "per": "sequence", **_settings(self)}

    def _num_prompts(self, data: ProbeData) -> int:
        num_rows = len(data.rows.rows)
        return num_rows if self.num_prompts is None else min(self.num_prompts, num_rows)


@dataclass(frozen=True)
class AnswerLoss:
    """The mean negative log-likelihood of the tokens of given completions, as SFT has it.

    Attributes:
        num_batches: How many losses.
        batch_size: Completions in each.
    """

    num_batches: int = 16
    batch_size: int = 32

    needs: Needs = "completions"

    def check(self, data: ProbeData) -> None:
        """Any will do."""
        _refuse_below_one(num_batches=self.num_batches, batch_size=self.batch_size)

    def num_terms(self, data: ProbeData) -> int:
        """One for each batch."""
        return self.num_batches

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each batch; rows come again when all have been there."""
        pairs = given_completions(tokenizer, data)
        order = row_order(len(pairs), seed)
        for _ in range(self.num_batches):
            batch = [pairs[place] for place in islice(order, self.batch_size)]
            samples = padded_samples(batch, model.device)
            loss = -token_log_probs(model, samples, 1.0).sum() / samples.num_tokens
            yield Term(loss, len(samples), samples.num_tokens)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "sft", **_settings(self)}


@dataclass(frozen=True)
class RewardLoss:
    """The policy gradient of the model's own samples, as the first step of GRPO has it.

    A completion's advantage is its reward less the mean of its prompt's completions, in units of
    their standard deviation; the loss is the mean over all completion tokens of the batch. There is
    no clipping and no KL term: at the model that sampled, neither has a gradient.

    Attributes:
        num_batches: How many losses.
        batch_size: Completions in each.
        num_samples: Of each prompt.
    """

    num_batches: int = 16
    batch_size: int = 32
    num_samples: int = 8

    needs: Needs = "rewards"

    def check(self, data: ProbeData) -> None:
        """Samples of a prompt are set beside each other, so there must be at least two."""
        _refuse_below_one(num_batches=self.num_batches, batch_size=self.batch_size)
        if self.num_samples < 2:
            raise SettingsError(f"num_samples is {self.num_samples}, expected at least 2")
        if self.batch_size % self.num_samples:
            raise SettingsError(
                f"batch_size is {self.batch_size}, expected a multiple of the {self.num_samples} "
                "samples of a prompt"
            )

    def num_terms(self, data: ProbeData) -> int:
        """One for each batch."""
        return self.num_batches

    def terms(self, model: Any, tokenizer: Any, data: ProbeData, seed: int) -> Iterator[Term]:
        """One for each batch; prompts come again when all have been there."""
        sampler = JudgedSampler(model, tokenizer, data, seed)
        order = row_order(len(data.rows.rows), seed)
        num_groups = self.batch_size // self.num_samples
        for number in range(self.num_batches):
            places = list(islice(order, num_groups))
            rows = [data.rows.rows[place] for place in places for _ in range(self.num_samples)]
            samples = sampler.draw(rows, number)
            rewards = torch.tensor(sampler.rewards(rows, samples))
            advantages = group_advantages(rewards, self.num_samples)
            told = int(advantages.view(num_groups, -1).any(1).sum())
            loss = _policy_loss(model, samples, advantages) if told else None
            yield Term(loss, len(samples), samples.num_tokens, num_groups, told)

    def describe(self) -> dict[str, Any]:
        """Settings."""
        return {"loss": "reward", **_settings(self)}


def group_advantages(rewards: Tensor, num_samples: int) -> Tensor:
    """Rewards less the mean of their group, in units of its standard deviation.

    Args:
        rewards: `[rows]`, those of a prompt after each other.
        num_samples: Rows of a prompt.

    Returns:
        `[rows]`; exactly 0 in a group of equal rewards.
    """
    groups = rewards.view(-1, num_samples)
    centred = groups - groups.mean(1, keepdim=True)
    is_told = (groups != groups[:, :1]).any(1, keepdim=True)
    scaled = centred / (groups.std(1, keepdim=True) + EPSILON)
    return torch.where(is_told, scaled, 0.0).reshape(-1)


def _policy_loss(model: Any, samples: Samples, advantages: Tensor) -> Tensor:
    log_probs = token_log_probs(model, samples, 1.0)
    weighted = advantages.to(log_probs.device).unsqueeze(1) * log_probs
    return -weighted.sum() / samples.num_tokens


def _settings(losses: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(losses).items() if name != "needs"}


def _refuse_below_one(**settings: int) -> None:
    if bad := [f"{name} is {value}" for name, value in settings.items() if value < 1]:
        raise SettingsError(f"{', '.join(bad)}: expected at least 1")
