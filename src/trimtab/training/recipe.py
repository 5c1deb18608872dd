"""What the arms of the demo have in common, so that only the algorithm differs.

GRPO and SFT see the same questions with the same prompt, take the same number of AdamW steps at
the same constant learning rate, and train on the same number of sequences a step. A completion
is an answer and the end of its line in both, so the trained tokens are nearly the same too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError
from trimtab.training.addition import SHOTS, Split, split_questions

__all__ = ["Recipe", "trainer_arguments"]


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; two runs with the same recipe and base are the same run.

    Attributes:
        steps: Optimizer steps.
        seed: Of the order of the questions and the sampling, and of the split if `split_seed` is
            None.
        sequences_per_step: Sequences in the batch of a step.
        num_generations: Completions sampled for one question (GRPO only).
        max_completion_tokens: Length limit of a sampled completion: two digits and a line end.
        learning_rate: Constant, without warm-up.
        beta1: Of AdamW.
        beta2: Of AdamW.
        epsilon: Of AdamW.
        weight_decay: Of AdamW.
        max_grad_norm: The global norm at which gradients are clipped.
        split_seed: Of the split, for a run that is set beside another one of another seed: what
            one is asked must not be what the other was trained on.
    """

    steps: int = 20
    seed: int = 0
    sequences_per_step: int = 32
    num_generations: int = 8
    max_completion_tokens: int = 3
    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    split_seed: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise SettingsError(f"steps is {self.steps}, expected at least 1")
        if not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed is {self.seed}, expected 0 to 2**32 - 1")

    def split(self) -> Split:
        """The questions to train on, and those held out."""
        return split_questions(self.seed if self.split_seed is None else self.split_seed)

    def settings(self, algorithm: str, own: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides the result of a run, as it is recorded and compared.

        Args:
            algorithm: `grpo` or `sft`.
            own: Settings that only this algorithm has.
        """
        shared = asdict(self)
        if algorithm != "grpo":
            del shared["num_generations"], shared["max_completion_tokens"]
        return {
            "algorithm": algorithm,
            "optimizer": "AdamW",
            "schedule": "constant",
            **shared,
            **own,
            "task": "one-digit addition",
            "shots": [f"{shot}={shot.answer}" for shot in SHOTS],
        }


def trainer_arguments(recipe: Recipe, work: Path) -> dict[str, Any]:
    """The arguments that `GRPOConfig` and `SFTConfig` share.

    Args:
        recipe: The settings.
        work: Where the Trainer keeps its checkpoints.
    """
    return {
        "output_dir": str(work),
        "max_steps": recipe.steps,
        "seed": recipe.seed,
        "per_device_train_batch_size": recipe.sequences_per_step,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": recipe.beta1,
        "adam_beta2": recipe.beta2,
        "adam_epsilon": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "use_cpu": True,
        "bf16": True,  # autocast; the weights themselves are loaded as fp32
        "gradient_checkpointing": False,  # TRL's default is True, at a third of the speed
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        # `arm.py` decides when to save; the Trainer would also save after the last step.
        "save_strategy": "no",
        "save_total_limit": 1,
    }
