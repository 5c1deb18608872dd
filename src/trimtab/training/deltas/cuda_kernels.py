"""The functions of `trimtab.deltas.changes` in Triton kernels, for tensors on a GPU.

Two tensors are compared where they are, and what crosses to the host are their changes. A chunk is
read twice, to count and then to store; the second time it comes from the cache of the GPU, so that
memory is read once. torch's operations for the same (`!=`, `nonzero`, indexing) read and write 1.8
times as many bytes where 0.3 % changed, and 3.9 times as many where 9 % did, as counted by
`benchmarks.live_deltas`. A fingerprint reads its tensor once. All arithmetic is that of integers.
Importing this module needs Triton.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from trimtab.deltas import changes as host
from trimtab.deltas.changes import FIRST, ROW, SECOND, STRIDE, Changes
from trimtab.elements.dtypes import DType
from trimtab.training.optimizers.cuda_kernels import OPTIONS

CHUNK = 1 << 22
"""Elements compared at a time, which bounds the memory that the GPU needs beside the tensors."""

ROWS = 8
"""Rows to a program."""

WORDS = 4096
"""Words of 8 bytes to a program of the fingerprint."""

SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element -> the dtype of its bits in kernels."""


def find_changes(before: Tensor, after: Tensor, dtype: DType) -> Changes:
    """The changes that make one tensor the other, on the host.

    Beside the tensors, the GPU holds no more than 3 bytes and one element for each of `CHUNK`
    elements: 20 MiB for bf16.

    Args:
        before: Bits as integers, flat and contiguous.
        after: Bits of the same dtype and size, on the same device.
        dtype: What they mean.
    """
    parts = [
        _find_in_chunk(old, new, dtype)
        for old, new in zip(before.split(CHUNK), after.split(CHUNK), strict=True)
    ]
    return Changes.joined(parts)


def apply_changes(bits: Tensor, changes: Changes, *, is_float: bool, back: bool = False) -> None:
    """Make `after` of `before`, in place; by one kernel, so that nothing comes between.

    Args:
        bits: `before`, flat and contiguous.
        changes: As `find_changes` returned them, on the host.
        is_float: Whether the bits mean floats.
        back: Make `before` of `after` instead.
    """
    if not changes.places.size:
        return
    counts, places, steps, wide = _on(bits.device, changes)
    ends = counts.cumsum(0)
    starts = ends - counts
    wide_starts = torch.searchsorted((steps == host.WIDE).nonzero().view(-1), starts)
    with torch.cuda.device_of(bits):
        _apply[(triton.cdiv(counts.numel(), ROWS),)](
            _signed(bits),
            counts,
            starts,
            wide_starts,
            places,
            steps,
            wide,
            counts.numel(),
            FLOAT=is_float,
            BACK=back,
            ROW=ROW,
            ROWS=ROWS,
            **OPTIONS,
        )


def fingerprint(bits: Tensor) -> int:
    """The fingerprint of a flat, contiguous tensor."""
    content = bits.view(torch.uint8) if bits.numel() else bits.new_empty(0, dtype=torch.uint8)
    num = content.numel() // 8
    total = 0
    if num:
        words = content[: 8 * num]
        # A slice of a tensor may begin anywhere.
        words = (words if words.data_ptr() % 8 == 0 else words.clone()).view(torch.int64)
        sums = words.new_empty(triton.cdiv(num, WORDS))
        with torch.cuda.device_of(bits):
            _fingerprint[(sums.numel(),)](words, sums, num, STRIDE, FIRST, SECOND, WORDS, **OPTIONS)
        total = int(sums.sum())
    return host.fingerprint_of_last(content[8 * num :].cpu().numpy(), num, total)


def _find_in_chunk(before: Tensor, after: Tensor, dtype: DType) -> Changes:
    num, device = before.numel(), before.device
    num_rows = triton.cdiv(num, ROW)
    counts = torch.empty((2, num_rows), dtype=torch.int32, device=device)
    grid = (triton.cdiv(num_rows, ROWS),)
    options = {"FLOAT": dtype.is_float, "ROW": ROW, "ROWS": ROWS, **OPTIONS}
    pair = _signed(before), _signed(after)
    nothing = (None, None, None, None)
    with torch.cuda.device_of(before):
        if num:
            _find[grid](*pair, counts, *nothing, num, num_rows, STORE=False, **options)
        ends = counts.cumsum(1, dtype=torch.int32)
        num_changed, num_wide = ends[:, -1].tolist() if num else (0, 0)
        places = torch.empty(num_changed, dtype=torch.uint8, device=device)
        steps = torch.empty(num_changed, dtype=torch.int8, device=device)
        wide = torch.empty(num_wide, dtype=pair[0].dtype, device=device)
        if num_changed:
            stored = ends.sub_(counts), places, steps, wide
            _find[grid](*pair, counts, *stored, num, num_rows, STORE=True, **options)
    return Changes(
        counts[0].to(torch.int16).cpu().numpy().view(np.uint16),
        places.cpu().numpy(),
        steps.cpu().numpy(),
        wide.cpu().numpy().view(dtype.bits),
    )


