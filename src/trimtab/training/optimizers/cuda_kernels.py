"""AdamW on the selected elements of a tensor in one Triton kernel, for CUDA.

An element's weight, gradient, state and remainder are read once and written once, and nothing of
the length of the vectors is allocated. Each operation rounds once, as in
`trimtab.training.optimizers.kernels.adamw_step`, which the kernel equals bit for bit, but for the
payload of a NaN. For that the compiler must neither contract a multiplication and an addition nor
flush subnormals; a test looks for both in what it makes. bf16 is converted by integer arithmetic on
its bits, so that compiler, device and interpreter have no say in it.

Importing this module needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.training.optimizers.kernels import AdamWFactors, ties_as_bits

OPTIONS = {"enable_fp_fusion": False}
"""For the compiler: a multiplication and an addition are not to be contracted."""

BLOCK = 1024
"""Elements per program; a multiple of 8, so that each program has bytes of tie bits to itself."""


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
        state: `exp_avg` and `exp_avg_sq`, fp32 or bf16 `[n]`. Beside them `remainder`, int16
            `[n]`, and `ties`, which become bits (see `trimtab.training.optimizers.kernels`) if
            they are not yet; or `master`, fp32 `[n]`; or neither, if the weights are the masters.
        factors: Numbers of the step.
    """
    n = gradient.numel()
    if not n:  # a process may have nothing of a sharded tensor
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
        # A byte that a program writes depends on all that it reads of it: nothing comes too early.
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
