"""The kernels of the sparse optimizers for a CPU, compiled with Numba.

torch's `index_select` of a flat tensor is single-threaded, and joining or splitting bf16 weights
and remainders takes a pass over memory per operation. Here each is one multithreaded pass.

Import this module lazily: it loads Numba and compiles once per machine (then cached on disk).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numba import njit, prange
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements.simd import compiled
from trimtab.training.optimizers.kernels import (
    BLOCK,
    LARGEST,
    LOW_BITS,
    TIE,
    Code,
    Kernels,
    Positions,
    add_ties,
    code_values,
)

BITS = {torch.bfloat16: torch.uint16, torch.float32: torch.uint32}
"""Dtype of elements -> dtype of their bit patterns."""

GRAIN = 1 << 15
"""Fewer elements than this run on a single thread, as in torch."""

PART = 1 << 12
"""Elements that a thread takes at a time where it sums or counts; the sum of all parts is the same
for any number of threads. A multiple of `BLOCK`."""

_one_at_a_time = Lock()  # Numba's `workqueue` threading layer is not thread-safe

Function = TypeVar("Function", bound=Callable[..., Any])

inlined: Callable[[Function], Function] = njit(inline="always")


@inlined
def as_fp32(bits: Any) -> Any:
    """Widen the bits of a bf16 number to fp32."""
    return np.uint32(np.uint32(bits) << np.uint32(16))


@inlined
def joined_lo16(weight: Any, remainder: Any) -> Any:
    """The bits of a master, given those of its weight as fp32."""
    return np.uint32(weight + np.uint32(np.int32(remainder)))


@inlined
def rounded(master: Any) -> Any:
    """Round the bits of an fp32 number to bf16, to nearest and ties to even."""
    if master & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):  # NaN, which rounding could lose
        return np.uint16(0x7FC0)
    odd = (master >> np.uint32(16)) & np.uint32(1)
    return np.uint16((master + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@inlined
def is_tie(master: Any) -> Any:
    """Whether the bits of a master are half way above those of an even weight."""
    return (master & np.uint32(LOW_BITS)) == np.uint32(TIE)


@inlined
def split_24(master: Any) -> Any:
    """Round the bits of an fp32 number to its upper 24, and these to bf16; see `split_lo8`."""
    odd = (master >> np.uint32(8)) & np.uint32(1)
    upper = (master + np.uint32(0x7F) + odd) >> np.uint32(8)
    if master & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        upper = np.uint32(0x7FC000)
    return upper, np.uint32((upper + np.uint32(0x80)) >> np.uint32(8))


# Each block has a base of its positions.


@inlined
def rank_of(block: Any, j: Any) -> Any:
    """Number of an element of a block; unsigned, so that Numba handles no negative indices."""
    return np.uint64(block) * np.uint64(BLOCK) + np.uint64(j)


@compiled(parallel=True)
def _read(
    dense: NDArray[Any],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[Any],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            out[i] = dense[position]


@compiled(parallel=True)
def _add_fp32(
    dense: NDArray[Any],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[np.float32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            out[i] += dense[position]


@compiled(parallel=True)
def _write_fp32(
    dense: NDArray[Any],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    values: NDArray[np.float32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            dense[position] = values[i]


@compiled(parallel=True)
def _read_bf16(
    dense: NDArray[Any],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[np.uint32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            out[i] = as_fp32(dense[position])


@compiled(parallel=True)
def _add_bf16(
    dense: NDArray[Any],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    out: NDArray[np.float32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            out[i] += np.uint32(as_fp32(dense[position])).view(np.float32)


@compiled(parallel=True)
def _read_lo16(
    dense: NDArray[np.uint16],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    remainder: NDArray[np.int16],
    out: NDArray[np.uint32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            out[i] = joined_lo16(as_fp32(dense[position]), remainder[i])


@compiled(parallel=True)
def _write_lo16(
    dense: NDArray[np.uint16],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    masters: NDArray[np.uint32],
    num_ties: NDArray[np.uint8],
    remainder: NDArray[np.int16],
) -> None:
    for block in prange(bases.size):
        base, ties = np.int64(bases[block]), 0
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            weight = rounded(masters[i])
            dense[np.uint64(base + offsets[i])] = weight
            remainder[i] = np.int16(masters[i] - as_fp32(weight))
            ties += is_tie(masters[i])
        num_ties[block] = ties


@compiled()
def ties_of(masters: NDArray[np.uint32], num_ties: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Positions of ties, given their number in each block."""
    ties = np.empty(num_ties.sum(), np.int32)
    count = 0
    for block in range(num_ties.size):
        if num_ties[block]:
            for i in range(block * BLOCK, min((block + 1) * BLOCK, masters.size)):
                if is_tie(masters[i]):
                    ties[count] = i
                    count += 1
    return ties


