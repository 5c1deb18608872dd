"""Keep an fp32 master as a bf16 weight and 16 more bits, exactly.

The weight is the master rounded to bf16, to nearest and ties to even, as `.to(torch.bfloat16)`
does. The remainder is the difference of the two *bit patterns*, read as integers: the upper half
of the weight's fp32 pattern is the weight, so the difference says how many fp32 steps away from
the weight the master lies, and fits 16 bits, because a master is never further than half a bf16
step (32,768 fp32 steps) from its weight. Patterns, not values: a master below infinity whose
weight rounds up to infinity, a subnormal and -0.0 need no special case.

One case does. A master exactly half way rounds to the weight whose last bit is 0: down for one
such master of a weight, up for another. Of these the upper one would need the remainder +32,768,
which 16 bits do not have and which wraps to -32,768, the remainder of the lower one. The positions
of the upper ones ("ties") are therefore listed: one in 131,072 if the low bits are random.

A NaN stays a NaN; its payload is not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["add_ties", "find_ties", "join", "split"]

LOW_BITS = 0x1FFFF
"""The last bit of the weight and the 16 bits that it lacks."""

TIE = 0x8000
"""`LOW_BITS` of a master half way above a weight whose last bit is 0."""

WRAPPED = 1 << 16
"""What the remainder of a tie lost when it wrapped."""


def join(values: Tensor, remainder: Tensor, ties: Tensor) -> None:
    """Turn weights into their masters, in place.

    Args:
        values: The bf16 weights as fp32 `[n]`; becomes the masters.
        remainder: int16 `[n]`, from `split`.
        ties: int32 positions, from `split`.
    """
    values.view(torch.int32).add_(remainder)
    add_ties(values, ties)


def split(masters: Tensor, remainder: Tensor) -> tuple[Tensor, Tensor]:
    """Split masters into weights and remainders.

    Args:
        masters: fp32 `[n]`.
        remainder: int16 `[n]`; is overwritten.

    Returns:
        The bf16 weights `[n]`, and the int32 positions of the ties, ascending.
    """
    weights = masters.to(torch.bfloat16)
    remainder.copy_(masters.view(torch.int32) - weights.float().view(torch.int32))
    return weights, find_ties(masters)


def add_ties(values: Tensor, ties: Tensor) -> None:
    """Give back to fp32 `values`, in place, what the remainders at `ties` lost."""
    if ties.numel():
        values.view(torch.int32)[ties] += WRAPPED


def find_ties(masters: Tensor) -> Tensor:
    """Positions, int32 and ascending, of the fp32 masters whose remainder is +32,768."""
    return ((masters.view(torch.int32) & LOW_BITS) == TIE).nonzero().flatten().to(torch.int32)
