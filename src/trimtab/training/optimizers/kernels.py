"""Reference kernels of an optimizer step, in torch, for any device.

`trimtab.training.optimizers.cpu_kernels` and `cuda_kernels` are faster and give the same bits.

**An fp32 master as a bf16 weight and 16 more bits ("lo16"), exactly.** The weight is the master
rounded to bf16, to nearest and ties to even, as `.to(torch.bfloat16)` does. The remainder is the
difference of the two *bit patterns*, read as integers: the upper half of the weight's fp32 pattern
is the weight, so the difference is the distance from weight to master in fp32 steps. It fits
16 bits, because a master is never further than half a bf16 step (32,768 fp32 steps) from its
weight. With patterns instead of values, a master below infinity whose weight rounds up to infinity,
a subnormal and -0.0 need no special case.

One case does. A master exactly halfway rounds to the weight whose last bit is 0: down for one
such master of a weight, up for another. The upper one would need the remainder +32,768, which does
not fit 16 bits and wraps to -32,768, the remainder of the lower one. The positions of the upper
ones ("ties") are therefore listed: one in 131,072 if the low bits are random. Saved states hold the
list of positions. On a GPU the host would have to wait for its length at every step, so there ties
are one bit per element, packed like a mask, the first in the lowest bit of a byte. A NaN stays a
NaN; its payload is not preserved.

**AdamW in single operations.** torch's own AdamW kernels may contract a multiplication and an
addition into one operation that rounds once instead of twice. Where, is up to the compiler: it
differs between CPU and CUDA, and on a CPU even within a tensor (see below). In `adamw_step` every
operation rounds once, to nearest, so the result is the same on every device. The formula is
torch's; the last bits can differ.

**How torch's fused CPU kernels round, and why compact vectors begin with a few unused elements.**
The kernels take `width` elements at a time with vector instructions, and the last few of a tensor
(its length modulo the width) one by one. The two code paths differ in the last bit of some results,
because a fused multiply-add rounds once where a multiplication and an addition round twice. The
path of an element depends on its position in the tensor: the last of 1,001 elements gets other bits
than the same numbers would in a tensor of 1,008.

For results that equal those of a dense tensor at every size, each element of a compact vector must
take the same path as in the dense tensor. Selected elements are in ascending order, so those from
the dense tail come last. A few unused elements *in front* make the number of the others a multiple
of the width, so that exactly those from the dense tail form the tail of the compact vector. GPU
kernels compute every element alike; there the width is 1 and no padding is needed.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LOW_BITS = 0x1FFFF
"""The last bit of the bf16 weight and the 16 bits below it."""

TIE = 0x8000
"""`LOW_BITS` of a master halfway above a weight whose last bit is 0."""

WRAPPED = 1 << 16
"""What the remainder of a tie lost by wrapping."""


def join_lo16(values: Tensor, remainder: Tensor, ties: Tensor) -> None:
    """Turn weights into their masters, in place.

    Args:
        values: The bf16 weights as fp32 `[n]`; becomes the masters.
        remainder: int16 `[n]`, from `split_lo16`.
        ties: int32 positions, from `split_lo16`.
    """
    values.view(torch.int32).add_(remainder)
    add_ties(values, ties)


def split_lo16(masters: Tensor, remainder: Tensor) -> tuple[Tensor, Tensor]:
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
    """Add to fp32 `values`, in place, what the remainders at `ties` lost by wrapping."""
    if ties.numel():
        values.view(torch.int32)[ties] += WRAPPED


def find_ties(masters: Tensor) -> Tensor:
    """Positions, int32 and ascending, of the fp32 masters whose remainder is +32,768."""
    return ((masters.view(torch.int32) & LOW_BITS) == TIE).nonzero().flatten().to(torch.int32)


def ties_as_bits(ties: Tensor, length: int) -> Tensor:
    """Convert ties to bits.

    Args:
        ties: Positions, int32 `[n]`; or bits, which are returned unchanged.
        length: Number of elements.

    Returns:
        uint8 `[⌈length / 8⌉]`, on the device of the positions.
    """
    if ties.dtype == torch.uint8:
        return ties
    flags = torch.zeros(-(-length // 8), 8, dtype=torch.uint8, device=ties.device)
    flags.view(-1)[ties.long()] = 1
    return (flags << _shifts(ties)).sum(dim=1, dtype=torch.uint8)


def ties_as_positions(ties: Tensor) -> Tensor:
    """Convert ties to ascending int32 positions."""
    if ties.dtype != torch.uint8:
        return ties
    flags = (ties.view(-1, 1) >> _shifts(ties)) & 1
    return flags.flatten().nonzero().flatten().to(torch.int32)


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


class Kernels:
    """Kernels for vectors of the selected elements. All tensors are flat and on one device.

    Attributes:
        index: Positions of the selected elements in the tensors called `dense`.
    """

    def __init__(self, index: Tensor) -> None:
        self.index = index

    def read(self, dense: Tensor, out: Tensor) -> None:
        """Copy elements to the fp32 vector `out`."""
        out.copy_(dense.index_select(0, self.index))

    def add(self, dense: Tensor, out: Tensor) -> None:
        """Add elements to the fp32 vector `out`."""
        out.add_(dense.index_select(0, self.index))

    def write(self, dense: Tensor, values: Tensor) -> None:
        """Write fp32 values, rounded to the dtype of `dense`."""
        dense.index_copy_(0, self.index.long(), values.to(dense.dtype))

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """Copy the masters of bf16 elements to the fp32 vector `out`."""
        self.read(dense, out)
        join_lo16(out, remainder, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """Write masters, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties, see the module docstring.
        """
        weights, ties = split_lo16(masters, remainder)
        dense.index_copy_(0, self.index.long(), weights)
        return ties


class DenseKernels:
    """Kernels for vectors as long as the tensor. All tensors are flat and on one device.

    Attributes:
        others: Which elements of the tensors called `dense` are not selected; None if all are.
            They are never changed.
    """

    def __init__(self, others: Tensor | None) -> None:
        self.others = others

    def collect(self, dense: Tensor, out: Tensor, *, add: bool) -> None:
        """Copy the selected elements to the fp32 vector `out`, or add them; the others become 0."""
        out.add_(dense) if add else out.copy_(dense)
        if self.others is not None:
            out.masked_fill_(self.others, 0.0)

    def write(self, dense: Tensor, values: Tensor) -> None:
        """Write the selected fp32 values, rounded to the dtype of `dense`."""
        weights = values.to(dense.dtype)
        if self.others is not None:
            weights = torch.where(self.others, dense, weights)
        dense.copy_(weights)

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """Copy the masters of bf16 elements to the fp32 vector `out`."""
        out.copy_(dense)
        join_lo16(out, remainder, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """Write the selected masters, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties, see the module docstring.
        """
        if self.others is not None:
            masters.masked_fill_(self.others, 0.0)  # no remainder, no tie
        weights, ties = split_lo16(masters, remainder)
        self.write(dense, weights)
        return ties


class AdamWFactors(NamedTuple):
    """The factors of a step, computed in fp64 and rounded to fp32 once.

    Attributes:
        clip: Multiplies the gradient; at most 1.
        decay: Multiplies the weights: 1 - lr · weight decay.
        new_mean: Multiplies the difference of the gradient and its running mean.
        old_square: Multiplies the running mean of the squared gradient.
        new_square: Multiplies the squared gradient.
        root: Multiplies the root of the mean of the squared gradient, to correct its bias. (Where
            the code divides by a number, torch multiplies by the reciprocal on some devices.)
        eps: Added to that root.
        size: Multiplies the quotient of the means; includes the bias correction of the first.
            Negative.
    """

    clip: float
    decay: float
    new_mean: float
    old_square: float
    new_square: float
    root: float
    eps: float
    size: float

    @classmethod
    def of_step(
        cls,
        step: int,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        clip: float,
    ) -> AdamWFactors:
        """The factors of a step, numbered from 1, given the settings of `SparseAdamW`."""
        mean, square = betas
        factors = cls(
            clip=clip,
            decay=1.0 - lr * weight_decay,
            new_mean=1.0 - mean,
            old_square=square,
            new_square=1.0 - square,
            root=1.0 / math.sqrt(1.0 - square**step),
            eps=eps,
            size=-lr / (1.0 - mean**step),
        )
        return cls(*torch.tensor(factors, dtype=torch.float32).tolist())


def adamw_step(
    weights: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, factors: AdamWFactors
) -> None:
    """Step the weights and the running means, in place.

    Args:
        weights: Masters, fp32 `[n]`.
        gradient: fp32 `[n]`; is not changed.
        exp_avg: Running mean of the gradient, fp32 `[n]`.
        exp_avg_sq: Running mean of its square, fp32 `[n]`.
        factors: Factors of the step.
    """
    gradient = gradient * factors.clip
    exp_avg += (gradient - exp_avg) * factors.new_mean
    exp_avg_sq *= factors.old_square
    exp_avg_sq += gradient * gradient * factors.new_square
    root = exp_avg_sq.double().sqrt().float()  # MKL does not round all fp32 roots to nearest
    denominator = root * factors.root + factors.eps
    weights *= factors.decay
    weights += exp_avg / denominator * factors.size


PROBE_LENGTH = 127
"""One less than a power of two, for the longest tail at every width up to 128."""


@cache
def vector_width() -> int:
    """Elements that torch's fused CPU AdamW takes at a time, measured.

    The width follows neither from the CPU nor from `torch.backends.cpu.get_cpu_capability()`: the
    kernel may be compiled for a narrower instruction set than the rest of torch.

    Returns:
        The width; 1 if both code paths give the same bits.
    """
    random = torch.rand(4, 64, generator=torch.Generator().manual_seed(0))
    # Each row has the same numbers at all positions, so that results differ by position only.
    weights, gradients, means, squares = (
        [row.repeat(PROBE_LENGTH) for row in numbers.view(-1, 1)] for numbers in random
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
    """Number of unused elements to put before the selected ones, which are at ascending `index`."""
    width = vector_width() if index.device.type == "cpu" else 1
    num_before_tail = int(torch.searchsorted(index, num_elements - num_elements % width))
    return -num_before_tail % width
