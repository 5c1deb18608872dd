"""The compiled passes over a step against NumPy on bool arrays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.elements.cases import edge_bits
from trimtab.elements import index_coding, step_kernels
from trimtab.elements.dtypes import DTYPES

SIZES = st.sampled_from([0, 1, 63, 64, 65, 128, 1000])
DENSITIES = st.sampled_from([0.0, 0.002, 0.05, 0.5, 1.0])


def words_of(members: NDArray[np.bool_]) -> NDArray[np.uint64]:
    padded = np.zeros(step_kernels.num_words(members.size) * step_kernels.WORD, np.bool_)
    padded[: members.size] = members
    return np.packbits(padded, bitorder="little").view(np.uint64)


@pytest.mark.parametrize("num_bytes", [2, 4])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize("chooses", [False, True])
@given(size=SIZES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_look(num_bytes: int, decays: bool, chooses: bool, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    unsigned: Any = np.dtype(f"u{num_bytes}").type
    sign = unsigned(1 << (8 * num_bytes - 1))

    def few() -> NDArray[Any]:  # -0.0 is among them
        return rng.choice(np.array([0, 1, sign, sign + 1], unsigned), size)

    base, before, now = few(), few(), few()
    moment = rng.choice(np.array([0, 1 << 31, 5], np.uint32), size)
    selected = rng.integers(0, 2, size if chooses else 0, np.uint8)
    was_changed, was_ever = before != base, rng.random(size) < 0.3
    was_ever |= was_changed
    changed, ever = words_of(was_changed), words_of(was_ever)
    toggled = np.full_like(changed, 77)
    counts = step_kernels.look(
        now,
        before,
        base,
        sign - unsigned(1),
        moment,
        np.uint32(0x7FFFFFFF),
        decays,
        selected,
        changed,
        ever,
        toggled,
    )
    asked = moment == 5
    if decays:
        asked |= (before & ~sign) != 0
    if chooses:
        asked &= selected != 0
    is_ever = was_ever | (now != base)
    expected = [now != before, now != base, is_ever, asked, asked & (now == before)]
    assert list(counts) == [np.count_nonzero(one) for one in expected]
    for found, one in ((changed, now != base), (ever, is_ever)):
        np.testing.assert_array_equal(found, words_of(one))
    np.testing.assert_array_equal(toggled, words_of(was_changed ^ (now != base)))


def test_nothing_is_asked_of_an_unknown_moment() -> None:
    words = [np.zeros(1, np.uint64) for _ in range(3)]
    now, before = np.array([1, 2], np.uint16), np.array([1, 3], np.uint16)
    nothing = np.empty(0, np.uint8)
    counts = step_kernels.look(
        now, before, before, np.uint16(0x7FFF), nothing, np.uint8(255), True, nothing, *words
    )
    assert counts == (1, 1, 1, 0, 0)


@given(size=SIZES, density=DENSITIES, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_encode_and_decode(size: int, density: float, seed: int) -> None:
    members = np.random.default_rng(seed).random(size) < density
    coding, content = index_coding.encode(words_of(members), size)
    np.testing.assert_array_equal(
        index_coding.decode(coding, content, size), np.flatnonzero(members)
    )
    assert len(content) <= -(-size // 8)


@pytest.mark.parametrize("step", [1, 3, 254, 255, 256, 300, 65_535, 65_536, 200_000])
def test_gaps_of_every_length(step: int) -> None:
    members = np.zeros(600_001, np.bool_)
    members[::step] = True
    coding, content = index_coding.encode(words_of(members), members.size)
    found = index_coding.decode(coding, content, members.size)
    np.testing.assert_array_equal(found, np.flatnonzero(members))


def test_flip() -> None:
    members = np.array([True, False, True] * 50)
    words = words_of(members)
    step_kernels.flip(words, np.array([0, 1, 64, 149]))
    members[[0, 1, 64, 149]] ^= True
    np.testing.assert_array_equal(words, words_of(members))


def test_rounding_is_that_of_the_reference() -> None:
    edges = edge_bits(DTYPES["F32"])
    rng = np.random.default_rng(0)
    ties = (rng.integers(0, 1 << 16, 500, np.uint32) << 16) | 0x8000
    bits = np.concatenate([edges, ties, ties + 1, ties - 1, rng.integers(0, 2**32, 999, np.uint32)])
    found = np.empty(bits.size, np.uint16)
    step_kernels.round_to_bf16(bits, found)
    expected = DTYPES["BF16"].encode(bits.view(np.float32))
    is_nan = np.isnan(bits.view(np.float32))
    np.testing.assert_array_equal(found[~is_nan], expected[~is_nan])
    assert np.isnan(found[is_nan].view(ml_dtypes.bfloat16).astype(np.float32)).all()


@pytest.mark.parametrize("name", ["BF16", "F16", "F32"])
def test_squared_distance(name: str) -> None:
    dtype, rng = DTYPES[name], np.random.default_rng(1)
    left, right = (dtype.encode(rng.normal(0, 0.02, 3001)) for _ in range(2))
    expected = np.square(dtype.decode(left) - dtype.decode(right)).sum()
    assert step_kernels.squared_distance(left, right, dtype.storage) == pytest.approx(
        expected, rel=1e-5
    )


def test_zeros_of_both_signs_are_no_gradient() -> None:
    bits = np.array([0.0, -0.0, 1e-45, np.nan], np.float32).view(np.uint32)
    assert step_kernels.count_nonzero(bits, np.uint32(0x7FFFFFFF)) == 2


def test_fits_bf16() -> None:
    values = np.array([1.0, -0.02], np.float32)
    assert not step_kernels.fits_bf16(values.view(np.uint32))
    rounded = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert step_kernels.fits_bf16(rounded.view(np.uint32))


def test_mark() -> None:
    flags = np.zeros(5, np.uint8)
    values = np.array([0.0, 2.0, -0.0], np.float32).view(np.uint32)
    step_kernels.mark(np.array([1, 2, 4], np.int32), values, np.uint32(0x7FFFFFFF), flags)
    assert flags.tolist() == [
        0,
        step_kernels.SELECTED,
        step_kernels.SELECTED | step_kernels.MOVES,
        0,
        step_kernels.SELECTED,
    ]
