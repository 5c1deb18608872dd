"""`PPOConfig`: the settings of PPO."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from trimtab.training.ppo.losses import KLEstimator
from trimtab.training.rollouts.config import RolloutConfig

__all__ = ["PPOConfig"]


@dataclass
class PPOConfig(RolloutConfig):
    """Settings of `PPOTrainer`, beside those of every `transformers.TrainingArguments`.

    Attributes:
        learning_rate: Peak of the policy's schedule. 3e-6, as in TRL until 1.12.
        cliprange_value: How far values are moved with effect. 0.2, as in the code of the PPO paper
            and in TRL until 1.12.
        vf_coef: Factor of the critic's loss. The critic has an optimizer of its own, and AdamW
            divides by the size of gradients: it acts only where they are clipped. 0.5, as in the
            code of the PPO paper.
        gamma: Discount of what comes later. 1: a completion is short, and its reward comes last.
        lam: Lambda of the advantage estimates. 0.95, as Schulman et al. 2017, app. A.
        kl_coef: Factor of the KL divergence from the reference; 0 for none, and no reference. 0.05,
            as in TRL until 1.12.
        kl_in: `reward`: subtracted from the reward of each token (Ouyang et al. 2022, eq. 2).
            `loss`: added to the loss.
        kl_estimator: `k1`, `k2` or `k3`. None: `k1` in the reward, as Ouyang et al.; `k3` in the
            loss, as GRPO (Shao et al. 2024, eq. 4).
        whiten_rewards: Whether rewards of tokens are scaled to variance 1 in each round.
        missing_eos_penalty: Subtracted from the score of a completion that was cut by the length
            limit; None for nothing.
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
