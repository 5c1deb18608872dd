"""RFT: SFT on those of the model's own samples that the reward accepts.

It is the control for what SFT does when its data comes from the model: same loss, other data. So it
learns the very tokens that were drawn. TRL would tokenize their text anew, and put an end token
after a sample that a text had ended, which the model did not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.training.runs.algorithms.algorithm import Algorithm
from trimtab.training.runs.prompts import prompt_ids

__all__ = ["RFT"]


class _RFT(Algorithm):
    def dataset(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, seed: int) -> Any:
        """Tokens of prompt and sample; only the sample is learned."""
        from datasets import Dataset

        return Dataset.from_list(
            [_labelled(prompt_ids(tokenizer, row["prompt"]), row["completion_ids"]) for row in rows]
        )


def _labelled(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion}


RFT = _RFT(
    name="rft",
    trainer="trl:SFTTrainer",
    config="trl:SFTConfig",
    columns=("prompt", "completion"),
    made_of_samples="completions",
    needs_samples=True,
)
