"""What completions are worth: the sum of reward functions and reward models.

A reward function is one of TRL's: called with the lists `prompts`, `completions` and
`completion_ids` and every other column of the data, it returns one finite number each.

Importing this module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeAlias

from trimtab.errors import SettingsError, TrimtabError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def checked_reward(function: Callable[..., Any], name: str) -> Callable[..., list[float]]:
    """A reward function that returns one finite number for each completion, or raises.

    Args:
        function: Called as TRL calls a reward function, with keyword arguments only.
        name: Used in messages and, by TRL, in logs.

    Raises:
        SettingsError: (by the function) It fails, or returns anything else.
    """

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        try:
            given = list(function(completions=completions, **columns))
        except TrimtabError:
            raise
        except Exception as error:
            raise SettingsError(f"the reward function {name} fails: {error!r}") from error
        if len(given) != len(completions):
            raise SettingsError(
                f"the reward function {name} returned {len(given)} rewards for "
                f"{len(completions)} completions"
            )
        try:
            rewards = [float(value) for value in given]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the reward function {name}: {error}") from None
        if bad := [value for value in rewards if not isfinite(value)]:
            raise SettingsError(f"the reward function {name} returned {bad[0]}, expected a number")
        return rewards

    reward.__name__ = name
    return reward


RewardSource: TypeAlias = "Callable[..., Any] | str | PathLike[str] | torch.nn.Module"
"""A function, the folder or hub id of a sequence classification checkpoint, or such a model."""

PASSED = {"prompt", "completion", "prompts", "completions", "completion_ids"}
"""Columns that a reward function is not given as such, as with TRL."""


class RewardModel:
    """A sequence classification model with one output, called as a reward function is.

    Args:
        model: Folder or hub id of a checkpoint with its tokenizer; or a model, which reads the
            texts with the tokenizer of the policy.
        tokenizer: Of the policy.
        device: Where a checkpoint is loaded to.

    Raises:
        SettingsError: The checkpoint cannot be loaded, or has another number of outputs.
    """

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        import torch

        self.tokenizer = tokenizer
        if isinstance(model, torch.nn.Module):
            self.__name__ = type(model).__name__
            self.model: Any = model.to(device)
        else:
            self.__name__ = fspath(model)
            self.model, self.tokenizer = _load_reward_model(self.__name__)
            self.model.to(device)
        self.model.eval().requires_grad_(False)
        num_outputs = getattr(self.model.config, "num_labels", None)
        if num_outputs != 1:
            raise SettingsError(
                f"the reward model {self.__name__} has {num_outputs} outputs, expected 1: load it "
                "as sequence classification with num_labels=1"
            )

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
        """Score each prompt with its completion."""
        import torch

        with torch.no_grad():
            return [
                self._score(prompt, completion)
                for prompt, completion in zip(prompts, completions, strict=True)
            ]

    def _score(self, prompt: Any, completion: Any) -> float:
        """One text at a time: the score depends on no padding."""
        import torch

        if isinstance(prompt, str):
            text = prompt + completion
        else:
            text = self.tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]  # as TRL does
        return float(self.model(torch.tensor([ids], device=self.model.device)).logits[0, 0])


def _load_reward_model(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        model = AutoModelForSequenceClassification.from_pretrained(path)
        return model, AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SettingsError(f"the reward model {path} cannot be loaded: {reason}") from None


def reward_problems(sources: Sequence[Any]) -> list[str]:
    """Say what is wrong with `reward_funcs`."""
    if not sources:
        return ["reward_funcs is empty: expected a function, a reward model, or a list of them"]
    return [
        f"reward_funcs has a {type(source).__name__}: expected a function, a reward model or its "
        "path"
        for source in sources
        if not callable(source) and not isinstance(source, str | PathLike)
    ]


class Rewards:
    """Reward functions and models, whose results are checked and added up.

    Args:
        sources: At least one.
        tokenizer: Of the policy.
        device: Where reward models compute.

    Raises:
        SettingsError: A reward model cannot be loaded.
    """

    def __init__(
        self, sources: Sequence[RewardSource], tokenizer: Any, device: torch.device
    ) -> None:
        import torch

        functions = [
            RewardModel(source, tokenizer, device)
            if isinstance(source, str | PathLike | torch.nn.Module)
            else source
            for source in sources
        ]
        self._functions = [
            checked_reward(function, getattr(function, "__name__", type(function).__name__))
            for function in functions
        ]

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], completions: Sequence[Any], ids: list[list[int]]
    ) -> Tensor:
        """The sum of all rewards of each completion.

        Args:
            rows: The row of the data behind each completion.
            completions: As texts, or as messages where the prompts are messages.
            ids: Token ids of each completion.

        Returns:
            `[completions]`, fp32.

        Raises:
            SettingsError: A function fails, or returns anything but one finite number each.
        """
        import torch

        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in PASSED}
        columns |= {"prompts": [row["prompt"] for row in rows], "completion_ids": ids}
        given = [function(completions=completions, **columns) for function in self._functions]
        return torch.tensor(given).sum(0)
