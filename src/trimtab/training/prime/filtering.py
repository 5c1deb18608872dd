"""Prompts whose accuracy lies between two bounds come first."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["kept_first"]


def kept_first(
    outcomes: Tensor, num_generations: int, *, lower: float, upper: float
) -> tuple[Tensor, int]:
    """Rows in the order in which their prompts are to be used.

    Prompts within the bounds come first, then the others, each in the order in which they are
    given: a round that has too few prompts within the bounds is filled with others.

    Args:
        outcomes: From 0 to 1; those of a prompt are rows after each other. `[rows]`
        num_generations: Completions of each prompt.
        lower: Least mean outcome.
        upper: Largest mean outcome.

    Returns:
        Indices of rows, and how many prompts are within the bounds.

    Source:
        arXiv 2502.01456, online prompt filtering; filling up is as in the authors' code.
    """
    accuracy = outcomes.double().view(-1, num_generations).mean(1)
    is_kept = (accuracy >= lower) & (accuracy <= upper)
    prompts = torch.argsort((~is_kept).long(), stable=True)
    rows = prompts.unsqueeze(1) * num_generations + torch.arange(
        num_generations, device=outcomes.device
    )
    return rows.reshape(-1), int(is_kept.sum())