@compiled(parallel=True)
def _read_lo8(
    dense: NDArray[np.uint16],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    remainder: NDArray[np.int8],
    out: NDArray[np.uint32],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            low = np.uint32(np.int32(remainder[i]) << np.int32(8))
            out[i] = np.uint32(as_fp32(dense[position]) + low)


@compiled(parallel=True)
def _write_lo8(
    dense: NDArray[np.uint16],
    bases: NDArray[Any],
    offsets: NDArray[Any],
    masters: NDArray[np.uint32],
    remainder: NDArray[np.int8],
) -> None:
    for block in prange(bases.size):
        base = np.int64(bases[block])
        for j in range(min(BLOCK, offsets.size - block * BLOCK)):
            i = rank_of(block, j)
            position = np.uint64(base + offsets[i])
            upper, weight = split_24(masters[i])
            dense[position] = np.uint16(weight)
            remainder[i] = np.int8(np.int32(upper) - np.int32(weight << np.uint32(8)))


@inlined
def _scale_of(values: Any, count: Any) -> Any:
    scale = np.float32(0.0)
    for j in range(count):
        scale = max(scale, abs(values[np.uint64(j)]))
    return min(scale, np.float32(LARGEST))


@inlined
def encoded_signed(values: Any, block: Any, count: Any, scales: Any, codes: Any) -> Any:
    """Encode the numbers of a block; see `kernels.encode`."""
    largest = np.float32(LARGEST)
    scale = _scale_of(values, count)
    scales[block] = scale
    least = scale if scale > np.float32(0.0) else np.float32(1.0)
    for j in range(count):
        value = min(max(values[np.uint64(j)], -largest), largest)
        code = value / (least + abs(value)) * np.float32(254.0)
        codes[rank_of(block, j)] = np.int8(np.rint(code))


@inlined
def encoded_squares(values: Any, block: Any, count: Any, scales: Any, codes: Any) -> Any:
    """Encode the numbers of a block, none of them negative; see `kernels.encode`."""
    scale = _scale_of(values, count)
    scales[block] = scale
    least = scale if scale > np.float32(0.0) else np.float32(1.0)
    for j in range(count):
        value = min(values[np.uint64(j)], np.float32(LARGEST))
        code = np.rint(np.sqrt(value / least) * np.float32(255.0))
        smallest = np.float32(1.0) if value > np.float32(0.0) else np.float32(0.0)
        codes[rank_of(block, j)] = np.uint8(max(code, smallest))


@inlined
def decoded(codes: Any, scales: Any, table: Any, block: Any, count: Any, out: Any) -> Any:
    """Write what the codes of a block stand for to the beginning of `out`."""
    scale = scales[block]
    for j in range(count):
        out[np.uint64(j)] = scale * table[codes[rank_of(block, j)]]


@compiled(parallel=True, error_model="numpy")
def _encode_signed(
    values: NDArray[np.float32], scales: NDArray[np.float32], codes: NDArray[np.int8]
) -> None:
    for block in prange(scales.size):
        count = min(BLOCK, values.size - block * BLOCK)
        encoded_signed(values[block * BLOCK : block * BLOCK + count], block, count, scales, codes)


@compiled(parallel=True, error_model="numpy")
def _encode_squares(
    values: NDArray[np.float32], scales: NDArray[np.float32], codes: NDArray[np.uint8]
) -> None:
    for block in prange(scales.size):
        count = min(BLOCK, values.size - block * BLOCK)
        encoded_squares(values[block * BLOCK : block * BLOCK + count], block, count, scales, codes)


@compiled(parallel=True)
def _decode(
    codes: NDArray[np.uint8],
    scales: NDArray[np.float32],
    table: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    for block in prange(scales.size):
        count = min(BLOCK, out.size - block * BLOCK)
        decoded(codes, scales, table, block, count, out[block * BLOCK : block * BLOCK + count])


@inlined
def _value(bits: Any, shift: Any) -> Any:
    """The number of the bits of fp32 shifted to the right, in fp64."""
    return np.float64(np.uint32(np.uint32(bits) << shift).view(np.float32))


@compiled(parallel=True, fastmath={"reassoc"})  # so that vector instructions add
def _sum_of_squares(bits: NDArray[Any], shift: int, sums: NDArray[np.float64]) -> None:
    by = np.uint32(shift)
    for part in prange(sums.size):
        total = np.float64(0.0)
        for j in range(min(PART, bits.size - part * PART)):
            value = _value(bits[np.uint64(part) * np.uint64(PART) + np.uint64(j)], by)
            total += value * value
        sums[part] = total


class CpuKernels(Kernels):
    """Compiled kernels for fp32, and for bf16 with a remainder; else the reference.

    Attributes:
        bases: Those of the positions.
        offsets: Those of the positions.
    """

    def __init__(self, positions: Positions) -> None:
        super().__init__(positions)
        self.bases, self.offsets = positions.bases.numpy(), positions.offsets.numpy()

    def _packed(self, vector: Tensor, start: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Bases and offsets of the elements of a vector."""
        stop = start + len(vector)
        return self.bases[start // BLOCK : -(-stop // BLOCK)], self.offsets[start:stop]

    def read(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        if dense.dtype == out.dtype and dense.dtype in BITS:
            run(_read, bits_of(dense), *self._packed(out, start), bits_of(out))
        elif dense.dtype == torch.bfloat16 and out.dtype == torch.float32:
            run(_read_bf16, bits_of(dense), *self._packed(out, start), bits_of(out))
        else:
            super().read(dense, out, start)

    def add(self, dense: Tensor, out: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        if dense.dtype == torch.float32:
            run(_add_fp32, dense.numpy(), *self._packed(out, start), out.numpy())
        elif dense.dtype == torch.bfloat16:
            run(_add_bf16, bits_of(dense), *self._packed(out, start), out.numpy())
        else:
            super().add(dense, out, start)

    def write(self, dense: Tensor, values: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        if dense.dtype == torch.float32:
            run(_write_fp32, dense.numpy(), *self._packed(values, start), values.numpy())
        else:
            super().write(dense, values, start)

    def read_lo16(
        self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor, start: int = 0
    ) -> None:
        """See `Kernels`."""
        run(_read_lo16, bits_of(dense), *self._packed(out, start), remainder.numpy(), bits_of(out))
        add_ties(out, ties)

    def write_lo16(
        self, dense: Tensor, masters: Tensor, remainder: Tensor, start: int = 0
    ) -> Tensor:
        """See `Kernels`."""
        bits, num_ties = bits_of(masters), np.empty(-(-len(masters) // BLOCK), np.uint8)
        run(
            _write_lo16,
            bits_of(dense),
            *self._packed(masters, start),
            bits,
            num_ties,
            remainder.numpy(),
        )
        return torch.from_numpy(ties_of(bits, num_ties))

    def read_lo8(self, dense: Tensor, remainder: Tensor, out: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        run(_read_lo8, bits_of(dense), *self._packed(out, start), remainder.numpy(), bits_of(out))

    def write_lo8(self, dense: Tensor, masters: Tensor, remainder: Tensor, start: int = 0) -> None:
        """See `Kernels`."""
        run(
            _write_lo8,
            bits_of(dense),
            *self._packed(masters, start),
            bits_of(masters),
            remainder.numpy(),
        )

    def encode(self, values: Tensor, code: Code, codes: Tensor, scales: Tensor) -> None:
        """See `Kernels`."""
        kernel = _encode_signed if code == "signed" else _encode_squares
        run(kernel, values.numpy(), scales.numpy(), codes.numpy())

    def decode(self, codes: Tensor, code: Code, scales: Tensor, out: Tensor) -> None:
        """See `Kernels`."""
        table = code_values(code).numpy()
        run(_decode, codes.view(torch.uint8).numpy(), scales.numpy(), table, out.numpy())


def sum_of_squares(values: Tensor) -> Tensor:
    """See `kernels.sum_of_squares`; the same for any number of threads."""
    sums = np.empty(-(-len(values) // PART), np.float64)
    shift = 16 if values.dtype == torch.bfloat16 else 0
    run(_sum_of_squares, bits_of(values), shift, sums, size=len(values))
    return torch.tensor(sums.sum())


def bits_of(values: Tensor) -> NDArray[Any]:
    """The bit patterns of bf16 or fp32 elements, as a view."""
    bits: NDArray[Any] = values.view(BITS[values.dtype]).numpy()
    return bits


def run(kernel: Callable[..., Any], *arrays: Any, size: int | None = None) -> Any:
    """Run a kernel on torch's number of threads; `size` elements, or those of its last array."""
    size = arrays[-1].size if size is None else size
    num_threads = 1 if size < GRAIN else torch.get_num_threads()
    with _one_at_a_time:
        _start_threads()
        num_threads = min(num_threads, numba.config.NUMBA_NUM_THREADS)
        if numba.get_num_threads() != num_threads:
            numba.set_num_threads(num_threads)
        return kernel(*arrays)


@cache
def _start_threads() -> None:
    """Start Numba's threads, and undo what that does to torch's number of threads with OpenMP."""
    num_threads = torch.get_num_threads()
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    torch.set_num_threads(num_threads)
