"""The tables of a run file, one dataclass each: its fields are the keys, with their defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "ADDITION",
    "REASONING_GYM",
    "AutoTable",
    "DataTable",
    "OptimizerTable",
    "RewardTable",
    "SamplesTable",
]

ADDITION = "addition"

REASONING_GYM = "reasoning_gym:"
"""Before the name of a task of that package."""


@dataclass(frozen=True)
class DataTable:
    """`[data]`: exactly one of `file` and `task`.

    Attributes:
        file: JSON Lines.
        task: `addition`, or `reasoning_gym:` and the name of a task of that package.
        size: Questions of a reasoning-gym task.
        chat: Whether its questions are messages of a user, and not texts.
        config: Passed to the configuration of a reasoning-gym task.
    """

    file: str | None = None
    task: str | None = None
    size: int = 500
    chat: bool = False
    config: dict[str, Any] | None = None

    @property
    def is_gym(self) -> bool:
        """Whether it is a task of reasoning-gym."""
        return self.task is not None and self.task.startswith(REASONING_GYM)


@dataclass(frozen=True)
class RewardTable:
    """`[reward]`: exactly one of `function`, `kind` and `model`.

    Attributes:
        function: `file.py:name`, called as TRL calls a reward function.
        kind: A built-in comparison of the completion with a column of the data.
        column: The column that holds the right answer; for `kind`.
        pattern: Regular expression whose first group is the answer; for `kind = "regex"`.
        model: Folder of a sequence classifier with one output, which is the reward.
    """

    function: str | None = None
    kind: Literal["exact", "regex", "math"] | None = None
    column: str = "answer"
    pattern: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class SamplesTable:
    """`[samples]`: train on what the model itself says, judged by the reward.

    Attributes:
        num: Samples for each prompt.
        temperature: Of the sampling.
        max_completion_length: Tokens of a sample, at most.
        stop: A text that ends a sample, beside the end token.
        rule: Which samples are good: `threshold`, those with enough reward; `best`, the one of
            each prompt with the most, compared with the one with the least.
        threshold: The reward of a good sample, at least; for `rule = "threshold"`.
        most: Of the good samples of a prompt (or pairs with one), how many at most; None for all.
        batch_size: Samples that are drawn at a time.
    """

    num: int = 8
    temperature: float = 1.0
    max_completion_length: int = 256
    stop: str | None = None
    rule: Literal["threshold", "best"] = "threshold"
    threshold: float = 1.0
    most: int | None = None
    batch_size: int = 32


@dataclass(frozen=True)
class OptimizerTable:
    """`[optimizer]`.

    Attributes:
        name: The algorithm.
        master: How masked elements keep fp32 precision; by default as `SparseAdamW` chooses.
        state_dtype: Of the moments.
        clip_by: Norm that gradients are clipped by.
        nonfinite: What a gradient that is not finite does.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    master: Literal["lo16", "fp32", "none"] | None = None
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    clip_by: Literal["masked", "full"] = "masked"
    nonfinite: Literal["raise", "skip"] = "raise"


@dataclass(frozen=True)
class AutoTable:
    """`[auto]`, for `mask = "auto"`.

    Attributes:
        probe: What finds the mask: `adamw` trains everything for a while and takes what moved;
            `gradients` trains nothing and takes what has the largest gradients.
        steps: Steps of the probe, at most.
        every: Steps between two looks at what moved.
        settle: The probe ends when a smaller share of what moved is new since the look before.
        density: Share of all elements to take; for `gradients` only.
    """

    probe: Literal["adamw", "gradients"] = "adamw"
    steps: int = 50
    every: int = 10
    settle: float = 0.05
    density: float | None = None
