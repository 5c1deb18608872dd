"""`PPOTrainer`: PPO with a critic (Schulman et al. 2017, arXiv 1707.06347) on the Trainer.

trainer = PPOTrainer(model, PPOConfig("out"), train_dataset, tokenizer, reward_funcs=right)
train_only(trainer, "mask.safetensors")   # or leave it out, to train everything
trainer.train()
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.training.rollouts.auxiliary_model import AuxiliaryModel
from trimtab.training.rollouts.sampling import PolicyBatch, Samples, in_chunks, whiten, whole_inputs
from trimtab.training.rollouts.trainer import RolloutConfig, RolloutTrainer, Rows, frozen_copy


def token_rewards(scores: Tensor, penalties: Tensor, mask: Tensor) -> Tensor:
    """Reward of each token: minus its penalty, plus the score of the completion at the last token.

    Args:
        scores: Score of each completion. `[rows]`
        penalties: Penalty of each token, subtracted from its reward. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.

    Source:
        Ouyang et al. 2022 (arXiv 2203.02155), eq. 2, as one reward per token.
    """
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    rewards = -penalties.masked_fill(~mask, 0.0)
    return rewards + torch.where(last, scores.unsqueeze(1), 0.0)


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, and the returns that the critic learns to predict.

    With `delta_t = r_t + gamma V_{t+1} - V_t`, the advantage is `A_t = delta_t + gamma lam A_{t+1}`
    and the return `A_t + V_t`. Beyond the last token of a completion both are 0, also where the
    length limit cut it: the task ends there.

    Args:
        rewards: Reward of each token. `[rows, tokens]`
        values: Prediction of the critic before each token. `[rows, tokens]`
        mask: Tokens of the completions, which begin at the first column.
        gamma: Discount factor.
        lam: GAE lambda: 0 trusts the critic, 1 the rewards.

    Returns:
        Advantages and returns, 0 where the mask is False. `[rows, tokens]`

    Source:
        Schulman et al. 2016 (arXiv 1506.02438), sec. 3, eq. 16; truncated as in Schulman et al.
        2017 (arXiv 1707.06347), sec. 5, eqs. 11 and 12.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    following = following_value = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = delta + gamma * lam * following
        following_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


KLEstimator = Literal["k1", "k2", "k3"]


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of each value; the larger of the clipped and the unclipped one.

    Args:
        values: Predictions of the critic, with gradient.
        old_values: Predictions of the critic when the completions were sampled. Same shape.
        returns: Targets. Same shape.
        cliprange: Range around the old value outside which the clipped value is constant.

    Returns:
        The loss, and a mask of where it is clipped.

    Source:
        The squared error is L^VF of Schulman et al. 2017 (arXiv 1707.06347), sec. 5, eq. 9. The
        clip is not in that paper, but in its code: Engstrom et al. 2020 (arXiv 2005.12729), sec. 3.
        The half is as in that code.
    """
    clipped_values = old_values + (values - old_values).clamp(-cliprange, cliprange)
    unclipped = 0.5 * (values - returns) ** 2
    clipped = 0.5 * (clipped_values - returns) ** 2
    return torch.maximum(unclipped, clipped), clipped > unclipped


