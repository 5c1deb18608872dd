"""`PPOTrainer`: PPO on the Trainer of transformers.

trainer = PPOTrainer(model, PPOConfig("out"), train_dataset, tokenizer, reward_funcs=right)
train_only(trainer, "mask.safetensors")   # or leave it out, to train everything
trainer.train()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.training.ppo.advantages import advantages_and_returns, token_rewards
from trimtab.training.ppo.config import PPOConfig
from trimtab.training.ppo.critic import Critic
from trimtab.training.ppo.losses import kl_estimate, policy_loss, value_loss
from trimtab.training.rollouts.companion import Companion
from trimtab.training.rollouts.log_probs import in_chunks, token_log_probs
from trimtab.training.rollouts.rewards import RewardSource
from trimtab.training.rollouts.samples import Samples
from trimtab.training.rollouts.trainer import RolloutTrainer, Rows, frozen_copy
from trimtab.training.rollouts.whitening import whiten

__all__ = ["PPOBatch", "PPOTrainer"]


@dataclass(frozen=True)
class PPOBatch:
    """Completions, and all that was known of them when they were sampled.

    Attributes:
        samples: The completions.
        log_probs: Under the policy that sampled them. This and the following are 0 where the
            completion mask is False. `[rows, tokens]`, fp32.
        ref_log_probs: Under the reference; None without one.
        values: Of the critic.
        advantages: Of each token.
        returns: What the critic is to predict.
        num_tokens: Completion tokens of the mini-batch that these rows are a part of; losses are
            averaged over them.
    """

    samples: Samples
    log_probs: Tensor
    ref_log_probs: Tensor | None
    values: Tensor
    advantages: Tensor
    returns: Tensor
    num_tokens: int


class PPOTrainer(RolloutTrainer):
    """Trains a policy by PPO: actor, critic, reference, and rewards.

    Args:
        model: The policy; `trainer.model`. Trained in place.
        args: The settings.
        train_dataset: Rows with a `prompt`, as text or messages, and what the rewards look at.
        processing_class: The tokenizer.
        reward_funcs: A reward function as TRL's, a reward model or its path, or a list of them;
            their rewards are added.
        callbacks: Trainer callbacks.
        optimizers: As the Trainer's.
        ref_model: The reference; by default a copy of `model` as it is now. Pass it in a script
            that goes on from weights that were trained already.

    Attributes:
        critic: The critic, an `nn.Module` with fp32 weights.
        reference: The frozen reference; None with `kl_coef = 0`.

    Raises:
        SettingsError: Something of it cannot be used; all is named at once.
    """

    args: PPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: PPOConfig,
        train_dataset: Any,
        processing_class: Any,
        reward_funcs: RewardSource | Sequence[RewardSource],
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        ref_model: PreTrainedModel | None = None,
    ) -> None:
        self.rows_per_round = args.round_size
        super().__init__(
            model, args, train_dataset, processing_class, reward_funcs, callbacks, optimizers
        )
        self.reference = None
        if args.kl_coef:
            self.reference = frozen_copy(self.model if ref_model is None else ref_model)
            self.reference.to(args.device)
        self._companion = Companion(
            "critic",
            Critic(self.model),
            args,
            learning_rate=(
                args.learning_rate
                if args.critic_learning_rate is None
                else args.critic_learning_rate
            ),
            max_grad_norm=args.max_grad_norm,
        )
        self.critic = self._companion.model
        self.companions.append(self._companion)

    def make_round(self, rows: Rows) -> list[PPOBatch]:
        """Sample, reward, and estimate advantages."""
        args = self.args
        samples, scores = self.sample_and_reward(rows)
        mask = samples.completion_mask
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * ~samples.has_ended
        log_probs = self.log_probs(self.model, samples, args.temperature)
        ref_log_probs, penalties = None, torch.zeros_like(log_probs)
        if self.reference is not None:
            ref_log_probs = self.log_probs(self.reference, samples, args.temperature)
            kl = self._kl(log_probs, ref_log_probs)
            self.means.add("kl", kl.sum(), samples.num_tokens)
            if args.kl_in == "reward":
                penalties = args.kl_coef * kl
        rewards = token_rewards(scores, penalties, mask)
        if args.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        values = in_chunks(self._values, self.critic, samples, args.per_device_train_batch_size)
        advantages, returns = advantages_and_returns(
            rewards, values, mask, gamma=args.gamma, lam=args.lam
        )
        if args.whiten_advantages:
            advantages = whiten(advantages, mask)
        whole = PPOBatch(
            samples, log_probs, ref_log_probs, values, advantages, returns, samples.num_tokens
        )
        return self.batches(whole)

    def compute_loss(
        self, model: Any, inputs: PPOBatch, return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The policy's loss on a batch, averaged over the tokens of its mini-batch."""
        args, batch = self.args, inputs
        log_probs = token_log_probs(model, batch.samples, args.temperature)
        losses, is_clipped = policy_loss(
            log_probs, batch.log_probs, batch.advantages, args.cliprange
        )
        if batch.ref_log_probs is not None and args.kl_in == "loss":
            kl = self._kl(log_probs, batch.ref_log_probs)
            losses = losses + args.kl_coef * kl
        mask = batch.samples.completion_mask
        self.means.add("clip_fraction", is_clipped[mask].sum(), batch.samples.num_tokens)
        return self.scaled(losses[mask].sum() / batch.num_tokens)

    def train_companions(self, batch: PPOBatch, is_last: bool) -> None:
        """Train the critic on the same batch, and step when the policy does."""
        values = self._values(batch.samples)
        losses, is_clipped = value_loss(
            values, batch.values, batch.returns, self.args.cliprange_value
        )
        mask = batch.samples.completion_mask
        loss = losses[mask].sum()
        torch.autograd.backward(self.args.vf_coef * loss / batch.num_tokens)
        num_tokens = batch.samples.num_tokens
        self.means.add("value_loss", loss.detach(), num_tokens)
        self.means.add("value_clip_fraction", is_clipped[mask].sum(), num_tokens)
        if is_last:
            self.means.add("critic_grad_norm", self._companion.step(), 1)

    def _kl(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        assert self.args.kl_estimator is not None, "the configuration has chosen one"
        return kl_estimate(log_probs, ref_log_probs, self.args.kl_estimator)

    def _values(self, samples: Samples) -> Tensor:
        with self.autocast(self.critic):
            values: Tensor = self.critic(samples)
        return values
