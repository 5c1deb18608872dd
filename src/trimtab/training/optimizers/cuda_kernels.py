"""AdamW on the selected elements of a tensor in one Triton kernel, for CUDA.

Weight, gradient, state and remainder are read and written once, and no temporary vectors are
allocated. Each operation rounds once, as in `trimtab.training.optimizers.kernels.adamw_step`; the
results are the same bit for bit, except for the payload of a NaN. This requires that the compiler
neither contracts multiplications and additions nor flushes subnormals, which a test verifies in the
generated code. bf16 is converted by integer arithmetic on its bits, so that the result depends
neither on the compiler nor on the device. Importing this module needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.training.optimizers.kernels import AdamWFactors, ties_as_bits

OPTIONS = {"enable_fp_fusion": False}
"""Compiler options: do not contract a multiplication and an addition."""

BLOCK = 1024
"""Elements per program; a multiple of 8, so that no two programs share a byte of tie bits."""


def fused_adamw_step(
    weights: Tensor,
    selection: Tensor | None,
    gradient: Tensor,
    state: dict[str, Tensor],
    factors: AdamWFactors,
) -> None:
    """Step the selected elements of a tensor, in place.

    Args:
        weights: All weights of the tensor, flat; bf16, fp16 or fp32.
        selection: Which of them are selected: their positions, int32 or int64 `[n]`; or, where
            vectors are as long as the tensor, which are *not* selected, bool `[n]`; None if all.
        gradient: fp32 `[n]`; is not changed.
        state: `exp_avg` and `exp_avg_sq`, fp32 or bf16 `[n]`. In addition `remainder`, int16
            `[n]`, and `ties`, which are converted to bits (see
            `trimtab.training.optimizers.kernels`); or `master`, fp32 `[n]`; or neither, if the
            weights are the masters.
        factors: Factors of the step.
    """
    n = gradient.numel()
    if not n:  # a process may hold no elements of a sharded tensor
        return
    if selection is None:
        kind = "all"
    elif selection.dtype == torch.bool:
        kind, selection = "others", selection.view(torch.uint8)
    else:
        kind = "positions"
    if lo16 := "remainder" in state:
        state["ties"] = ties_as_bits(state["ties"], n)
    with torch.cuda.device_of(weights):
        _step[(triton.cdiv(n, BLOCK),)](
            _loadable(weights),
            selection,
            gradient,
            _loadable(state["exp_avg"]),
            _loadable(state["exp_avg_sq"]),
            state.get("remainder"),
            state.get("ties"),
            state.get("master"),
            n,
            *factors,
            SELECTION=kind,
            MASTER="lo16" if lo16 else "fp32" if "master" in state else "none",
            BLOCK=BLOCK,
            **OPTIONS,
        )


def _loadable(values: Tensor) -> Tensor:
    """bf16 as its bits, int16."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values


@triton.jit
def _step(
    weights,
    selection,
    gradient,
    exp_avg,
    exp_avg_sq,
    remainder,
    ties,
    master,
    n,
    clip,
    decay,
    new_mean,
    old_square,
    new_square,
    root,
    eps,
    size,
    SELECTION: tl.constexpr,
    MASTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    offset = program * BLOCK + tl.arange(0, BLOCK)
    vectors = (weights, selection, gradient, exp_avg, exp_avg_sq, remainder, ties, master)
    factors = (clip, decay, new_mean, old_square, new_square, root, eps, size)
    if (program + 1) * BLOCK <= n:  # without a mask, a thread loads 16 bytes at once
        inside = tl.full((BLOCK,), True, tl.int1)
        _step_block(vectors, factors, n, offset, inside, SELECTION, MASTER, BLOCK)
    else:
        _step_block(vectors, factors, n, offset, offset < n, SELECTION, MASTER, BLOCK)


@triton.jit
def _step_block(
    vectors,
    factors,
    n,
    offset,
    inside,
    SELECTION: tl.constexpr,
    MASTER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    weights, selection, gradient, exp_avg, exp_avg_sq, remainder, ties, master = vectors
    clip, decay, new_mean, old_square, new_square, root, eps, size = factors
    position = offset
    selected = inside
    if SELECTION == "positions":
        position = tl.load(selection + offset, inside, other=0)
    if SELECTION == "others":
        selected = inside & (tl.load(selection + offset, inside, other=0) == 0)

    if MASTER == "fp32":
        weight = tl.load(master + offset, inside, other=0.0)
    else:
        weight = _load(weights + position, inside)
    if MASTER == "lo16":
        byte = tl.load(ties + (offset >> 3), inside, other=0).to(tl.int32)
        wrapped = (byte >> (offset & 7).to(tl.int32)) & 1
        pattern = weight.to(tl.int32, bitcast=True)
        pattern += tl.load(remainder + offset, inside, other=0).to(tl.int32) + (wrapped << 16)
        weight = pattern.to(tl.float32, bitcast=True)

    slope = tl.load(gradient + offset, inside, other=0.0) * clip
    mean = _load(exp_avg + offset, inside)
    mean += (slope - mean) * new_mean
    square = _load(exp_avg_sq + offset, inside) * old_square
    square += slope * slope * new_square
    weight = weight * decay
    weight += tl.div_rn(mean, tl.sqrt_rn(square) * root + eps) * size
    _store(exp_avg + offset, mean, inside)  # 0 and remains so where not selected
    _store(exp_avg_sq + offset, square, inside)

    _store(weights + position, weight, selected)
    if MASTER == "fp32":
        tl.store(master + offset, weight, selected)
    if MASTER == "lo16":
        pattern = weight.to(tl.int32, bitcast=True)
        tl.store(remainder + offset, (pattern - (_bf16(weight) << 16)).to(tl.int16), selected)
        # Each byte written depends on all reads of that byte, so no write comes too early.
        tie = selected & ((pattern & 0x1FFFF) == 0x8000)
        places = tie.to(tl.int32).reshape(BLOCK // 8, 8) << tl.arange(0, 8)[None, :]
        byte_offset = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        bits = tl.sum(places, axis=1).to(tl.uint8)
        tl.store(ties + byte_offset, bits, byte_offset < tl.cdiv(n, 8))


@triton.jit
def _load(pointer, active):
    """Load fp32, fp16, or bf16 as its bits; fp32."""
    value = tl.load(pointer, active, other=0)
    if value.dtype == tl.int16:
        value = (value.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def _store(pointer, value, active):
    """Store fp32 as what `_load` would load."""
    if pointer.dtype.element_ty == tl.int16:
        tl.store(pointer, _bf16(value).to(tl.int16), active)
    else:
        tl.store(pointer, value.to(pointer.dtype.element_ty), active)


@triton.jit
def _bf16(value):
    """The bits of fp32 values rounded to bf16, to nearest and ties to even, as int32."""
    pattern = value.to(tl.int32, bitcast=True)
    rounded = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16
    return tl.where(value != value, 0x7FC0, rounded)
