"""`PRIMETrainer`: PRIME (Cui et al. 2025, arXiv 2502.01456) on the Trainer of transformers.

trainer = PRIMETrainer(model, PRIMEConfig("out"), train_dataset, tokenizer, reward_funcs=right)
train_only(trainer, "mask.safetensors")   # or leave it out, to train everything
trainer.train()

Completions of one prompt are `num_generations` consecutive rows. The implicit reward of a
token is `q_t = beta log(pi_rm / pi_ref)`, and of a completion the sum of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.errors import SettingsError
from trimtab.training.rollouts.auxiliary_model import AuxiliaryModel
from trimtab.training.rollouts.sampling import (
    EPSILON,
    PolicyBatch,
    Samples,
    split_rows,
    take_rows,
    token_log_probs,
    whiten,
)
from trimtab.training.rollouts.trainer import RolloutConfig, RolloutTrainer, Rows, frozen_copy


def leave_one_out(values: Tensor, num_generations: int) -> Tensor:
    """Mean over the other completions of the same prompt, for each completion."""
    groups = values.view(-1, num_generations)
    others = (groups.sum(1, keepdim=True) - groups) / (num_generations - 1)
    return others.reshape(-1)


def outcome_advantages(outcomes: Tensor, num_generations: int) -> Tensor:
    """Outcome of each completion minus the mean of the others of its prompt.

    Source:
        arXiv 2502.01456, advantage estimation: the term of the outcome, the same for every token.
    """
    return outcomes - leave_one_out(outcomes, num_generations)


def process_advantages(
    rewards: Tensor, mask: Tensor, num_generations: int, *, gamma: float
) -> Tensor:
    """Discounted returns of the process rewards minus a leave-one-out baseline.

    The baseline of a completion is the mean of the mean token rewards of the other completions of
    its prompt. It is subtracted from every token, and the difference is summed from each token to
    the last.

    Args:
        rewards: Process rewards of tokens. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.
        num_generations: Completions of each prompt.
        gamma: Discount factor.

    Returns:
        `[rows, tokens]`, 0 where the mask is False.

    Source:
        arXiv 2502.01456, advantage estimation: the term of the process rewards. The authors' code
        counts the reward of a token K / (K - 1) times, and has its own completion among those of
        the baseline, which is the same for outcomes only; it leaves out the last token.
    """
    rewards = rewards.masked_fill(~mask, 0.0)
    means = rewards.sum(1) / mask.sum(1)
    beyond = rewards - leave_one_out(means, num_generations).unsqueeze(1)
    return discounted_returns(beyond.masked_fill(~mask, 0.0), gamma)


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """Sums from each token to the last; `[rows, tokens]`."""
    returns = rewards.clone()
    for t in reversed(range(rewards.shape[1] - 1)):
        returns[:, t] += gamma * returns[:, t + 1]
    return returns


def scaled_to_returns(rewards: Tensor) -> Tensor:
    """Rewards divided by the largest absolute return of any completion from any token.

    Args:
        rewards: Process rewards of a round, 0 beyond the completions. `[rows, tokens]`

    Source:
        `prime_norm = batch_norm` of the authors' code; not in arXiv 2502.01456.
    """
    return rewards / (discounted_returns(rewards, 1.0).abs().max() + EPSILON)


def within_bounds_first(
    outcomes: Tensor, num_generations: int, *, lower: float, upper: float
) -> tuple[Tensor, int]:
    """Row indices, with the prompts whose mean outcome is within the bounds first.

    The order is stable otherwise. A round that has too few prompts within the bounds is filled with
    others.

    Args:
        outcomes: From 0 to 1; those of a prompt are consecutive rows. `[rows]`
        num_generations: Completions of each prompt.
        lower: Smallest mean outcome.
        upper: Largest mean outcome.

    Returns:
        Row indices, and the number of prompts within the bounds.

    Source:
        arXiv 2502.01456, online prompt filtering; filling up is as in the authors' code.
    """
    accuracy = outcomes.double().view(-1, num_generations).mean(1)
    is_kept = (accuracy >= lower) & (accuracy <= upper)
    prompts = torch.argsort((~is_kept).long(), stable=True)
    rows = prompts.unsqueeze(1) * num_generations + torch.arange(
        num_generations, device=outcomes.device
    )
    return rows.reshape(-1), int(is_kept.sum())


def cross_entropy_loss(rewards: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy of the outcome, with sigma(reward) as probability of a correct completion.

    Args:
        rewards: Rewards of completions, with gradient. `[rows]`
        outcomes: From 0 to 1. `[rows]`

    Returns:
        The loss of each completion. `[rows]`

    Source:
        arXiv 2502.01456, the update of the implicit reward model.
    """
    return functional.binary_cross_entropy_with_logits(rewards, outcomes, reduction="none")


