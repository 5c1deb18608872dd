"""What a sampled completion is worth: a function of the user's, a comparison, or the task's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from math import isfinite
from pathlib import Path
from typing import Any

import xxhash

from trimtab.errors import SettingsError
from trimtab.training import addition

__all__ = ["Reward", "comparison", "load_function", "task_reward"]

Function = Callable[..., Any]
"""Called with lists `prompts` and `completions`, and every column of the data as a list."""


@dataclass(frozen=True)
class Reward:
    """A reward function whose results are checked.

    Attributes:
        function: Called as TRL calls a reward function; returns one finite number each.
        columns: Columns of the data that it needs.
        record: What is recorded of it.
    """

    function: Callable[..., list[float]]
    columns: tuple[str, ...]
    record: dict[str, Any]


def task_reward() -> Reward:
    """The reward of the addition task: 1 for a right completion, 0 for any other."""
    return Reward(_checked(addition.reward, "addition"), ("answer",), {"task": "addition"})


def comparison(kind: str, column: str, pattern: str | None) -> Reward:
    """1 where the completion is the answer, 0 elsewhere; both without space around them.

    Args:
        kind: `exact` compares the whole completion, `regex` the first group of a pattern (all that
            it matches if it has none), wherever it is found first.
        column: The column that holds the answer.
        pattern: For `regex`.

    Raises:
        SettingsError: The pattern is missing, not wanted, or no regular expression.
    """
    if (kind == "regex") != (pattern is not None):
        raise SettingsError(
            'reward.pattern: kind = "regex" needs a pattern'
            if pattern is None
            else f'reward.pattern is for kind = "regex", and kind is "{kind}"'
        )
    try:
        searched = re.compile(pattern or "", re.DOTALL)
    except re.error as error:
        raise SettingsError(f"reward.pattern: not a regular expression ({error})") from None

    def found(text: str) -> str | None:
        if pattern is None:
            return text.strip()
        match = searched.search(text)
        if match is None:
            return None
        group: str | None = match[1] if searched.groups else match[0]
        return group.strip() if group is not None else None

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        pairs = zip(completions, columns[column], strict=True)
        return [float(found(_text(sample)) == str(right).strip()) for sample, right in pairs]

    record = {"kind": kind, "column": column}
    return Reward(
        _checked(reward, kind), (column,), record | ({"pattern": pattern} if pattern else {})
    )


def load_function(named: str, folder: Path) -> Reward:
    """Load a reward function from a Python file. The file is executed.

    Args:
        named: `file.py:name`.
        folder: What a relative path is relative to.

    Raises:
        SettingsError: There is no such file or function, or the file fails.
    """
    where, _, name = named.rpartition(":")
    if not where or not name.isidentifier():
        raise SettingsError(f'reward.function is "{named}", expected "file.py:name"')
    path = folder / Path(where).expanduser()
    try:
        digest = xxhash.xxh3_128_hexdigest(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"reward.function: {path}: {error.strerror}") from None
    spec = spec_from_file_location(f"trimtab_reward_{digest}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"reward.function: {path}: expected a file ending in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles of the file look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"reward.function: {path} fails: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SettingsError(f"reward.function: {path} has no function {name}")
    return Reward(_checked(function, name), (), {"function": named, "xxh3_128": digest})


def _checked(function: Function, name: str) -> Callable[..., list[float]]:
    """The function, whose results are one finite number for each completion or an error."""

    def reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        try:
            given = list(function(completions=completions, **columns))
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

    reward.__name__ = name  # TRL logs the reward under it
    return reward


def _text(completion: Any) -> str:
    """A completion as text; TRL gives messages where the prompts are messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])
