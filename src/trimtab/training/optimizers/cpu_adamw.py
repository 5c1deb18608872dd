"""AdamW on the selected elements of a tensor in one pass, for a CPU, compiled with Numba.

Weights, gradient, state and remainders are read and written once, `BLOCK` elements at a time; no
temporary vectors are allocated. The arithmetic is that of torch's fused kernel, with fused
multiply-adds where its compiler put them, which differs between the vector instructions of a
tensor's first elements and the scalar ones of its tail (see `trimtab.training.optimizers.kernels`).
`is_torchs` compares the two on this machine; where they differ, torch's kernel is called instead.

Import this module lazily: it loads Numba and compiles once per machine (then cached on disk).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, TypeGuard

import numpy as np
import torch
from numba import prange, types
from numba.extending import intrinsic
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements.simd import compiled
from trimtab.training.optimizers.cpu_kernels import (
    BITS,
    CpuKernels,
    as_fp32,
    bits_of,
    decoded,
    encoded_signed,
    encoded_squares,
    inlined,
    is_tie,
    joined_lo16,
    rank_of,
    rounded,
    run,
    split_24,
)
from trimtab.training.optimizers.kernels import (
    BLOCK,
    AdamWFactors,
    Kernels,
    Positions,
    code_values,
    vector_width,
)

MASTERS = {"none": 0, "lo16": 1, "lo8": 2, "fp32": 3}
"""How a kernel is told the master; see `trimtab.training.optimizers.elements`."""

GROUP = 16
"""Blocks that a thread takes at a time."""


@intrinsic  # type: ignore[untyped-decorator]
def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    """A · b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@inlined
def _mean(mean: Any, slope: Any, new_mean: Any) -> Any:
    """Torch's `lerp`, which begins at the nearer end."""
    if new_mean < np.float32(0.5):
        return _fma(new_mean, slope - mean, mean)
    return _fma(new_mean - np.float32(1.0), slope - mean, slope)


