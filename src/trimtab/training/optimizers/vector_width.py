"""How torch's fused CPU kernels round, and why compact vectors begin with a few unused elements.

The kernels take `width` elements at a time with vector instructions, and the last few of a tensor
(its length modulo the width) one by one. The two ways differ in the last bit of some results,
because a fused multiply-add rounds once where a multiplication and an addition round twice. So
which way an element goes depends on where in the tensor it lies: the last of 1,001 elements gets
other bits than the same numbers would in a tensor of 1,008.

For results that equal those of a dense tensor at every size, each element of a compact vector must
go the way that it would go in the dense tensor. Selected elements are in ascending order, so those
from the dense tail are the last. Enough unused elements *in front* make the others a multiple of
the width: then exactly those from the dense tail form the tail of the compact vector.

Kernels of accelerators compute every element alike; there the width is 1 and nothing is added.
"""

from __future__ import annotations

from functools import cache

import torch

__all__ = ["num_padding", "vector_width"]

LENGTH = 127
"""One less than a power of two: the tail is as long as it can be, for every width up to 128."""


@cache
def vector_width() -> int:
    """Elements that torch's fused CPU AdamW takes at a time, measured.

    The width follows neither from the CPU nor from `torch.backends.cpu.get_cpu_capability()`: the
    kernel may be compiled for a narrower instruction set than the rest of torch.

    Returns:
        The width; 1 if the two ways agree, so that it does not matter.
    """
    random = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    # Each row: the same numbers at each position, so that only the position can make a difference.
    weights, gradients, means, squares = (
        [row.repeat(LENGTH) for row in numbers.view(-1, 1)] for numbers in random
    )
    torch._fused_adamw_(
        weights,
        gradients,
        means,
        squares,
        [],
        [torch.ones(()) for _ in weights],
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )
    results = torch.stack([*weights, *means, *squares])
    return 1 + int((results != results[:, :1]).any(dim=0).sum())


def num_padding(index: torch.Tensor, num_elements: int) -> int:
    """Unused elements to put in front of the selected elements of a tensor.

    Args:
        index: Positions of the selected elements, ascending.
        num_elements: Elements of the tensor.
    """
    width = vector_width() if index.device.type == "cpu" else 1
    num_before_tail = int(torch.searchsorted(index, num_elements - num_elements % width))
    return -num_before_tail % width
