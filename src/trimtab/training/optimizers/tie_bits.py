"""Ties of 16-bit remainders as a bit per element: the form that a kernel on a GPU can write.

What a tie is says `trimtab.training.optimizers.lo16`. A list of their positions, which a saved
state has, cannot be written by many threads in order, and its length is not known before, so the
host would have to wait for it at every step. A bit for every element costs 1/8 byte per element
and no waiting. Bits are packed as those of a mask are, the first in the lowest bit of a byte.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["as_bits", "as_positions"]


def as_bits(ties: Tensor, length: int) -> Tensor:
    """Ties in the form of bits.

    Args:
        ties: Positions, int32 `[n]`; or bits, which are returned as they are.
        length: Elements that can be ties.

    Returns:
        uint8 `[⌈length / 8⌉]`, on the device of the positions.
    """
    if ties.dtype == torch.uint8:
        return ties
    flags = torch.zeros(-(-length // 8), 8, dtype=torch.uint8, device=ties.device)
    flags.view(-1)[ties.long()] = 1
    return (flags << _places(ties)).sum(dim=1, dtype=torch.uint8)


def as_positions(ties: Tensor) -> Tensor:
    """Ties in the form of positions, int32 and ascending."""
    if ties.dtype != torch.uint8:
        return ties
    flags = (ties.view(-1, 1) >> _places(ties)) & 1
    return flags.flatten().nonzero().flatten().to(torch.int32)


def _places(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
