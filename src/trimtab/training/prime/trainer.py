"""`PRIMETrainer`: PRIME on the Trainer of transformers.

trainer = PRIMETrainer(model, PRIMEConfig("out"), train_dataset, tokenizer, reward_funcs=right)
train_only(trainer, "mask.safetensors")   # or leave it out, to train everything
trainer.train()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.errors import SettingsError
from trimtab.training.ppo.losses import policy_loss
from trimtab.training.prime.advantages import (
    outcome_advantages,
    process_advantages,
    scaled_to_returns,
)
from trimtab.training.prime.config import PRIMEConfig
from trimtab.training.prime.filtering import kept_first
from trimtab.training.prime.reward_losses import (
    cross_entropy,
    dpo,
    mean_of_opposites,
    pair_accuracy,
)
from trimtab.training.rollouts.companion import Companion
from trimtab.training.rollouts.log_probs import token_log_probs
from trimtab.training.rollouts.rewards import RewardSource
from trimtab.training.rollouts.samples import Samples, split, take
from trimtab.training.rollouts.trainer import RolloutTrainer, Rows, frozen_copy
from trimtab.training.rollouts.whitening import whiten

__all__ = ["PRIMEBatch", "PRIMETrainer"]


@dataclass(frozen=True)
class PRIMEBatch:
    """Completions, and all that was known of them when they were sampled.

    Attributes:
        samples: The completions.
        log_probs: Under the policy that sampled them, 0 where the completion mask is False.
            `[rows, tokens]`, fp32.
        advantages: Of each token, likewise.
        num_tokens: Completion tokens of the mini-batch that these rows are a part of; the loss is
            averaged over them.
    """

    samples: Samples
    log_probs: Tensor
    advantages: Tensor
    num_tokens: int


@dataclass(frozen=True)
class _Judged:
    """Completions with their outcomes, for the reward model to learn from."""

    samples: Samples
    ref_log_probs: Tensor
    outcomes: Tensor


class PRIMETrainer(RolloutTrainer):
    """Trains a policy by PRIME: outcomes, and process rewards of a model that learns from them.

    Args:
        model: The policy; `trainer.model`. Trained in place.
        args: The settings.
        train_dataset: Rows with a `prompt`, as text or messages, and what the rewards look at.
        processing_class: The tokenizer.
        reward_funcs: Says how right a completion is, from 0 to 1: a reward function as TRL's, a
            reward model or its path, or a list of them; their rewards are added.
        callbacks: Trainer callbacks.
        optimizers: As the Trainer's.
        ref_model: The reference, of which the reward model begins as a copy; by default a copy of
            `model` as it is now. Pass it in a script that goes on from weights that were trained
            already.

    Attributes:
        reward_model: The implicit process reward model, with fp32 weights.
        reference: The frozen reference, with fp32 weights: the ratio of the two is 1 at first.

    Raises:
        SettingsError: Something of it cannot be used; all is named at once.
    """

    args: PRIMEConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: PRIMEConfig,
        train_dataset: Any,
        processing_class: Any,
        reward_funcs: RewardSource | Sequence[RewardSource],
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        ref_model: PreTrainedModel | None = None,
    ) -> None:
        self.rows_per_round = args.num_prompts_sampled
        super().__init__(
            model, args, train_dataset, processing_class, reward_funcs, callbacks, optimizers
        )
        self.reference = frozen_copy(self.model if ref_model is None else ref_model)
        self.reference.to(device=args.device, dtype=torch.float32)
        self._companion = Companion(
            "reward_model",
            frozen_copy(self.reference),
            args,
            learning_rate=args.reward_learning_rate,
            max_grad_norm=args.reward_max_grad_norm,
        )
        self.reward_model = self._companion.model
        self.companions.append(self._companion)

    def companion_steps(self, num_training_steps: int) -> int:
        """The reward model goes through the completions of each round once."""
        args = self.args
        return ceil(num_training_steps / args.steps_per_round) * args.num_mini_batches

    def make_round(self, rows: Rows) -> list[PRIMEBatch]:
        """Sample, judge, leave prompts out, train the reward model, and compare."""
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
        return self.batches(PRIMEBatch(samples, log_probs, advantages, samples.num_tokens))

    def compute_loss(
        self, model: Any, inputs: PRIMEBatch, return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The policy's loss on a batch, averaged over the tokens of its mini-batch."""
        args, batch = self.args, inputs
        log_probs = token_log_probs(model, batch.samples, args.temperature)
        losses, is_clipped = policy_loss(
            log_probs, batch.log_probs, batch.advantages, args.cliprange
        )
        mask = batch.samples.completion_mask
        self.means.add("clip_fraction", is_clipped[mask].sum(), batch.samples.num_tokens)
        return self.scaled(losses[mask].sum() / batch.num_tokens)

    def _judge(self, rows: Rows) -> _Judged:
        """Sample some completions of each prompt, and choose the prompts of the round."""
        args = self.args
        repeated = [row for row in rows for _ in range(args.num_generations)]
        samples, outcomes = self.sample_and_reward(repeated)
        if not ((outcomes >= 0) & (outcomes <= 1)).all():
            worst = max(outcomes.tolist(), key=lambda outcome: abs(outcome - 0.5))
            raise SettingsError(
                f"a reward is {worst:g}, and PRIME learns from outcomes: expected 0 for a wrong "
                "completion, 1 for a right one, or a number between"
            )
        order, num_kept = kept_first(
            outcomes,
            args.num_generations,
            lower=args.accuracy_lower_bound,
            upper=args.accuracy_upper_bound,
        )
        self.means.add("prompts_kept", num_kept, len(rows))
        chosen = order[: args.round_size]
        samples = take(samples, chosen)
        return _Judged(samples, self.log_probs(self.reference, samples, 1.0), outcomes[chosen])

    def _process_rewards(self, judged: _Judged) -> Tensor:
        """`q_t = beta log(pi_rm / pi_ref)` of each token."""
        log_probs = self.log_probs(self.reward_model, judged.samples, 1.0)
        return self.args.beta * (log_probs - judged.ref_log_probs)

    def _train_reward_model(self, judged: _Judged) -> None:
        """Go through the completions of the round once, a mini-batch for each step."""
        args = self.args
        opposites = None
        if args.reward_loss == "dpo":
            rewards = self._process_rewards(judged).sum(1)
            opposites = mean_of_opposites(rewards, judged.outcomes, args.num_generations)
        for mini_batch in split(torch.arange(len(judged.samples)), args.mini_batch_size):
            for rows in split(mini_batch, args.per_device_train_batch_size):
                batch = take(judged, rows)
                with self.autocast(self.reward_model):
                    log_probs = token_log_probs(self.reward_model, batch.samples, 1.0)
                rewards = args.beta * (log_probs - batch.ref_log_probs).sum(1)
                if opposites is None:
                    losses = cross_entropy(rewards, batch.outcomes)
                else:
                    losses = dpo(rewards, batch.outcomes, opposites[rows])
                torch.autograd.backward(losses.sum() / len(mini_batch))
                self.means.add("reward_model_loss", losses.detach().sum(), len(rows))
            self.means.add("reward_model_grad_norm", self._companion.step(), 1)
