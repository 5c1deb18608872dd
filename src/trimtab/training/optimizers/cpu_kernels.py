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
    LOW_BITS,
    TIE,
    DenseKernels,
    Kernels,
    add_ties,
    find_ties,
)

BITS = {torch.bfloat16: torch.uint16, torch.float32: torch.uint32}
"""Dtype of elements -> dtype of their bit patterns."""

GRAIN = 1 << 15
"""Fewer elements than this run on a single thread, as in torch."""

_one_at_a_time = Lock()  # Numba's `workqueue` threading layer is not thread-safe

Function = TypeVar("Function", bound=Callable[..., Any])

inlined: Callable[[Function], Function] = njit(inline="always")


@inlined
def _as_fp32(bits: Any) -> Any:
    """Widen the bits of a bf16 number to fp32."""
    return np.uint32(np.uint32(bits) << np.uint32(16))


@inlined
def _master(weight: Any, remainder: Any) -> Any:
    return np.uint32(_as_fp32(weight) + np.uint32(np.int32(remainder)))


@inlined
def _rounded(master: Any) -> Any:
    """Round the bits of an fp32 number to bf16, to nearest and ties to even."""
    if master & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):  # NaN, which rounding could lose
        return np.uint16(0x7FC0)
    odd = (master >> np.uint32(16)) & np.uint32(1)
    return np.uint16((master + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@inlined
def _is_tie(master: Any) -> Any:
    return (master & np.uint32(LOW_BITS)) == np.uint32(TIE)


# Positions are cast to unsigned, so that Numba does not handle negative indices.


@compiled(parallel=True)
def _read_fp32(dense: NDArray[Any], index: NDArray[Any], out: NDArray[np.float32]) -> None:
    for i in prange(index.size):
        out[i] = dense[np.uint64(index[i])]


@compiled(parallel=True)
def _add_fp32(dense: NDArray[Any], index: NDArray[Any], out: NDArray[np.float32]) -> None:
    for i in prange(index.size):
        out[i] += dense[np.uint64(index[i])]


@compiled(parallel=True)
def _write_fp32(dense: NDArray[Any], index: NDArray[Any], values: NDArray[np.float32]) -> None:
    for i in prange(index.size):
        dense[np.uint64(index[i])] = values[i]


@compiled(parallel=True)
def _read_bf16(dense: NDArray[Any], index: NDArray[Any], out: NDArray[np.uint32]) -> None:
    for i in prange(index.size):
        out[i] = _as_fp32(dense[np.uint64(index[i])])


@compiled(parallel=True)
def _add_bf16(dense: NDArray[Any], index: NDArray[Any], out: NDArray[np.float32]) -> None:
    for i in prange(index.size):
        out[i] += np.uint32(_as_fp32(dense[np.uint64(index[i])])).view(np.float32)


@compiled(parallel=True)
def _read_lo16(
    dense: NDArray[np.uint16],
    index: NDArray[Any],
    remainder: NDArray[np.int16],
    out: NDArray[np.uint32],
) -> None:
    for i in prange(index.size):
        out[i] = _master(dense[np.uint64(index[i])], remainder[i])


@compiled(parallel=True)
def _write_lo16(
    dense: NDArray[np.uint16],
    index: NDArray[Any],
    masters: NDArray[np.uint32],
    remainder: NDArray[np.int16],
) -> int:
    num_ties = 0
    for i in prange(index.size):
        weight = _rounded(masters[i])
        dense[np.uint64(index[i])] = weight
        remainder[i] = np.int16(masters[i] - _as_fp32(weight))
        num_ties += _is_tie(masters[i])
    return num_ties


# In the kernels below, `others` is empty if every element is selected.


@compiled(parallel=True)
def _collect_fp32(
    dense: NDArray[np.float32], others: NDArray[np.bool_], add: bool, out: NDArray[np.float32]
) -> None:
    whole = others.size == 0
    for i in prange(out.size):
        if whole or not others[i]:
            out[i] = out[i] + dense[i] if add else dense[i]
        else:
            out[i] = 0.0


@compiled(parallel=True)
def _collect_bf16(
    dense: NDArray[np.uint16], others: NDArray[np.bool_], add: bool, out: NDArray[np.float32]
) -> None:
    whole = others.size == 0
    for i in prange(out.size):
        if whole or not others[i]:
            value = np.uint32(_as_fp32(dense[i])).view(np.float32)
            out[i] = out[i] + value if add else value
        else:
            out[i] = 0.0


@compiled(parallel=True)
def _write_dense_fp32(
    dense: NDArray[np.float32], others: NDArray[np.bool_], values: NDArray[np.float32]
) -> None:
    whole = others.size == 0
    for i in prange(values.size):
        if whole or not others[i]:
            dense[i] = values[i]


@compiled(parallel=True)
def _read_dense_lo16(
    dense: NDArray[np.uint16], remainder: NDArray[np.int16], out: NDArray[np.uint32]
) -> None:
    for i in prange(out.size):
        out[i] = _master(dense[i], remainder[i])


@compiled(parallel=True)
def _write_dense_lo16(
    dense: NDArray[np.uint16],
    others: NDArray[np.bool_],
    masters: NDArray[np.uint32],
    remainder: NDArray[np.int16],
) -> int:
    whole = others.size == 0
    num_ties = 0
    for i in prange(masters.size):
        if whole or not others[i]:
            weight = _rounded(masters[i])
            dense[i] = weight
            remainder[i] = np.int16(masters[i] - _as_fp32(weight))
            num_ties += _is_tie(masters[i])
    return num_ties


class CpuKernels(Kernels):
    """Compiled kernels for fp32, and for bf16 with a 16-bit remainder; else the reference."""

    def __init__(self, index: Tensor) -> None:
        super().__init__(index)
        self._positions: NDArray[Any] = index.numpy()

    def read(self, dense: Tensor, out: Tensor) -> None:
        """See `Kernels`."""
        if dense.dtype == torch.float32:
            _run(_read_fp32, dense.numpy(), self._positions, out.numpy())
        elif dense.dtype == torch.bfloat16:
            _run(_read_bf16, _bits(dense), self._positions, _bits(out))
        else:
            super().read(dense, out)

    def add(self, dense: Tensor, out: Tensor) -> None:
        """See `Kernels`."""
        if dense.dtype == torch.float32:
            _run(_add_fp32, dense.numpy(), self._positions, out.numpy())
        elif dense.dtype == torch.bfloat16:
            _run(_add_bf16, _bits(dense), self._positions, out.numpy())
        else:
            super().add(dense, out)

    def write(self, dense: Tensor, values: Tensor) -> None:
        """See `Kernels`."""
        if dense.dtype == torch.float32:
            _run(_write_fp32, dense.numpy(), self._positions, values.numpy())
        else:
            super().write(dense, values)

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """See `Kernels`."""
        _run(_read_lo16, _bits(dense), self._positions, remainder.numpy(), _bits(out))
        add_ties(out, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """See `Kernels`."""
        num_ties = _run(
            _write_lo16, _bits(dense), self._positions, _bits(masters), remainder.numpy()
        )
        return find_ties(masters) if num_ties else masters.new_empty(0, dtype=torch.int32)


class CpuDenseKernels(DenseKernels):
    """Compiled kernels for fp32, and for bf16 with a 16-bit remainder; else the reference."""

    def __init__(self, others: Tensor | None) -> None:
        super().__init__(others)
        self._others: NDArray[Any] = np.empty(0, np.bool_) if others is None else others.numpy()

    def collect(self, dense: Tensor, out: Tensor, *, add: bool) -> None:
        """See `DenseKernels`."""
        if dense.dtype == torch.float32:
            _run(_collect_fp32, dense.numpy(), self._others, add, out.numpy())
        elif dense.dtype == torch.bfloat16:
            _run(_collect_bf16, _bits(dense), self._others, add, out.numpy())
        else:
            super().collect(dense, out, add=add)

    def write(self, dense: Tensor, values: Tensor) -> None:
        """See `DenseKernels`."""
        if dense.dtype == torch.float32:
            _run(_write_dense_fp32, dense.numpy(), self._others, values.numpy())
        else:
            super().write(dense, values)

    def read_lo16(self, dense: Tensor, remainder: Tensor, ties: Tensor, out: Tensor) -> None:
        """See `DenseKernels`."""
        _run(_read_dense_lo16, _bits(dense), remainder.numpy(), _bits(out))
        add_ties(out, ties)

    def write_lo16(self, dense: Tensor, masters: Tensor, remainder: Tensor) -> Tensor:
        """See `DenseKernels`."""
        num_ties = _run(
            _write_dense_lo16, _bits(dense), self._others, _bits(masters), remainder.numpy()
        )
        if not num_ties:
            return masters.new_empty(0, dtype=torch.int32)
        if self.others is not None:
            masters.masked_fill_(self.others, 0.0)
        return find_ties(masters)


def _bits(values: Tensor) -> NDArray[Any]:
    """The bit patterns of bf16 or fp32 elements, as a view."""
    bits: NDArray[Any] = values.view(BITS[values.dtype]).numpy()
    return bits


def _run(kernel: Callable[..., Any], *arrays: Any) -> Any:
    """Run a kernel over the elements of its last array, on torch's number of threads."""
    num_threads = 1 if arrays[-1].size < GRAIN else torch.get_num_threads()
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
