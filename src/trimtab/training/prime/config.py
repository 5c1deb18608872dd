"""`PRIMEConfig`: the settings of PRIME."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from trimtab.training.rollouts.config import RolloutConfig

__all__ = ["PRIMEConfig"]


@dataclass
class PRIMEConfig(RolloutConfig):
    """Settings of `PRIMETrainer`, beside those of every `transformers.TrainingArguments`.

    "The authors" are those of arXiv 2502.01456, and their settings those of their recipe in verl
    (`recipe/prime`, `run_prime_qwen.sh` and `config/prime_trainer.yaml`).

    Attributes:
        learning_rate: Peak of the policy's schedule. 5e-7, as the authors.
        lr_scheduler_type: Of policy and reward model. `constant`, as the authors.
        num_ppo_epochs: Passes over the completions of a round. 1, as the authors.
        num_generations: Completions of each prompt. 4, as the authors.
        beta: Factor of the log-ratio in the implicit reward. 0.05, as the authors.
        gamma: Discount of later process rewards. 1: the authors' code has none.
        outcome_coef: Weight of the advantage by outcome. 1, as their paper; 5 in their code, where
            whitening leaves nothing but the ratio of the two.
        process_coef: Weight of the advantage by process rewards. As `outcome_coef`.
        scale_process_rewards: Whether the process rewards of a round are divided by their largest
            sum to the end of a completion. The authors' code does, their paper does not.
        reward_loss: `ce`, cross-entropy on the outcome, or `dpo`, preference of right completions
            to wrong ones of the same prompt.
        reward_update: `before` the process rewards are computed, from the same completions, so
            that they are up to date; or `after`, which saves one forward pass. `before`, as the
            authors' code.
        reward_learning_rate: Peak of the reward model's schedule. 1e-6, as the authors.
        reward_max_grad_norm: Norm that gradients of the reward model are clipped by; 0 for no
            clipping. 10, as the authors.
        accuracy_lower_bound: Prompts with a smaller mean outcome are put last. 0.2, as the
            authors.
        accuracy_upper_bound: Prompts with a larger mean outcome are put last. 0.8, as the authors.
        oversample_factor: So many times the prompts of a round are sampled, for prompts to be
            put last to be left out. 1 uses every prompt. 4, as the authors.
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
    def num_prompts_sampled(self) -> int:
        """Prompts that a round samples, before some are left out."""
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
