"""Rewards of completions: the sum of reward functions and reward models.

Reward functions have TRL's signature: called with the lists `prompts`, `completions` and
`completion_ids` and every other column of the data, they return one finite number per completion.
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
    """Wrap a reward function, so that it returns one finite number per completion, or raises.

    Args:
        function: Reward function with TRL's signature; called with keyword arguments only.
        name: Name in messages and, by TRL, in logs.

    Raises:
        SettingsError: (by the function) It fails, or returns anything else.
    """

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        try:
            values = list(function(completions=completions, **columns))
        except TrimtabError:
            raise
        except Exception as error:
            raise SettingsError(f"the reward function {name} fails: {error!r}") from error
        if len(values) != len(completions):
            raise SettingsError(
                f"the reward function {name} returned {len(values)} rewards for "
                f"{len(completions)} completions"
            )
        try:
            rewards = [float(value) for value in values]
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the reward function {name}: {error}") from None
        if bad := [value for value in rewards if not isfinite(value)]:
            raise SettingsError(f"the reward function {name} returned {bad[0]}, expected a number")
        return rewards

    reward.__name__ = name
    return reward


RewardSource: TypeAlias = "Callable[..., Any] | str | PathLike[str] | torch.nn.Module"
"""A function, a sequence classification model, or the folder or hub id of one."""

PASSED = {"prompt", "completion", "prompts", "completions", "completion_ids"}
"""Columns that are not passed to reward functions as they are, as in TRL."""


class RewardModel:
    """A sequence classification model with one output, as a reward function.

    Args:
        model: Folder or hub id of a checkpoint with its tokenizer; or a model, which uses the
            tokenizer of the policy.
        tokenizer: Tokenizer of the policy.
        device: Device of the model.

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
        """Score a single text, so that the score does not depend on padding."""
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
    """List what is wrong with `reward_funcs`."""
    if not sources:
        return ["reward_funcs is empty: expected a function, a reward model, or a list of them"]
    return [
        f"reward_funcs has a {type(source).__name__}: expected a function, a reward model or its "
        "path"
        for source in sources
        if not callable(source) and not isinstance(source, str | PathLike)
    ]


class Rewards:
    """The sum of reward functions and models, with checks of their results.

    Args:
        sources: At least one reward function or model.
        tokenizer: Tokenizer of the policy.
        device: Device of the reward models.

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
            rows: The row of the data of each completion.
            completions: Texts, or messages where the prompts are messages.
            ids: Token ids of each completion.

        Returns:
            `[completions]`, fp32.

        Raises:
            SettingsError: A function fails, or returns anything but one finite number each.
        """
        import torch

        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in PASSED}
        columns |= {"prompts": [row["prompt"] for row in rows], "completion_ids": ids}
        rewards = [function(completions=completions, **columns) for function in self._functions]
        return torch.tensor(rewards).sum(0)
