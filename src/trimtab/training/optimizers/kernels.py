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

**How torch's fused CPU kernels round, and what `tail_of` is for.** The kernels take `width`
elements at a time with vector instructions, and the last few of a tensor (its length modulo the
width) one by one. The two code paths differ in the last bit of some results, because a fused
multiply-add rounds once where a multiplication and an addition round twice. The path of an element
depends on its position in the tensor: the last of 1,001 elements gets other bits than the same
numbers would in a tensor of 1,008.

For results that equal those of a dense tensor at every size, each selected element must take the
same path as in the dense tensor. They are stepped in ascending order, so those from the dense tail
come last. Whole vectors of others come first; what remains of these is stepped with the tail, after
a few zeros that make a whole vector of it. GPU kernels compute every element alike; there the width
is 1 and nothing remains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LOW_BITS = 0x1FFFF
"""The last bit of the bf16 weight and the 16 bits below it."""

TIE = 0x8000
"""`LOW_BITS` of a master halfway above a weight whose last bit is 0."""

WRAPPED = 1 << 16
"""What the remainder of a tie lost by wrapping."""

CHUNK = 1 << 18
"""Elements that are converted to fp64 at a time: 2 MB, which fit a cache."""

BLOCK = 128
"""Consecutive selected elements that share a base of their positions, and a scale of their codes.

A power of two.
"""

FAR = 1 << 15
"""Offsets of 16 bits reach from this far below a base to just under this far above."""


