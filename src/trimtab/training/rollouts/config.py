"""`RolloutConfig`: the settings that PPO and PRIME share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transformers import TrainingArguments

from trimtab.errors import SettingsError

__all__ = ["RolloutConfig"]


@dataclass
class RolloutConfig(TrainingArguments):  # type: ignore[misc]
    """How completions are sampled, and how many optimizer steps they serve.

    One optimizer step takes `per_device_train_batch_size x gradient_accumulation_steps`
    completions, a mini-batch. A round samples `num_mini_batches` of them, and goes through them
    `num_ppo_epochs` times, shuffled anew each time.

    Attributes:
        num_ppo_epochs: Passes over the completions of a round. 4, as in `baselines` and in TRL
            until 1.12.
        num_mini_batches: Mini-batches that a round is divided into. 1, as in TRL until 1.12.
        cliprange: The clip range epsilon of the policy loss. 0.2, the best of Schulman et al. 2017
            (arXiv 1707.06347), sec. 6.1, table 1.
        max_completion_length: Tokens of a completion, at most. 512, as in TRL's GRPO (1.16).
        temperature: Logits are divided by it, when completions are sampled and in all
            log-probabilities. 1: the policy itself.
        top_p: Share of the probability that completions are sampled from. 1: all of it.
        whiten_advantages: Whether advantages are scaled to mean 0 and variance 1 in each round.
        disable_dropout: Whether dropout is switched off. With dropout, the ratio of the new policy
            to the old one is not 1 in the first step of a round.
        remove_unused_columns: Not used: reward functions are given every column.
    """

    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    cliprange: float = 0.2
    max_completion_length: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    whiten_advantages: bool = True
    disable_dropout: bool = True
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = list(self._problems())
        if problems:
            raise SettingsError("; ".join(problems))

    @property
    def mini_batch_size(self) -> int:
        """Completions that one optimizer step takes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def round_size(self) -> int:
        """Completions that a round trains on."""
        return self.mini_batch_size * self.num_mini_batches

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps of a round."""
        return self.num_ppo_epochs * self.num_mini_batches

    def _problems(self) -> Iterator[str]:
        for name in ("num_ppo_epochs", "num_mini_batches", "max_completion_length"):
            if (count := getattr(self, name)) < 1:
                yield f"{name} is {count}, expected at least 1"
        for name in ("cliprange", "temperature"):
            if not (value := getattr(self, name)) > 0:
                yield f"{name} is {value}, expected a number above 0"
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p}, expected a number above 0 and at most 1"
        if self.fp16:
            yield "fp16 scales its gradients by a moving factor: use bf16"
