"""The settings that the sparse optimizers share, checked before anything else."""

from __future__ import annotations

from typing import Any, get_args

import torch

from trimtab.errors import SettingsError
from trimtab.training.optimizers.masters import Master

__all__ = ["check_settings"]

CHOICES: dict[str, tuple[str | None, ...]] = {
    "clip_by": ("masked", "full"),
    "master": (None, *get_args(Master)),
    "nonfinite": ("raise", "skip"),
}


def check_settings(
    not_negative: dict[str, Any],
    max_grad_norm: float | None,
    choices: dict[str, str | None],
    state_dtype: torch.dtype,
) -> None:
    """Check settings that need no parameters to be wrong.

    Args:
        not_negative: Name -> number.
        max_grad_norm: Norm to clip to, or None.
        choices: Name, a key of `CHOICES` -> what was chosen.
        state_dtype: Dtype of the running means.

    Raises:
        SettingsError: Some are out of range; names them all.
    """
    problems = [
        f"{name} must not be negative, as {value} is"
        for name, value in not_negative.items()
        if not value >= 0.0
    ]
    if max_grad_norm is not None and not max_grad_norm > 0.0:
        problems.append(f"max_grad_norm must be above 0, or None to not clip, not {max_grad_norm}")
    problems += [
        f"{name} must be one of {', '.join(map(repr, CHOICES[name]))}, not {value!r}"
        for name, value in choices.items()
        if value not in CHOICES[name]
    ]
    if state_dtype not in (torch.float32, torch.bfloat16):
        problems.append(f"state_dtype must be torch.float32 or torch.bfloat16, not {state_dtype}")
    if problems:
        raise SettingsError("; ".join(problems))
