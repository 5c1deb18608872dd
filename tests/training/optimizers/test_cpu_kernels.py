"""The compiled kernels do, bit for bit, what the reference in torch does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.optimizers.reference import bits
from trimtab.training.optimizers.cpu_kernels import CpuDenseKernels, CpuKernels
from trimtab.training.optimizers.elements import dense_kernels_for, kernels_for
from trimtab.training.optimizers.kernels import DenseKernels, Kernels

pytestmark = pytest.mark.train

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def both(n: int, seed: int) -> tuple[torch.Generator, list[Kernels], int]:
    generator = torch.Generator().manual_seed(seed)
    index = (torch.rand(n, generator=generator) < 0.3).nonzero().flatten().int()
    return generator, [Kernels(index), CpuKernels(index)], len(index)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 50, 70_001])
def test_read_add_write(dtype: torch.dtype, n: int) -> None:
    generator, kernels, k = both(n, seed=n)
    dense = torch.randn(n, generator=generator).to(dtype)
    values = torch.randn(k, generator=generator)
    results = []
    for one in kernels:
        read, added, written = torch.empty(k), values.clone(), dense.clone()
        one.read(dense, read)
        one.add(dense, added)
        one.write(written, values)
        results.append([read, added, written])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(bits(expected), bits(found))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=200), st.integers(0, 99))
@settings(deadline=None)
def test_lo16_of_any_pattern(patterns: list[int], seed: int) -> None:
    masters = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    masters = torch.where(masters.isnan(), 1.5, masters)  # whose payload each treats as it likes
    n = 3 * len(masters)
    index = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: len(masters)]
    index = index.sort().values.int()
    results = []
    for one in (Kernels(index), CpuKernels(index)):
        dense = torch.arange(n).bfloat16()
        remainder = torch.empty(len(masters), dtype=torch.int16)
        ties = one.write_lo16(dense, masters, remainder)
        joined = torch.empty(len(masters))
        one.read_lo16(dense, remainder, ties, joined)
        assert torch.equal(bits(joined), bits(masters))
        results.append([bits(dense), remainder, ties])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


def test_lo16_of_nan_stays_nan() -> None:
    nans: Tensor = torch.tensor([0x7F800001, -1, -(2**31) + 0x7FFE8000], dtype=torch.int32)
    kernels = CpuKernels(torch.arange(3, dtype=torch.int32))
    dense, remainder = torch.zeros(3).bfloat16(), torch.zeros(3, dtype=torch.int16)
    ties = kernels.write_lo16(dense, nans.view(torch.float32), remainder)
    joined = torch.zeros(3)
    kernels.read_lo16(dense, remainder, ties, joined)
    assert dense.isnan().all()
    assert joined.isnan().all()


def dense_kernels(n: int, density: float) -> tuple[torch.Generator, list[DenseKernels]]:
    generator = torch.Generator().manual_seed(n)
    others = torch.rand(n, generator=generator) >= density if density < 1.0 else None
    return generator, [DenseKernels(others), CpuDenseKernels(others)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", [0.8, 1.0])
@pytest.mark.parametrize("n", [1, 50, 70_001])
def test_collect_and_write_dense(dtype: torch.dtype, density: float, n: int) -> None:
    generator, kernels = dense_kernels(n, density)
    dense = torch.randn(n, generator=generator).to(dtype)
    gradient = torch.where(torch.rand(n, generator=generator) < 0.1, float("inf"), dense)
    values = torch.randn(n, generator=generator)
    results = []
    for one in kernels:
        copied, added, written = torch.empty(n), values.clone(), dense.clone()
        one.collect(gradient.to(dtype), copied, add=False)
        one.collect(gradient.to(dtype), added, add=True)
        one.write(written, values)
        results.append([copied, added, written])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(bits(expected), bits(found))


@pytest.mark.parametrize("density", [0.8, 1.0])
def test_lo16_dense(density: float) -> None:
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    high = torch.tensor([0x0000, 0x0001, 0x3F80, 0x3F81, 0x7F7F, 0x7F80], dtype=torch.int32) << 16
    patterns = (high[:, None] + low).flatten()
    patterns = patterns[~patterns.view(torch.float32).isnan()].repeat(3)
    masters = patterns.view(torch.float32)
    _, kernels = dense_kernels(len(masters), density)
    results = []
    for one in kernels:
        dense, remainder = torch.ones(len(masters)).bfloat16(), torch.zeros_like(patterns).short()
        ties = one.write_lo16(dense, masters.clone(), remainder)
        joined = torch.empty(len(masters))
        one.read_lo16(dense, remainder, ties, joined)
        expected = masters if one.others is None else torch.where(one.others, 1.0, masters)
        assert torch.equal(bits(joined), bits(expected))
        results.append([bits(dense), remainder, ties])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
    assert len(results[0][2]) > 0


def test_threads_are_as_many_as_torchs_and_torchs_stay_as_many() -> None:
    code = """
import numba, torch
from trimtab.training.optimizers.elements import kernels_for
from trimtab.training.optimizers.cpu_kernels import GRAIN, CpuKernels
torch.set_num_threads(1)
dense, out = torch.randn(2 * GRAIN), torch.empty(GRAIN)
CpuKernels(torch.arange(GRAIN, dtype=torch.int32)).read(dense, out)
print(torch.get_num_threads(), numba.get_num_threads(), torch.equal(out, dense[:GRAIN]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "True"]


def test_other_devices_get_the_reference() -> None:
    assert type(kernels_for(torch.empty(0, dtype=torch.int32, device="meta"))) is Kernels
    assert type(kernels_for(torch.empty(0, dtype=torch.int32))) is CpuKernels
    assert type(dense_kernels_for(None, torch.device("meta"))) is DenseKernels
    assert type(dense_kernels_for(None, torch.device("cpu"))) is CpuDenseKernels
