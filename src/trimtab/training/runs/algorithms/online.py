"""`OnlineAlgorithm`: what GRPO and RLOO share, whose trainers sample while they train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from math import lcm
from typing import Any

from trimtab.training.evaluation.ends import end_token
from trimtab.training.runs.algorithms.algorithm import Algorithm
from trimtab.training.runs.datasets import Rows
from trimtab.training.runs.rewards import Reward

__all__ = ["OnlineAlgorithm"]


class OnlineAlgorithm(Algorithm):
    """Groups of samples to one prompt, compared by their rewards."""

    def problems(self, args: Any) -> Iterator[str]:
        """Samples come from vLLM only where it is installed."""
        if args.use_vllm and find_spec("vllm") is None:
            yield "trainer.use_vllm: vllm is not installed: install it, or leave the key out"

    def steps_per_round(self, args: Any) -> int:
        """Samples may serve several steps; a run that goes on draws new ones first."""
        every = args.steps_per_generation * args.num_iterations
        accumulation: int = args.gradient_accumulation_steps
        return lcm(every, accumulation) // accumulation

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        """The reward; and the end of a line ends a completion where it does so in the data."""
        if rows.ends_with_line:
            model.generation_config.eos_token_id = [end_token(tokenizer)]
        assert reward is not None, "the run file was checked for it"
        return {"reward_funcs": reward.function}
