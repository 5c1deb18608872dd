"""A reward function whose results are checked: one finite number for each completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from trimtab.errors import SettingsError, TrimtabError

__all__ = ["checked"]


def checked(function: Callable[..., Any], name: str) -> Callable[..., list[float]]:
    """A reward function that returns one finite number for each completion, or raises.

    Args:
        function: Called as TRL calls a reward function, with keyword arguments only.
        name: How messages call it, and under what TRL logs its rewards.

    Returns:
        The function; it raises `SettingsError`.
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