def _on(device: torch.device, changes: Changes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The arrays of changes on a device; its counts as int64."""
    counts = torch.from_numpy(changes.counts.view(np.int16)).to(device).long()
    wide = changes.wide.view(f"i{changes.wide.itemsize}")
    places, steps = torch.from_numpy(changes.places), torch.from_numpy(changes.steps)
    return counts, places.to(device), steps.to(device), torch.from_numpy(wide).to(device)


def _signed(bits: Tensor) -> Tensor:
    return bits.view(SIGNED[bits.element_size()])


@triton.jit
def _find(
    before,
    after,
    counts,
    starts,
    places,
    steps,
    wide,
    num,
    num_rows,
    STORE: tl.constexpr,
    FLOAT: tl.constexpr,
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Count the changes and the wide ones of each row; or store them where rows start."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, ROW)[None, :]
    position = row[:, None] * ROW + lane
    inside = position < num
    old = tl.load(before + position, inside, other=0)
    new = tl.load(after + position, inside, other=0)
    distance = _ordered(new, FLOAT) - _ordered(old, FLOAT)
    distance = distance.to(before.dtype.element_ty)  # modulo 2 to the number of its bits
    changed = old != new
    is_wide = changed & ((distance > 127) | (distance < -127))
    changed, is_wide = changed.to(tl.int32), is_wide.to(tl.int32)
    if STORE:
        start = tl.load(starts + row, row < num_rows, other=0)
        wide_start = tl.load(starts + num_rows + row, row < num_rows, other=0)
        to = start[:, None] + tl.cumsum(changed, 1) - 1
        tl.store(places + to, (lane + tl.zeros_like(to)).to(tl.uint8), changed != 0)
        tl.store(steps + to, tl.where(is_wide != 0, -128, distance).to(tl.int8), changed != 0)
        wide_to = wide_start[:, None] + tl.cumsum(is_wide, 1) - 1
        tl.store(wide + wide_to, distance, is_wide != 0)
    else:
        tl.store(counts + row, tl.sum(changed, 1), row < num_rows)
        tl.store(counts + num_rows + row, tl.sum(is_wide, 1), row < num_rows)


@triton.jit
def _apply(
    bits,
    counts,
    starts,
    wide_starts,
    places,
    steps,
    wide,
    num_rows,
    FLOAT: tl.constexpr,
    BACK: tl.constexpr,
    ROW: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    lane = tl.arange(0, ROW)[None, :]
    count = tl.load(counts + row, row < num_rows, other=0)
    start = tl.load(starts + row, row < num_rows, other=0)
    wide_start = tl.load(wide_starts + row, row < num_rows, other=0)
    active = lane < count[:, None]
    entry = start[:, None] + lane
    place = tl.load(places + entry, active, other=0)
    step = tl.load(steps + entry, active, other=0)
    is_wide = active & (step == -128)
    wide_entry = wide_start[:, None] + tl.cumsum(is_wide.to(tl.int32), 1) - 1
    distance = tl.load(wide + wide_entry, is_wide, other=0)
    distance = tl.where(is_wide, distance, step.to(bits.dtype.element_ty))
    element = bits + row[:, None] * ROW + place
    value = _ordered(tl.load(element, active, other=0), FLOAT)
    value = value - distance if BACK else value + distance
    value = _ordered(value.to(bits.dtype.element_ty), FLOAT)
    tl.store(element, value.to(bits.dtype.element_ty), active)


@triton.jit
def _ordered(bits, FLOAT: tl.constexpr):
    """Floats in the order of their values, and back: of negative ones all but the sign is inverted.

    int64 if the bits are, else int32.
    """
    size: tl.constexpr = bits.dtype.primitive_bitwidth
    if size < 32:
        bits = bits.to(tl.int32)
    if FLOAT:
        negative = bits < 0
        bits = tl.where(negative, bits ^ ((1 << (size - 1)) - 1), bits)
    return bits


@triton.jit
def _fingerprint(words, sums, num, stride, first, second, WORDS: tl.constexpr):
    """The sum of the mixed words of each program."""
    offset = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    inside = offset < num
    word = tl.load(words + offset, inside, other=0) + stride * (offset + 1)
    word = (word ^ ((word >> 32) & 0xFFFFFFFF)) * first
    word = (word ^ ((word >> 29) & 0x7FFFFFFFF)) * second
    word = word ^ ((word >> 31) & 0x1FFFFFFFF)
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(inside, word, 0)))
