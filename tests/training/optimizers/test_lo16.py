"""bf16 weight and 16-bit remainder: every fp32 pattern comes back, ties and overflow included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.training.optimizers import kernels

pytestmark = pytest.mark.train

patterns = st.integers(0, 2**32 - 1)


def fp32(bits: list[int] | Tensor) -> Tensor:
    pattern = torch.as_tensor(bits, dtype=torch.int64)
    return (pattern - (pattern >> 31 << 32)).to(torch.int32).view(torch.float32)


def there_and_back(masters: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    remainder = torch.full(masters.shape, -1, dtype=torch.int16)
    weights, ties = kernels.split_lo16(masters, remainder)
    joined = weights.float()
    kernels.join_lo16(joined, remainder, ties)
    return weights, remainder, ties, joined


def assert_exact(masters: Tensor) -> None:
    weights, _, _, joined = there_and_back(masters)
    assert torch.equal(weights.view(torch.int16), masters.to(torch.bfloat16).view(torch.int16))
    same = joined.view(torch.int32) == masters.view(torch.int32)
    assert bool((same | (masters.isnan() & joined.isnan() & weights.isnan())).all())


@given(st.lists(patterns, min_size=1, max_size=40))
def test_any_pattern_comes_back(bits: list[int]) -> None:
    assert_exact(fp32(bits))


@given(st.integers(0, 2**16 - 1))
@settings(deadline=None)
def test_all_patterns_around_a_weight_come_back(weight: int) -> None:
    low = torch.arange(-(1 << 15), (1 << 15) + 1, dtype=torch.int64)
    assert_exact(fp32(((weight << 16) + low) % 2**32))


def test_every_weight_at_the_edges_of_its_rounding_interval() -> None:
    weight = torch.arange(1 << 16, dtype=torch.int64) << 16
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        assert_exact(fp32(weight + low))


def test_ties_are_told_apart() -> None:
    # 0x3F80 is even: it owns the masters half a step below and half a step above.
    weights, remainder, ties, joined = there_and_back(fp32([0x3F7F8000, 0x3F808000]))
    assert weights.tolist() == [1.0, 1.0]
    assert remainder.tolist() == [-32768, -32768]
    assert (ties.tolist(), ties.dtype) == ([1], torch.int32)
    assert joined.view(torch.int32).tolist() == [0x3F7F8000, 0x3F808000]


def test_ties_are_ascending_positions() -> None:
    masters = fp32([0x3F808000, 0x3F800000, 0x3F828000, 0xBF808000, 0x3F818000])
    assert there_and_back(masters)[2].tolist() == [0, 2, 3]


def test_master_that_rounds_to_infinity_stays_finite() -> None:
    weights, _, _, joined = there_and_back(fp32([0x7F7FFFFF, 0xFF7F8000]))
    assert weights.tolist() == [float("inf"), float("-inf")]
    assert joined.isfinite().all()


def test_sign_of_zero_is_kept() -> None:
    weights, remainder, _, joined = there_and_back(fp32([0x80000000, 0x00000000, 0x80000001]))
    assert weights.signbit().tolist() == [True, False, True]
    assert remainder.tolist() == [0, 0, 1]
    assert joined.signbit().tolist() == [True, False, True]


def test_nan_stays_nan_whatever_its_payload() -> None:
    nans = [0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0xFF808000, 0xFFFE8000, 0xFFFFFFFF]
    weights, _, _, joined = there_and_back(fp32(nans))
    assert weights.isnan().all()
    assert joined.isnan().all()


@given(st.lists(patterns, min_size=1, max_size=40))
def test_lo8_holds_the_upper_24_bits(bits: list[int]) -> None:
    masters = fp32(bits)
    remainder = torch.empty(masters.shape, dtype=torch.int8)
    weights = kernels.split_lo8(masters, remainder)
    joined = weights.float()
    kernels.join_lo8(joined, remainder)
    for pattern, number, found in zip(bits, masters.tolist(), joined, strict=True):
        if number != number:
            assert found.isnan()
            continue
        low, upper = pattern & 0xFF, pattern >> 8  # to nearest, ties to even
        upper += low > 0x80 or (low == 0x80 and upper & 1 == 1)
        assert int(found.view(torch.int32)) & 0xFFFFFFFF == upper << 8
    # Once more changes nothing: 24 bits are all that there is.
    again = remainder.clone()
    assert torch.equal(
        kernels.split_lo8(joined, again).view(torch.int16), weights.view(torch.int16)
    )
    assert torch.equal(again, remainder)


def test_weights_of_lo8_are_masters_rounded_to_nearest() -> None:
    masters = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    weights = kernels.split_lo8(masters, torch.empty(10_000, dtype=torch.int8))
    half = masters.abs() * 2.0**-8  # half a step of bf16, or more
    assert ((weights.float() - masters).abs() <= half * (1 + 2.0**-8)).all()
    assert (weights != masters.bfloat16()).float().mean() < 0.01
