"""The compiled kernels do, bit for bit, what the reference in torch does."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.optimizers.reference import bits
from trimtab.training.optimizers import kernels as reference
from trimtab.training.optimizers.cpu_kernels import CpuKernels
from trimtab.training.optimizers.elements import SMALL, kernels_for, sum_of_squares
from trimtab.training.optimizers.kernels import (
    BLOCK,
    CODES,
    FAR,
    Code,
    Kernels,
    Positions,
    code_values,
)

pytestmark = pytest.mark.train

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def both(index: Tensor, n: int) -> list[Kernels]:
    return [Kernels(Positions(index, n)), CpuKernels(Positions(index, n))]


@given(st.sets(st.integers(0, 2**18), max_size=400), st.integers(0, 3 * FAR))
@settings(deadline=None)
def test_positions_come_back(positions: set[int], far: int) -> None:
    """Near each other in 16 bits, with their bases; far from each other in 32."""
    index = torch.tensor(sorted({*positions, *(p + far for p in positions)}), dtype=torch.int64)
    packed = Positions(index, 2**18 + 3 * FAR + 1)
    assert torch.equal(packed.index(), index)
    assert torch.equal(packed.index(BLOCK, 2 * BLOCK), index[BLOCK : 2 * BLOCK])
    assert len(packed) == len(index)
    spans = [int(part[-1] - part[0]) for part in torch.split(index, BLOCK) if len(part)]
    assert packed.offsets.dtype == (torch.int16 if max(spans, default=0) < 2 * FAR else torch.int32)


def test_positions_of_a_tensor_of_more_than_2_31_elements() -> None:
    index = torch.tensor([5, 2**31 + 7, 2**33], dtype=torch.int64)
    packed = Positions(index, 2**33 + 1)
    assert packed.offsets.dtype == torch.int64
    assert torch.equal(packed.index(), index)
    index = torch.arange(2**33 - 9, 2**33)
    packed = Positions(index, 2**33)
    assert (packed.offsets.dtype, packed.bases.dtype) == (torch.int16, torch.int64)
    assert torch.equal(packed.index(), index)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "density"), [(1, 1.0), (50, 0.3), (70_001, 0.3), (400_000, 0.0004)])
def test_read_add_write(dtype: torch.dtype, n: int, density: float) -> None:
    generator = torch.Generator().manual_seed(n)
    index = (torch.rand(n, generator=generator) < density).nonzero().flatten()
    start = len(index) // 3 // BLOCK * BLOCK
    k = len(index) - start
    dense = torch.randn(n, generator=generator).to(dtype)
    values = torch.randn(k, generator=generator)
    expected = dense[index[start:]]
    results = []
    for one in both(index, n):
        read, exact, added, written = torch.empty(k), expected * 0, values.clone(), dense.clone()
        one.read(dense, read, start)
        one.read(dense, exact, start)
        one.add(dense, added, start)
        one.write(written, values, start)
        assert torch.equal(exact, expected)
        assert torch.equal(read, expected.float())
        assert torch.equal(added, values + expected.float())
        results.append([read, added, written])
    for left, right in zip(*results, strict=True):
        assert torch.equal(bits(left), bits(right))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=200), st.integers(0, 99))
@settings(deadline=None)
def test_remainders_of_any_pattern(patterns: list[int], seed: int) -> None:
    masters = torch.tensor(patterns, dtype=torch.int32).view(torch.float32)
    masters = torch.where(masters.isnan(), 1.5, masters)  # whose payload each treats as it likes
    n = 3 * len(masters)
    index = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: len(masters)]
    results = []
    for one in both(index.sort().values, n):
        dense = torch.arange(n).bfloat16()
        remainder = torch.empty(len(masters), dtype=torch.int16)
        ties = one.write_lo16(dense, masters, remainder)
        joined = torch.empty(len(masters))
        one.read_lo16(dense, remainder, ties, joined)
        assert torch.equal(bits(joined), bits(masters))
        dense8, remainder8 = torch.arange(n).bfloat16(), torch.empty(len(masters), dtype=torch.int8)
        one.write_lo8(dense8, masters, remainder8)
        joined8 = torch.empty(len(masters))
        one.read_lo8(dense8, remainder8, joined8)
        results.append([bits(dense), remainder, ties, bits(dense8), remainder8, bits(joined8)])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=3 * BLOCK))
@settings(deadline=None)
@pytest.mark.parametrize("code", ["signed", "squares"])
def test_codes_are_those_of_the_formula(code: Code, numbers: list[float]) -> None:
    values = torch.tensor(numbers)
    values = values.abs() if code == "squares" else values
    results = []
    for one in both(torch.arange(len(values)), len(values)):
        codes = torch.empty(len(values), dtype=CODES[code])
        scales = torch.empty(-(-len(values) // BLOCK))
        decoded, again = torch.empty(len(values)), codes.clone()
        one.encode(values, code, codes, scales)
        one.decode(codes, code, scales, decoded)
        one.encode(decoded, code, again, scales.clone())
        assert torch.equal(again, codes)
        results.append([codes, scales, bits(decoded)])
    for expected, found in zip(*results, strict=True):
        assert torch.equal(expected, found)
    for start in range(0, len(numbers), BLOCK):  # brute force, in fp64
        part = [min(abs(x), 1e38) for x in values[start : start + BLOCK].tolist()]
        scale = float(np.float32(max(part)))
        assert float(scales[start // BLOCK]) == scale
        for i, x in enumerate(part, start):
            u = x / scale if scale else 0.0
            exact = 254 * u / (1 + u) if code == "signed" else max(255 * u**0.5, float(x > 0))
            assert abs(abs(int(codes[i])) - exact) <= 0.5 + 1e-4
            assert code == "squares" or codes[i] == 0 or (codes[i] < 0) == (values[i] < 0)


def test_what_codes_stand_for() -> None:
    signed = code_values("signed").tolist()
    y = np.arange(256, dtype=np.uint8).view(np.int8)[:128] / 127
    np.testing.assert_allclose(signed[:128], y / (2 - y), rtol=1e-7)
    assert signed[127] == 1.0
    assert signed[0x81] == -1.0
    squares = code_values("squares").tolist()
    np.testing.assert_allclose(squares, (np.arange(256) / 255) ** 2, rtol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [0, 1, 7, 4096, 100_003])
def test_sum_of_squares(dtype: torch.dtype, n: int) -> None:
    values = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)
    expected = float(values.double().square().sum())
    before = torch.get_num_threads()
    sums = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        sums.append(float(sum_of_squares(values)))
    torch.set_num_threads(before)
    assert sums == pytest.approx([expected] * 2, rel=1e-13)
    assert dtype == torch.float16 or n <= SMALL or sums[0] == sums[1]
    assert float(reference.sum_of_squares(values)) == pytest.approx(expected, rel=1e-13)


def test_lo16_of_nan_stays_nan() -> None:
    nans: Tensor = torch.tensor([0x7F800001, -1, -(2**31) + 0x7FFE8000], dtype=torch.int32)
    kernels = CpuKernels(Positions(torch.arange(3), 3))
    dense, remainder = torch.zeros(3).bfloat16(), torch.zeros(3, dtype=torch.int16)
    ties = kernels.write_lo16(dense, nans.view(torch.float32), remainder)
    joined = torch.zeros(3)
    kernels.read_lo16(dense, remainder, ties, joined)
    assert dense.isnan().all()
    assert joined.isnan().all()


def test_threads_are_as_many_as_torchs_and_torchs_stay_as_many() -> None:
    code = """
import numba, torch
from trimtab.training.optimizers.cpu_kernels import GRAIN, CpuKernels
from trimtab.training.optimizers.kernels import Positions
torch.set_num_threads(1)
dense, out = torch.randn(2 * GRAIN), torch.empty(GRAIN)
CpuKernels(Positions(torch.arange(GRAIN), 2 * GRAIN)).read(dense, out)
print(torch.get_num_threads(), numba.get_num_threads(), torch.equal(out, dense[:GRAIN]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "True"]


def test_other_devices_get_the_reference() -> None:
    index = Positions(torch.arange(3), 3)
    assert type(kernels_for(index)) is CpuKernels
    assert type(kernels_for(index.to(torch.device("meta")))) is Kernels
