"""GRPO by TRL's `GRPOTrainer`: groups of samples to one prompt, compared by their rewards."""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import Any

from trimtab.training.evaluation import end_token
from trimtab.training.runs.algorithms.algorithm import Algorithm
from trimtab.training.runs.datasets import Rows
from trimtab.training.runs.rewards import Reward

__all__ = ["GRPO"]


class _GRPO(Algorithm):
    def steps_per_round(self, args: Any) -> int:
        """Samples may serve several steps; a run that goes on draws new ones first."""
        every = args.steps_per_generation * args.num_iterations
        accumulation: int = args.gradient_accumulation_steps
        return lcm(every, accumulation) // accumulation

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        if rows.ends_with_line:
            model.generation_config.eos_token_id = [end_token(tokenizer)]
        assert reward is not None, "a run file of GRPO has a reward"
        return {"reward_funcs": reward.function}


GRPO = _GRPO(
    name="grpo",
    trainer="trl:GRPOTrainer",
    config="trl:GRPOConfig",
    columns=("prompt",),
    takes_reward=True,
)
