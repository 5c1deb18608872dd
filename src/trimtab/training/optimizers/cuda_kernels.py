"""AdamW on the selected elements of a tensor in one Triton kernel, for CUDA.

Weight, gradient, state and remainder are read and written once, and no temporary vectors are
allocated. Each operation rounds once, as in `trimtab.training.optimizers.kernels.adamw_step`; the
results are the same bit for bit, except for the payload of a NaN. This requires that the compiler
neither contracts multiplications and additions nor flushes subnormals, which a test verifies in the
generated code. bf16 is converted by integer arithmetic on its bits, so that the result depends
neither on the compiler nor on the device. Importing this module needs Triton.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.training.optimizers import kernels
from trimtab.training.optimizers.kernels import (
    LARGEST,
    AdamWFactors,
    Kernels,
    Positions,
    ties_as_bits,
)

OPTIONS = {"enable_fp_fusion": False}
"""Compiler options: do not contract a multiplication and an addition."""

BLOCK = 1024
"""Elements per program; a multiple of 8, so that no two programs share a byte of tie bits, and of
`kernels.BLOCK`, so that none shares a scale."""

ROUND = tl.constexpr(12582912.0)
"""1.5 · 2²³: added to a smaller fp32 number and subtracted again, it rounds to a whole number."""

MOST = tl.constexpr(LARGEST)


class CudaKernels(Kernels):
    """Collects gradients without a list of positions in 64 bits; else the reference."""

    def read(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        self._collect(dense, out, start, add=False)

    def add(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        self._collect(dense, out, start, add=True)

    def _collect(self, dense: Tensor, out: Tensor, start: int, *, add: bool) -> None:
        n = out.numel()
        if not n:
            return
        with torch.cuda.device_of(dense):
            _collect[(triton.cdiv(n, BLOCK),)](
                _loadable(dense),
                self.positions.bases,
                self.positions.offsets,
                start,
                _loadable(out),
                n,
                ADD=add,
                SHARED=kernels.BLOCK,
                BLOCK=BLOCK,
                **OPTIONS,
            )


def fused_adamw_step(
    weights: Tensor,
    positions: Positions,
    gradient: Tensor,
    state: dict[str, Tensor],
    factors: AdamWFactors,
) -> None:
    """Step the selected elements of a tensor, in place.

    Args:
        weights: All weights of the tensor, flat; bf16, fp16 or fp32.
        positions: Which of them are selected.
        gradient: bf16, fp16 or fp32 `[n]`; is not changed.
        state: `exp_avg` and `exp_avg_sq`, fp32 or bf16 `[n]`; or their codes, with `exp_avg_scale`
            and `exp_avg_sq_scale`. In addition `remainder`, int16 `[n]`, and `ties`, which are
            converted to bits (see `trimtab.training.optimizers.kernels`); or `remainder`, int8
            `[n]`; or `master`, fp32 `[n]`; or none, if the weights are the masters.
        factors: Factors of the step.
    """
    n = gradient.numel()
    if not n:  # a process may hold no elements of a sharded tensor
        return
    master = "fp32" if "master" in state else "none"
    if "remainder" in state:
        master = "lo16" if "ties" in state else "lo8"
    if master == "lo16":
        state["ties"] = ties_as_bits(state["ties"], n)
    is_encoded = "exp_avg_scale" in state
    with torch.cuda.device_of(weights):
        _step[(triton.cdiv(n, BLOCK),)](
            _loadable(weights),
            positions.bases,
            positions.offsets,
            _loadable(gradient),
            _loadable(state["exp_avg"]),
            _loadable(state["exp_avg_sq"]),
            state.get("exp_avg_scale"),
            state.get("exp_avg_sq_scale"),
            _values_on(weights.device) if is_encoded else None,
            state.get("remainder"),
            state.get("ties"),
            state.get("master"),
            n,
            *factors,
            MASTER=master,
            ENCODED=is_encoded,
            SHARED=kernels.BLOCK,
            BLOCK=BLOCK,
            **OPTIONS,
        )


@cache
def _values_on(device: torch.device) -> Tensor:
    """What codes stand for, "signed" and then "squares": fp32 `[512]`."""
    values = [kernels.code_values(code) for code in ("signed", "squares")]
    return torch.cat(values).to(device)


def _loadable(values: Tensor) -> Tensor:
    """bf16 as its bits, int16."""
    return values.view(torch.int16) if values.dtype == torch.bfloat16 else values


@triton.jit
def _position(bases, offsets, rank, inside, SHARED: tl.constexpr):
    """Positions of selected elements, int64."""
    base = tl.load(bases + rank // SHARED, inside, other=0).to(tl.int64)
    return base + tl.load(offsets + rank, inside, other=0)


@triton.jit
def _collect(
    dense,
    bases,
    offsets,
    start,
    out,
    n,
    ADD: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < n
    position = _position(bases, offsets, start + offset, inside, SHARED)
    value = tl.load(dense + position, inside, other=0)
    if out.dtype.element_ty == dense.dtype.element_ty and not ADD:
        tl.store(out + offset, value, inside)
    else:
        value = _load(dense + position, inside)
        if ADD:
            value += _load(out + offset, inside)
        _store(out + offset, value, inside)


@triton.jit
def _step(
    weights,
    bases,
    offsets,
    gradient,
    exp_avg,
    exp_avg_sq,
    exp_avg_scale,
    exp_avg_sq_scale,
    values,
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
    MASTER: tl.constexpr,
    ENCODED: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    offset = program * BLOCK + tl.arange(0, BLOCK)
    moments = (exp_avg, exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, values)
    vectors = (weights, bases, offsets, gradient, moments, remainder, ties, master)
    factors = (clip, decay, new_mean, old_square, new_square, root, eps, size)
    if (program + 1) * BLOCK <= n:  # without a mask, a thread loads 16 bytes at once
        inside = tl.full((BLOCK,), True, tl.int1)
        _step_block(vectors, factors, n, offset, inside, MASTER, ENCODED, SHARED, BLOCK)
    else:
        _step_block(vectors, factors, n, offset, offset < n, MASTER, ENCODED, SHARED, BLOCK)


@triton.jit
def _step_block(
    vectors,
    factors,
    n,
    offset,
    inside,
    MASTER: tl.constexpr,
    ENCODED: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    weights, bases, offsets, gradient, moments, remainder, ties, master = vectors
    exp_avg, exp_avg_sq, exp_avg_scale, exp_avg_sq_scale, values = moments
    clip, decay, new_mean, old_square, new_square, root, eps, size = factors
    position = _position(bases, offsets, offset, inside, SHARED)

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
    if MASTER == "lo8":
        pattern = weight.to(tl.int32, bitcast=True)
        pattern += tl.load(remainder + offset, inside, other=0).to(tl.int32) << 8
        weight = pattern.to(tl.float32, bitcast=True)

    slope = _load(gradient + offset, inside) * clip
    if ENCODED:
        mean = _decode(exp_avg, exp_avg_scale, values, offset, inside, SHARED)
        square = _decode(exp_avg_sq, exp_avg_sq_scale, values + 256, offset, inside, SHARED)
    else:
        mean = _load(exp_avg + offset, inside)
        square = _load(exp_avg_sq + offset, inside)
    mean += (slope - mean) * new_mean
    square = square * old_square
    square += slope * slope * new_square
    weight = weight * decay
    weight += tl.div_rn(mean, tl.sqrt_rn(square) * root + eps) * size
    if ENCODED:
        mean = tl.minimum(tl.maximum(mean, -MOST), MOST)
        scale = _scale(exp_avg_scale, mean, n, SHARED, BLOCK)
        code = tl.div_rn(mean, scale + tl.abs(mean)) * 254.0
        code = (code + ROUND) - ROUND
        tl.store(exp_avg + offset, code.to(tl.int8), inside)
        square = tl.minimum(square, MOST)
        scale = _scale(exp_avg_sq_scale, square, n, SHARED, BLOCK)
        code = tl.sqrt_rn(tl.div_rn(square, scale)) * 255.0
        code = tl.maximum((code + ROUND) - ROUND, 1.0)
        code = tl.where(square == 0.0, 0.0, code)
        tl.store(exp_avg_sq + offset, code.to(tl.uint8), inside)
    else:
        _store(exp_avg + offset, mean, inside)
        _store(exp_avg_sq + offset, square, inside)

    if MASTER == "lo8":
        pattern = weight.to(tl.int32, bitcast=True)
        upper = (pattern >> 8) & 0xFFFFFF
        upper += (((pattern & 0xFF) + (upper & 1)) > 0x80).to(tl.int32)
        upper = tl.where(weight != weight, 0x7FC000, upper)
        high = (upper + 0x80) >> 8
        tl.store(weights + position, high.to(tl.int16), inside)
        tl.store(remainder + offset, (upper - (high << 8)).to(tl.int8), inside)
    else:
        _store(weights + position, weight, inside)
    if MASTER == "fp32":
        tl.store(master + offset, weight, inside)
    if MASTER == "lo16":
        pattern = weight.to(tl.int32, bitcast=True)
        tl.store(remainder + offset, (pattern - (_bf16(weight) << 16)).to(tl.int16), inside)
        # Each byte written depends on all reads of that byte, so no write comes too early.
        tie = inside & ((pattern & 0x1FFFF) == 0x8000)
        places = tie.to(tl.int32).reshape(BLOCK // 8, 8) << tl.arange(0, 8)[None, :]
        byte_offset = tl.program_id(0).to(tl.int64) * (BLOCK // 8) + tl.arange(0, BLOCK // 8)
        bits = tl.sum(places, axis=1).to(tl.uint8)
        tl.store(ties + byte_offset, bits, byte_offset < tl.cdiv(n, 8))


@triton.jit
def _decode(codes, scales, values, offset, inside, SHARED: tl.constexpr):
    """What codes stand for, fp32."""
    code = tl.load(codes + offset, inside, other=0).to(tl.int32) & 0xFF
    return tl.load(scales + offset // SHARED, inside, other=0.0) * tl.load(values + code)


@triton.jit
def _scale(scales, value, n, SHARED: tl.constexpr, BLOCK: tl.constexpr):
    """Store the scales of the blocks of a program; the scale of each number, with 1 for 0."""
    blocks = tl.abs(value).reshape(BLOCK // SHARED, SHARED)
    scale = tl.max(blocks, axis=1)
    block = tl.program_id(0).to(tl.int64) * (BLOCK // SHARED) + tl.arange(0, BLOCK // SHARED)
    tl.store(scales + block, scale, block < tl.cdiv(n, SHARED))
    each = tl.broadcast_to(scale[:, None], (BLOCK // SHARED, SHARED)).reshape(BLOCK)
    return tl.where(each == 0.0, 1.0, each)


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