@compiled(parallel=True, error_model="numpy")
def _step(
    dense: NDArray[Any],
    shift: int,
    bases: NDArray[Any],
    offsets: NDArray[Any],
    gradient: NDArray[Any],
    gradient_shift: int,
    means: NDArray[np.float32],
    squares: NDArray[np.float32],
    mean_codes: NDArray[np.int8],
    square_codes: NDArray[np.uint8],
    mean_scales: NDArray[np.float32],
    square_scales: NDArray[np.float32],
    signed_values: NDArray[np.float32],
    square_values: NDArray[np.float32],
    master: int,
    masters: NDArray[np.uint32],
    remainder: NDArray[np.int16],
    remainder_8: NDArray[np.int8],
    ties: NDArray[np.uint64],
    num_whole: int,
    factors: NDArray[np.float32],
) -> None:
    by, gradient_by = np.uint32(shift), np.uint32(gradient_shift)
    encoded = means.size == 0
    clip, decay, new_mean, old_square = factors[0], factors[1], factors[2], factors[3]
    new_square, root, eps, size = factors[4], factors[5], factors[6], factors[7]
    for group in prange((bases.size + GROUP - 1) // GROUP):
        pattern, slope_bits = np.empty(BLOCK, np.uint32), np.empty(BLOCK, np.uint32)
        weight, slope = pattern.view(np.float32), slope_bits.view(np.float32)
        mean, square = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        for block in range(group * GROUP, min((group + 1) * GROUP, bases.size)):
            base, start = np.int64(bases[np.uint64(block)]), block * BLOCK
            count = min(BLOCK, offsets.size - start)
            for j in range(count):
                slope_bits[j] = np.uint32(gradient[rank_of(block, j)]) << gradient_by
            for j in range(count):
                slope[j] *= clip
            if master == 3:
                for j in range(count):
                    pattern[j] = masters[rank_of(block, j)]
            else:
                for j in range(count):
                    position = np.uint64(base + offsets[rank_of(block, j)])
                    pattern[j] = np.uint32(dense[position]) << by
            if master == 1:
                for j in range(count):
                    pattern[j] = joined_lo16(pattern[j], remainder[rank_of(block, j)])
            elif master == 2:
                for j in range(count):
                    low = np.int32(remainder_8[rank_of(block, j)]) << np.int32(8)
                    pattern[j] = np.uint32(pattern[j] + np.uint32(low))
            if encoded:
                decoded(mean_codes.view(np.uint8), mean_scales, signed_values, block, count, mean)
                decoded(square_codes, square_scales, square_values, block, count, square)
            else:
                for j in range(count):
                    i = rank_of(block, j)
                    mean[j], square[j] = means[i], squares[i]

            whole = min(count, max(0, num_whole - start))
            for j in range(whole):
                new = new_square * slope[j]
                square[j] = _fma(new, slope[j], square[j] * old_square)
            for j in range(whole, count):
                new = new_square * slope[j]
                square[j] = _fma(square[j], old_square, new * slope[j])
            for j in range(count):
                mean[j] = _mean(mean[j], slope[j], new_mean)
                weight[j] *= decay
                weight[j] -= size * mean[j] / (np.sqrt(square[j]) / root + eps)

            if encoded:
                encoded_signed(mean, block, count, mean_scales, mean_codes)
                encoded_squares(square, block, count, square_scales, square_codes)
            else:
                for j in range(count):
                    i = rank_of(block, j)
                    means[i], squares[i] = mean[j], square[j]
            if by == np.uint32(0):
                for j in range(count):
                    dense[np.uint64(base + offsets[rank_of(block, j)])] = pattern[j]
            elif master == 2:
                for j in range(count):
                    i = rank_of(block, j)
                    top, high = split_24(pattern[j])
                    dense[np.uint64(base + offsets[i])] = high
                    remainder_8[i] = np.int8(np.int32(top) - np.int32(high << np.uint32(8)))
            else:
                for j in range(count):
                    position = np.uint64(base + offsets[rank_of(block, j)])
                    dense[position] = rounded(pattern[j])
            if master == 1:
                lower, upper = np.uint64(0), np.uint64(0)
                for j in range(count):
                    low = pattern[j] - as_fp32(rounded(pattern[j]))
                    remainder[rank_of(block, j)] = np.int16(low)
                for j in range(count):
                    bit = np.uint64(is_tie(pattern[j])) << np.uint64(j % 64)
                    if j < 64:
                        lower |= bit
                    else:
                        upper |= bit
                ties[2 * block], ties[2 * block + 1] = lower, upper
            elif master == 3:
                for j in range(count):
                    masters[rank_of(block, j)] = pattern[j]


NOTHING: dict[type, NDArray[Any]] = {
    kind: np.empty(0, kind) for kind in (np.float32, np.uint32, np.int16, np.int8, np.uint8)
}


NO_TIES = torch.empty(0, dtype=torch.int32)


def can_step(
    kernels: Kernels, weights: Tensor, state: dict[str, Tensor], gradient: Tensor
) -> TypeGuard[CpuKernels]:
    """Whether `fused_adamw_step` knows these dtypes, and computes as torch does here."""
    known = weights.dtype in BITS and gradient.dtype in BITS
    known = known and state["exp_avg"].dtype != torch.bfloat16
    return known and isinstance(kernels, CpuKernels) and is_torchs()


def fused_adamw_step(
    weights: Tensor,
    kernels: CpuKernels,
    num_whole: int,
    gradient: Tensor,
    state: dict[str, Tensor],
    factors: AdamWFactors,
    root: float,
) -> None:
    """Step the selected elements of a tensor, in place.

    Args:
        weights: All weights of the tensor, flat; bf16 or fp32.
        kernels: Which of them are selected.
        num_whole: How many of the selected ones, the first, torch steps by vector instructions.
        gradient: bf16 or fp32 `[n]`; is not changed.
        state: As for `cuda_kernels.fused_adamw_step`, without bf16; `ties` are positions.
        factors: Factors of the step.
        root: Divides the root of the mean of the squared gradient, where `factors.root` multiplies
            it: sqrt(1 - beta2 ** step), in fp64.
    """
    if not gradient.numel():
        return
    nothing, codes = NOTHING, "exp_avg_scale" in state
    master = "fp32" if "master" in state else "none"
    if "remainder" in state:
        master = "lo16" if "ties" in state else "lo8"
    if master == "lo16" and state["ties"].numel():
        # The remainder of a tie, half a step above its weight, is that of half a step below the
        # next: the master of that weight.
        weights.view(torch.int16)[kernels.positions.at(state["ties"].long())] += 1
    ties = np.empty(2 * kernels.bases.size if master == "lo16" else 0, np.uint64)
    low = state["remainder"].numpy() if "remainder" in state else nothing[np.int16]
    run(
        _step,
        bits_of(weights),
        16 if weights.dtype == torch.bfloat16 else 0,
        kernels.bases,
        kernels.offsets,
        bits_of(gradient),
        16 if gradient.dtype == torch.bfloat16 else 0,
        nothing[np.float32] if codes else state["exp_avg"].numpy(),
        nothing[np.float32] if codes else state["exp_avg_sq"].numpy(),
        state["exp_avg"].numpy() if codes else nothing[np.int8],
        state["exp_avg_sq"].numpy() if codes else nothing[np.uint8],
        state["exp_avg_scale"].numpy() if codes else nothing[np.float32],
        state["exp_avg_sq_scale"].numpy() if codes else nothing[np.float32],
        *_code_values(),
        MASTERS[master],
        bits_of(state["master"]) if master == "fp32" else nothing[np.uint32],
        low if master == "lo16" else nothing[np.int16],
        low if master == "lo8" else nothing[np.int8],
        ties,
        num_whole,
        np.array([*factors[:5], root, factors.eps, -factors.size], np.float32),
        size=gradient.numel(),
    )
    if master == "lo16":
        state["ties"] = _positions_of(ties) if ties.any() else NO_TIES


PROBES = ((1, (0.9, 0.999), 0.0), (1000, (0.8, 0.95), 0.1), (3, (0.3, 0.5), 0.01))
"""Step, betas and weight decay."""


def _positions_of(ties: NDArray[np.uint64]) -> Tensor:
    """Positions of the bits that are set, int32."""
    words = np.flatnonzero(ties)
    flags = np.unpackbits(ties[words].view(np.uint8), bitorder="little").reshape(-1, 64)
    word, bit = np.nonzero(flags)
    return torch.from_numpy((64 * words[word] + bit).astype(np.int32))


@cache
def _code_values() -> list[NDArray[np.float32]]:
    return [code_values("signed").numpy(), code_values("squares").numpy()]


@cache
def is_torchs() -> bool:
    """Whether the arithmetic here gives the bits of `torch._fused_adamw_` on this machine.

    Compared on a few thousand numbers, among them zeros and subnormal ones, for first and later
    steps, with and without weight decay, and for both ends from which torch interpolates.
    """
    generator = torch.Generator().manual_seed(0)
    n = 16 * BLOCK + vector_width() - 1
    for step, betas, weight_decay in PROBES:
        weights, gradient, mean, root = torch.randn(4, n, generator=generator)
        size = 10.0 ** torch.empty(n).uniform_(-24, 3, generator=generator)
        gradient *= torch.where(torch.rand(n, generator=generator) < 0.5, size, 1.0)
        gradient[::17] = 0.0
        mean *= size
        state = {"exp_avg": mean, "exp_avg_sq": (root * size).square()}
        expected = [weights.clone(), mean.clone(), state["exp_avg_sq"].clone()]
        torch._fused_adamw_(
            expected[:1],
            [gradient],
            expected[1:2],
            expected[2:],
            [],
            [torch.tensor(float(step))],
            lr=1e-3,
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
        )
        factors = AdamWFactors.of_step(
            step, lr=1e-3, betas=betas, eps=1e-8, weight_decay=weight_decay, clip=1.0
        )
        kernels = CpuKernels(Positions(torch.arange(n), n))
        fused_adamw_step(
            weights,
            kernels,
            n - n % vector_width(),
            gradient,
            state,
            factors,
            math.sqrt(1.0 - betas[1] ** step),
        )
        found = weights, state["exp_avg"], state["exp_avg_sq"]
        if not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            return False
    return True