def kl_estimate(log_probs: Tensor, ref_log_probs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(policy || reference) per token, from the sampled token.

    With `d = log_probs - ref_log_probs`: k1 is `d`, unbiased and of either sign; k2 is `d^2 / 2`,
    biased, never negative; k3 is `exp(-d) - 1 + d`, unbiased and never negative. As a loss, k1 has
    a gradient of expectation zero, and that of k2 is the gradient of the KL divergence.

    Args:
        log_probs: Log-probabilities under the policy that sampled the tokens.
        ref_log_probs: Log-probabilities under the reference. Same shape.
        estimator: Which estimate to compute.

    Source:
        J. Schulman, "Approximating KL Divergence", 2020 (joschu.net/blog/kl-approx.html).
    """
    difference = log_probs - ref_log_probs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference**2
    return (-difference).expm1() + difference


class Critic(nn.Module):
    """A transformer with a linear value head on its last hidden states.

    The head is initialised to zero, so every value is 0 before the first step, whatever the seed,
    and the transformer changes from the second step on.

    Args:
        policy: A causal language model of transformers; its transformer is copied.
    """

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def activation_checkpointing_enable(self) -> None:
        """Recompute activations in the backward pass to save memory."""
        self.body.activation_checkpointing_enable()

    def forward(self, samples: Samples) -> Tensor:
        """Predict the return from each completion token on, before that token is known.

        Returns:
            `[rows, completion width]`, fp32; 0 where the completion mask is False.
        """
        width = samples.completion_ids.shape[1]
        hidden = self.body(**whole_inputs(self.body, samples)).last_hidden_state
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.head(hidden[:, -width - 1 : -1].float()).squeeze(2)
        return values.masked_fill(~samples.completion_mask, 0.0)


@dataclass
class PPOConfig(RolloutConfig):
    """Settings of `PPOTrainer`, in addition to `transformers.TrainingArguments`.

    Attributes:
        learning_rate: Peak of the policy's schedule. 3e-6, as in TRL until 1.12.
        cliprange_value: Clip range of the value loss. 0.2, as in the code of the PPO paper
            and in TRL until 1.12.
        vf_coef: Factor of the critic's loss. The critic has an optimizer of its own, and AdamW
            divides by the size of gradients: it acts only where they are clipped. 0.5, as in the
            code of the PPO paper.
        gamma: Discount factor. 1: a completion is short, and its reward comes last.
        lam: Lambda of the advantage estimates. 0.95, as Schulman et al. 2017, app. A.
        kl_coef: Factor of the KL divergence from the reference; 0 for none, and no reference. 0.05,
            as in TRL until 1.12.
        kl_in: `reward`: subtracted from the reward of each token (Ouyang et al. 2022, eq. 2).
            `loss`: added to the loss.
        kl_estimator: `k1`, `k2` or `k3`. None: `k1` in the reward, as Ouyang et al.; `k3` in the
            loss, as GRPO (Shao et al. 2024, eq. 4).
        whiten_rewards: Whether token rewards are scaled to unit variance in each round.
        missing_eos_penalty: Subtracted from the score of a completion that was cut by the length
            limit; None for no penalty.
        critic_learning_rate: Peak of the critic's schedule; None for `learning_rate`.
    """

    learning_rate: float = 3e-6
    cliprange_value: float = 0.2
    vf_coef: float = 0.5
    gamma: float = 1.0
    lam: float = 0.95
    kl_coef: float = 0.05
    kl_in: Literal["reward", "loss"] = "reward"
    kl_estimator: KLEstimator | None = None
    whiten_rewards: bool = False
    missing_eos_penalty: float | None = None
    critic_learning_rate: float | None = None

    def __post_init__(self) -> None:
        if self.kl_estimator is None:
            self.kl_estimator = "k1" if self.kl_in == "reward" else "k3"
        super().__post_init__()

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not self.cliprange_value > 0:
            yield f"cliprange_value is {self.cliprange_value}, expected a number above 0"
        for name in ("gamma", "lam"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                yield f"{name} is {value}, expected a number from 0 to 1"
        for name in ("vf_coef", "kl_coef", "missing_eos_penalty", "critic_learning_rate"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                yield f"{name} is {value}, expected a number that is not negative"
        if self.kl_in not in ("reward", "loss"):
            yield f"kl_in is {self.kl_in!r}, expected 'reward' or 'loss'"
        if self.kl_estimator not in ("k1", "k2", "k3"):
            yield f"kl_estimator is {self.kl_estimator!r}, expected 'k1', 'k2' or 'k3'"
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            yield (
                "kl_estimator = 'k1' has no effect on average in the loss: take 'k2' or 'k3', or "
                "kl_in = 'reward'"
            )


@dataclass(frozen=True, kw_only=True)
class PPOBatch(PolicyBatch):
    """Completions, with everything that was computed when they were sampled.

    Attributes:
        ref_log_probs: Log-probabilities under the reference; None without one. This and the
            following are 0 where the completion mask is False. `[rows, tokens]`, fp32.
        values: Predictions of the critic.
        returns: Targets of the critic.
    """

    ref_log_probs: Tensor | None
    values: Tensor
    returns: Tensor


class PPOTrainer(RolloutTrainer):
    """Trains a policy by PPO: actor, critic, reference, and rewards.

    The arguments are those of `RolloutTrainer`.

    Attributes:
        reference: The frozen reference; None with `kl_coef = 0`.

    Raises:
        SettingsError: Arguments cannot be used; lists all problems.
    """

    args: PPOConfig

    @property
    def critic(self) -> Critic:
        """The critic, with fp32 weights."""
        critic: Critic = self.auxiliary.model
        return critic

    def make_reference(self, model: Any) -> Any:
        """See `RolloutTrainer`."""
        return frozen_copy(model).to(self.args.device) if self.args.kl_coef else None

    def make_auxiliary(self) -> AuxiliaryModel:
        """The critic."""
        args, rate = self.args, self.args.critic_learning_rate
        return AuxiliaryModel(
            "critic",
            Critic(self.model),
            args,
            learning_rate=args.learning_rate if rate is None else rate,
            max_grad_norm=args.max_grad_norm,
        )

    def make_round(self, rows: Rows) -> list[PPOBatch]:
        """Sample completions, reward them, and estimate advantages."""
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
            samples=samples,
            log_probs=log_probs,
            ref_log_probs=ref_log_probs,
            values=values,
            advantages=advantages,
            returns=returns,
            num_tokens=samples.num_tokens,
        )
        return self.batches(whole)

    def add_to_losses(self, losses: Tensor, log_probs: Tensor, batch: PPOBatch) -> Tensor:
        """Add the KL divergence from the reference, if it is part of the loss."""
        if batch.ref_log_probs is None or self.args.kl_in != "loss":
            return losses
        return losses + self.args.kl_coef * self._kl(log_probs, batch.ref_log_probs)

    def train_auxiliary(self, batch: PPOBatch, is_last: bool) -> None:
        """Train the critic on the same batch; its optimizer steps with the policy's."""
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
            self.means.add("critic_grad_norm", self.auxiliary.step(), 1)

    def _kl(self, log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
        assert self.args.kl_estimator is not None, "the configuration has chosen one"
        return kl_estimate(log_probs, ref_log_probs, self.args.kl_estimator)

    def _values(self, samples: Samples) -> Tensor:
        with self.autocast(self.critic):
            values: Tensor = self.critic(samples)
        return values