def dpo_loss(rewards: Tensor, outcomes: Tensor, opposites: Tensor) -> Tensor:
    """DPO loss between correct and wrong completions of the same prompt, one side at a time.

    In `-log sigma(reward of correct - reward of wrong)`, the other side is detached and replaced by
    the mean reward of the completions with the other outcome. So the loss of a completion does not
    depend on its batch.

    Args:
        rewards: Rewards of completions, with gradient. `[rows]`
        outcomes: Correct if above 0.5. `[rows]`
        opposites: From `mean_of_opposites`; the loss is 0 where it is NaN.

    Returns:
        The loss of each completion. `[rows]`

    Source:
        Rafailov et al. 2023 (arXiv 2305.18290), eq. 7, with its detached form in the authors' code
        of PRIME; arXiv 2502.01456 has cross-entropy alone.
    """
    signs = torch.where(outcomes > 0.5, 1.0, -1.0)
    losses = -functional.logsigmoid(signs * (rewards - opposites.nan_to_num()))
    return losses.masked_fill(opposites.isnan(), 0.0)


def mean_of_opposites(rewards: Tensor, outcomes: Tensor, num_generations: int) -> Tensor:
    """Mean reward of the completions of the same prompt with the other outcome.

    Args:
        rewards: Rewards of completions; those of a prompt are consecutive rows. `[rows]`
        outcomes: Correct if above 0.5. `[rows]`
        num_generations: Completions of each prompt.

    Returns:
        `[rows]`; NaN if there is no such completion.
    """
    rewards = rewards.detach().view(-1, num_generations)
    right = outcomes.view(-1, num_generations) > 0.5

    def mean(selected: Tensor) -> Tensor:
        return (rewards * selected).sum(1, keepdim=True) / selected.sum(1, keepdim=True)

    return torch.where(right, mean(~right), mean(right)).reshape(-1)


def pair_accuracy(rewards: Tensor, outcomes: Tensor, num_generations: int) -> tuple[int, int]:
    """Count the pairs of a correct and a wrong completion that the rewards order correctly.

    Returns:
        Number of correctly ordered pairs, and of all pairs.
    """
    rewards = rewards.view(-1, num_generations)
    right = outcomes.view(-1, num_generations) > 0.5
    is_pair = right.unsqueeze(2) & ~right.unsqueeze(1)
    is_larger = rewards.unsqueeze(2) > rewards.unsqueeze(1)
    return int((is_pair & is_larger).sum()), int(is_pair.sum())