class Positions:
    """Ascending positions in a flat tensor, in about 2 bytes each.

    A position is the base of its block plus an offset of 16 bits. If the positions of a block lie
    too far apart for that, all bases are 0 and the offsets are the positions, in 32 or 64 bits.

    Attributes:
        bases: int32 or int64 `[ceil(n / BLOCK)]`.
        offsets: int16, int32 or int64 `[n]`.
    """

    def __init__(self, index: Tensor, num_elements: int) -> None:
        """Pack positions.

        Args:
            index: Ascending, int64 `[n]`.
            num_elements: Of the tensor.
        """
        wide = torch.int32 if num_elements + FAR <= torch.iinfo(torch.int32).max else torch.int64
        first = index[::BLOCK]
        last = torch.cat([index[BLOCK - 1 :: BLOCK], index[-1:]])[: len(first)]
        if bool((last - first < 2 * FAR).all()):
            self.bases = (first + FAR).to(wide)
            self.offsets = torch.empty(len(index), dtype=torch.int16, device=index.device)
            whole = len(index) // BLOCK * BLOCK
            blocks = index[:whole].view(-1, BLOCK) - self.bases[: whole // BLOCK, None]
            self.offsets[:whole] = blocks.view(-1)
            self.offsets[whole:] = index[whole:] - self.bases[whole // BLOCK :]
        else:
            self.bases, self.offsets = torch.zeros_like(first, dtype=wide), index.to(wide)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def num_bytes(self) -> int:
        """Bytes of both tensors."""
        return self.bases.nbytes + self.offsets.nbytes

    def to(self, device: torch.device) -> Positions:
        """The same on a device."""
        moved = copy(self)
        moved.bases, moved.offsets = self.bases.to(device), self.offsets.to(device)
        return moved

    def index(self, start: int = 0, stop: int | None = None) -> Tensor:
        """The positions of the elements from `start` up to `stop`, int64."""
        stop = len(self) if stop is None else min(stop, len(self))
        return self.at(torch.arange(start, max(start, stop), device=self.offsets.device))

    def at(self, ranks: Tensor) -> Tensor:
        """The positions of the elements with these numbers, int64."""
        return self.bases[ranks // BLOCK].long() + self.offsets[ranks]


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


def join_lo8(values: Tensor, remainder: Tensor) -> None:
    """Turn weights into their 24-bit masters, in place.

    Args:
        values: The bf16 weights as fp32 `[n]`; becomes the masters.
        remainder: int8 `[n]`, from `split_lo8`.
    """
    values.view(torch.int32).add_(remainder.int() << 8)


def split_lo8(masters: Tensor, remainder: Tensor) -> Tensor:
    """Split masters, rounded to the 24 upper bits of their patterns, into weights and remainders.

    A 24-bit master has 15 bits behind the point where bf16 has 7. It is rounded to nearest, ties to
    even; the weight is that rounded to bf16 with halves away from zero, so that the difference of
    the patterns is always in [-128, 127] and no tie needs a place of its own.

    Args:
        masters: fp32 `[n]`.
        remainder: int8 `[n]`; is overwritten.

    Returns:
        The bf16 weights `[n]`.

    Source:
        24-bit masters of bf16 and an 8-bit correction: FlashOptim, arXiv 2602.23349, sec. 3.1.
        There the correction is a fraction of the rounding error's bound; here it is the difference
        of the bit patterns, as in "lo16".
    """
    patterns = masters.view(torch.int32)
    upper = (patterns >> 8) & 0xFFFFFF
    upper += (patterns & 0xFF) + (upper & 1) > 0x80
    upper = torch.where(masters.isnan(), 0x7FC000, upper)
    weights = (upper + 0x80) >> 8
    remainder.copy_(upper - (weights << 8))
    return weights.to(torch.int16).view(torch.bfloat16)


OLDEST_TRITON = (3, 6)
"""Earlier versions flush subnormals in divisions and roots, whatever their options."""


@cache
def has_kernel(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device: an NVIDIA GPU, Ampere or later."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    try:
        import triton
    except ImportError:
        return False
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return version >= OLDEST_TRITON and torch.cuda.get_device_capability(device) >= (8, 0)


Code = Literal["signed", "squares"]
"""An 8-bit code of fp32 numbers.

Each block of `BLOCK` numbers x has a scale s, the largest |x|, and codes of 8 bits:

- "signed", int8: c = round(127 · 2u / (1 + |u|)) with u = x / s, which stands for s · y / (2 - |y|)
  with y = c / 127.
- "squares", uint8, for numbers that are not negative: c = round(255 · sqrt(x / s)), which stands
  for s · (c / 255)². A number above 0 never gets the code 0, which would make AdamW divide by eps.

What a code stands for has the same code again, and the largest number of a block is exact.

Source:
    FlashOptim, arXiv 2602.23349, sec. 3.2, with blocks of 32 and scales in fp16. Block-wise codes:
    arXiv 2110.02861.
"""

CODES: dict[Code, torch.dtype] = {"signed": torch.int8, "squares": torch.uint8}

LARGEST = 1e38
"""Numbers are limited to this before they are encoded, so that no sum overflows."""


@cache
def code_values(code: Code) -> Tensor:
    """What each code stands for at a scale of 1: fp32 `[256]`, by the code's bits as uint8."""
    if code == "squares":
        return (torch.arange(256, dtype=torch.float64) / 255).square().float()
    y = torch.arange(256, dtype=torch.uint8).view(torch.int8).double().clamp(min=-127) / 127
    return (y / (2 - y.abs())).float()


def encode(values: Tensor, code: Code, codes: Tensor, scales: Tensor) -> None:
    """Encode numbers; each operation rounds once.

    Args:
        values: fp32 `[n]`, the first of which begins a block.
        code: Which code.
        codes: `[n]` of the dtype in `CODES`; is overwritten.
        scales: fp32 `[ceil(n / BLOCK)]`; is overwritten.
    """
    limited = values.clamp(-LARGEST, LARGEST)
    padded = torch.nn.functional.pad(limited, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales.copy_(padded.abs().amax(dim=1))
    scale = scales.repeat_interleave(BLOCK)[: len(values)]
    if code == "signed":
        c = (limited / (scale + limited.abs()) * 254).round()
    else:
        root = (limited / scale).double().sqrt().float()  # see `adamw_step`
        c = (root * 255).round().clamp(min=1)
    codes.copy_(torch.where(limited == 0, 0, c))


def decode(codes: Tensor, code: Code, scales: Tensor, out: Tensor) -> None:
    """The inverse of `encode`, as far as there is one; `out` is fp32 `[n]`."""
    values = code_values(code).to(codes.device)[codes.view(torch.uint8).long()]
    torch.mul(scales.repeat_interleave(BLOCK)[: len(codes)], values, out=out)


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


def sum_of_squares(values: Tensor) -> Tensor:
    """Sum of the squares of a flat tensor of any floating dtype, in fp64."""
    if values.numel() <= CHUNK:
        wide = values.double()
        return torch.dot(wide, wide)
    chunks = (chunk.double() for chunk in torch.split(values, CHUNK))
    return torch.stack([torch.dot(chunk, chunk) for chunk in chunks]).sum()


class Kernels:
    """Moves selected elements between a tensor and vectors. All tensors are flat, on one device.

    A vector holds consecutive selected elements, from number `start` on, a multiple of `BLOCK`.

    Attributes:
        positions: Positions of the selected elements in the tensors called `dense`.
    """

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def read(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """Copy elements to a vector, fp32 or of the dtype of `dense`."""
        out.copy_(dense[self._index(out, start)])

    def add(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """Add elements to the fp32 vector `out`."""
        out.add_(dense[self._index(out, start)])

    def write(self, dense: Tensor, values: Tensor, start: int = 0) -> None:
        """Write fp32 values, rounded to the dtype of `dense`."""
        dense[self._index(values, start)] = values.to(dense.dtype)

    def read_lo16(
        self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor, start: int = 0
    ) -> None:
        """Copy the masters of bf16 elements to the fp32 vector `out`; see `join_lo16`."""
        self.read(dense, out, start)
        join_lo16(out, remainder, ties)

    def write_lo16(
        self, dense: Tensor, masters: Tensor, remainder: Tensor, start: int = 0
    ) -> Tensor:
        """Write masters, rounded to bf16, and overwrite their remainders.

        Returns:
            The positions of the ties in the vector, see the module docstring.
        """
        weights, ties = split_lo16(masters, remainder)
        dense[self._index(masters, start)] = weights
        return ties

    def read_lo8(self, dense: Tensor, remainder: Tensor, out: Tensor, start: int = 0) -> None:
        """Copy the 24-bit masters of bf16 elements to the fp32 vector `out`; see `join_lo8`."""
        self.read(dense, out, start)
        join_lo8(out, remainder)

    def write_lo8(self, dense: Tensor, masters: Tensor, remainder: Tensor, start: int = 0) -> None:
        """Write masters, rounded to 24 bits and then to bf16, and overwrite their remainders."""
        dense[self._index(masters, start)] = split_lo8(masters, remainder)

    def encode(self, values: Tensor, code: Code, codes: Tensor, scales: Tensor) -> None:
        """Overwrite the codes of fp32 values, and the scale of each block; see `encode`."""
        encode(values, code, codes, scales)

    def decode(self, codes: Tensor, code: Code, scales: Tensor, out: Tensor) -> None:
        """Write what codes stand for to the fp32 vector `out`; see `decode`."""
        decode(codes, code, scales, out)

    def _index(self, vector: Tensor, start: int) -> Tensor:
        return self.positions.index(start, start + len(vector))


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


class Tail(NamedTuple):
    """The last selected elements of a tensor, stepped by themselves with zeros in front.

    Attributes:
        length: How many they are, less than two vectors.
        padding: Zeros in front of them.
        num_scalar: How many of them, the last, torch steps one by one.
    """

    length: int
    padding: int
    num_scalar: int


def tail_of(index: Tensor, num_elements: int, device: torch.device) -> Tail:
    """What remains of selected elements, at ascending `index`, after whole vectors."""
    width = vector_width() if device.type == "cpu" else 1
    num_before_tail = int(torch.searchsorted(index, num_elements - num_elements % width))
    over, num_scalar = num_before_tail % width, len(index) - num_before_tail
    return Tail(over + num_scalar, width - over, num_scalar) if over else Tail(0, 0, num_scalar)


def step_as_dense(step: Callable[..., None], vectors: list[Tensor], tail: Tail) -> None:
    """Step vectors of one length, in place, so that elements round as in the dense tensor.

    Args:
        step: Steps vectors, by torch's fused kernel.
        vectors: Flat, of one length.
        tail: What is stepped by itself.
    """
    num_whole = vectors[0].numel() - tail.length
    if num_whole:
        step(*(vector[:num_whole] for vector in vectors))
    if tail.length:
        rest = [vector[num_whole:] for vector in vectors]
        padded = torch.nn.functional.pad(torch.stack(rest), (tail.padding, 0))
        step(*padded.unbind())
        torch._foreach_copy_(rest, padded[:, tail.padding :].unbind())