@dataclass
class PRIMEConfig(RolloutConfig):
    """Settings of `PRIMETrainer`, in addition to `transformers.TrainingArguments`.

    "The authors" are those of arXiv 2502.01456, and their settings those of their recipe in verl
    (`recipe/prime`, `run_prime_qwen.sh` and `config/prime_trainer.yaml`).

    Attributes:
        learning_rate: Peak of the policy's schedule. 5e-7, as the authors.
        lr_scheduler_type: Schedule of policy and reward model. `constant`, as the authors.
        num_ppo_epochs: Passes over the completions of a round. 1, as the authors.
        num_generations: Completions of each prompt. 4, as the authors.
        beta: Factor of the log-ratio in the implicit reward. 0.05, as the authors.
        gamma: Discount of later process rewards. 1: the authors' code has none.
        outcome_coef: Weight of the outcome advantages. 1, as their paper; 5 in their code, where
            only the ratio of the two matters after whitening.
        process_coef: Weight of the process advantages; see `outcome_coef`.
        scale_process_rewards: Whether the process rewards of a round are divided by their largest
            sum to the end of a completion. The authors' code does, their paper does not.
        reward_loss: `ce`, cross-entropy on the outcome; or `dpo`, preference of correct over wrong
            completions of the same prompt.
        reward_update: `before` the process rewards are computed, from the same completions, so
            that they are up to date; or `after`, which saves one forward pass. `before`, as the
            authors' code.
        reward_learning_rate: Peak of the reward model's schedule. 1e-6, as the authors.
        reward_max_grad_norm: Norm at which gradients of the reward model are clipped; 0 for no
            clipping. 10, as the authors.
        accuracy_lower_bound: Prompts with a smaller mean outcome are used last. 0.2, as the
            authors.
        accuracy_upper_bound: Prompts with a larger mean outcome are used last. 0.8, as the authors.
        oversample_factor: Prompts that are sampled per prompt of a round; prompts outside the
            bounds are dropped first. 1 uses every prompt. 4, as the authors.
    """

    learning_rate: float = 5e-7
    lr_scheduler_type: str = "constant"
    num_ppo_epochs: int = 1
    num_generations: int = 4
    beta: float = 0.05
    gamma: float = 1.0
    outcome_coef: float = 1.0
    process_coef: float = 1.0
    scale_process_rewards: bool = False
    reward_loss: Literal["ce", "dpo"] = "ce"
    reward_update: Literal["before", "after"] = "before"
    reward_learning_rate: float = 1e-6
    reward_max_grad_norm: float = 10.0
    accuracy_lower_bound: float = 0.2
    accuracy_upper_bound: float = 0.8
    oversample_factor: float = 4.0

    @property
    def rows_per_round(self) -> int:
        """Rows of the data per round: more prompts are sampled than are used."""
        return ceil(self.round_size // self.num_generations * self.oversample_factor)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.num_generations < 2:
            yield f"num_generations is {self.num_generations}, expected at least 2"
        elif self.round_size % self.num_generations:
            yield (
                f"a round has {self.round_size} completions (per_device_train_batch_size x "
                f"gradient_accumulation_steps x num_mini_batches), expected a multiple of "
                f"num_generations, {self.num_generations}"
            )
        if not self.beta > 0:
            yield f"beta is {self.beta}, expected a number above 0"
        if not 0 <= self.gamma <= 1:
            yield f"gamma is {self.gamma}, expected a number from 0 to 1"
        for name in (
            "outcome_coef",
            "process_coef",
            "reward_learning_rate",
            "reward_max_grad_norm",
        ):
            if not (value := getattr(self, name)) >= 0:
                yield f"{name} is {value}, expected a number that is not negative"
        if not self.outcome_coef and not self.process_coef:
            yield "outcome_coef and process_coef are both 0: nothing would be learnt"
        if self.reward_loss not in ("ce", "dpo"):
            yield f"reward_loss is {self.reward_loss!r}, expected 'ce' or 'dpo'"
        if self.reward_update not in ("before", "after"):
            yield f"reward_update is {self.reward_update!r}, expected 'before' or 'after'"
        if not 0 <= self.accuracy_lower_bound <= self.accuracy_upper_bound <= 1:
            yield (
                f"accuracy_lower_bound is {self.accuracy_lower_bound} and accuracy_upper_bound "
                f"{self.accuracy_upper_bound}, expected 0 <= lower <= upper <= 1"
            )
        if not self.oversample_factor >= 1:
            yield f"oversample_factor is {self.oversample_factor}, expected at least 1"


@dataclass(frozen=True)
class _Judged:
    """Completions with their outcomes, to train the reward model on."""

    samples: Samples
    ref_log_probs: Tensor
    outcomes: Tensor


class PRIMETrainer(RolloutTrainer):
    """Trains a policy by PRIME, with process rewards of a model that learns from outcomes.

    The arguments are those of `RolloutTrainer`. `reward_funcs` return outcomes from 0 to 1; the
    reward model starts as a copy of the reference.

    Attributes:
        reference: The frozen reference, with fp32 weights; the initial ratio of the two is 1.

    Raises:
        SettingsError: Arguments cannot be used; lists all problems.
    """

    args: PRIMEConfig

    @property
    def reward_model(self) -> Any:
        """The implicit process reward model, with fp32 weights."""
        return self.auxiliary.model

    def make_reference(self, model: Any) -> Any:
        """See `RolloutTrainer`."""
        return frozen_copy(model).to(device=self.args.device, dtype=torch.float32)

    def make_auxiliary(self) -> AuxiliaryModel:
        """The reward model."""
        return AuxiliaryModel(
            "reward_model",
            frozen_copy(self.reference),
            self.args,
            learning_rate=self.args.reward_learning_rate,
            max_grad_norm=self.args.reward_max_grad_norm,
        )

    def auxiliary_steps(self, num_training_steps: int) -> int:
        """The reward model is trained on the completions of each round once."""
        args = self.args
        return ceil(num_training_steps / args.steps_per_round) * args.num_mini_batches

    def make_round(self, rows: Rows) -> list[PolicyBatch]:
        """Sample, judge and filter, train the reward model, and compute advantages."""
        args = self.args
        judged = self._judge(rows)
        samples, mask = judged.samples, judged.samples.completion_mask
        if args.reward_update == "before":
            self._train_reward_model(judged)
        rewards = self._process_rewards(judged)
        self.means.add("process_reward", rewards.sum(), len(samples))
        pairs = pair_accuracy(rewards.sum(1), judged.outcomes, args.num_generations)
        if pairs[1]:
            self.means.add("pair_accuracy", *pairs)
        if args.reward_update == "after":
            self._train_reward_model(judged)
        if args.scale_process_rewards:
            rewards = scaled_to_returns(rewards)
        by_outcome = outcome_advantages(judged.outcomes, args.num_generations)
        by_process = process_advantages(rewards, mask, args.num_generations, gamma=args.gamma)
        advantages = args.outcome_coef * by_outcome.unsqueeze(1) + args.process_coef * by_process
        advantages = advantages.masked_fill(~mask, 0.0)
        if args.whiten_advantages:
            advantages = whiten(advantages, mask)
        log_probs = self.log_probs(self.model, samples, args.temperature)
        return self.batches(PolicyBatch(samples, log_probs, advantages, samples.num_tokens))

    def _judge(self, rows: Rows) -> _Judged:
        """Sample completions of each prompt, and choose the prompts of the round."""
        args = self.args
        repeated = [row for row in rows for _ in range(args.num_generations)]
        samples, outcomes = self.sample_and_reward(repeated)
        if not ((outcomes >= 0) & (outcomes <= 1)).all():
            worst = max(outcomes.tolist(), key=lambda outcome: abs(outcome - 0.5))
            raise SettingsError(
                f"a reward is {worst:g}, and PRIME learns from outcomes: expected 0 for a wrong "
                "completion, 1 for a right one, or a number between"
            )
        order, num_kept = within_bounds_first(
            outcomes,
            args.num_generations,
            lower=args.accuracy_lower_bound,
            upper=args.accuracy_upper_bound,
        )
        self.means.add("prompts_kept", num_kept, len(rows))
        chosen = order[: args.round_size]
        samples = take_rows(samples, chosen)
        return _Judged(samples, self.log_probs(self.reference, samples, 1.0), outcomes[chosen])

    def _process_rewards(self, judged: _Judged) -> Tensor:
        """`q_t = beta log(pi_rm / pi_ref)` of each token."""
        log_probs = self.log_probs(self.reward_model, judged.samples, 1.0)
        return self.args.beta * (log_probs - judged.ref_log_probs)

    def _train_reward_model(self, judged: _Judged) -> None:
        """Train on the completions of the round once, one step per mini-batch."""
        args = self.args
        opposites = None
        if args.reward_loss == "dpo":
            rewards = self._process_rewards(judged).sum(1)
            opposites = mean_of_opposites(rewards, judged.outcomes, args.num_generations)
        for mini_batch in split_rows(torch.arange(len(judged.samples)), args.mini_batch_size):
            for rows in split_rows(mini_batch, args.per_device_train_batch_size):
                batch = take_rows(judged, rows)
                with self.autocast(self.reward_model):
                    log_probs = token_log_probs(self.reward_model, batch.samples, 1.0)
                rewards = args.beta * (log_probs - batch.ref_log_probs).sum(1)
                if opposites is None:
                    losses = cross_entropy_loss(rewards, batch.outcomes)
                else:
                    losses = dpo_loss(rewards, batch.outcomes, opposites[rows])
                torch.autograd.backward(losses.sum() / len(mini_batch))
                self.means.add("reward_model_loss", losses.detach().sum(), len(rows))
            self.means.add("reward_model_grad_norm", self.auxiliary.step(), 1)
