"""Changes between tensors: each from the other, exact arrays, fingerprints."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deltas.building import random_bits
from trimtab.deltas import changes
from trimtab.deltas.changes import (
    ROW,
    WIDE,
    Changes,
    apply_changes,
    find_changes,
    fingerprint,
)
from trimtab.elements.dtypes import DTYPES, Bits, DType

SIZES = st.one_of(
    st.sampled_from([k * ROW + d for k in (0, 1, 2) for d in (-1, 0, 1) if k or d >= 0]),
    st.integers(0, 3 * ROW),
)


def pair(dtype: DType, size: int, share: float, seed: int) -> tuple[Bits, Bits]:
    """Any bits; others of which a share moved, by small and large distances."""
    random = np.random.default_rng(seed)
    before = random_bits(dtype.name, (size,), seed)
    moved = random.random(size) < share
    near = before + random.integers(-140, 141, size).astype(dtype.bits)
    anything = np.where(random.random(size) < 0.2, random_bits(dtype.name, (size,), seed + 1), near)
    return before, np.where(moved, anything, before)


def brute_force(before: Bits, after: Bits, dtype: DType) -> Changes:
    """The same with Python's integers."""
    width = 8 * dtype.num_bytes

    def ordered(element: int) -> int:
        negative = dtype.is_float and element >> (width - 1)
        return element ^ ((1 << (width - 1)) - 1) if negative else element

    counts: list[int] = []
    places: list[int] = []
    steps: list[int] = []
    wide: list[int] = []
    for start in range(0, len(before), ROW):
        num = len(places)
        for place, (old, new) in enumerate(
            zip(
                before[start : start + ROW].tolist(),
                after[start : start + ROW].tolist(),
                strict=True,
            )
        ):
            if old != new:
                distance = (ordered(new) - ordered(old)) % (1 << width)
                signed = distance - (1 << width) if distance >> (width - 1) else distance
                places.append(place)
                steps.append(signed if abs(signed) <= 127 else WIDE)
                if abs(signed) > 127:
                    wide.append(distance)
        counts.append(len(places) - num)
    return Changes(
        np.array(counts, np.uint16),
        np.array(places, np.uint8),
        np.array(steps, np.int8),
        np.array(wide, dtype.bits),
    )


def assert_equal(found: Changes, expected: Changes) -> None:
    for field in Changes._fields:
        one, other = getattr(found, field), getattr(expected, field)
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize("name", DTYPES)
@settings(max_examples=25, deadline=None)
@given(size=SIZES, share=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=st.integers(0, 2**20))
def test_each_tensor_from_the_other(name: str, size: int, share: float, seed: int) -> None:
    dtype = DTYPES[name]
    before, after = pair(dtype, size, share, seed)
    found = find_changes(before, after, dtype)
    assert_equal(found, brute_force(before, after, dtype))
    bits = before.copy()
    apply_changes(bits, found, dtype)
    assert bits.tobytes() == after.tobytes()
    apply_changes(bits, found, dtype, back=True)
    assert bits.tobytes() == before.tobytes()
    split = min(ROW, size)
    parts = [(before[:split], after[:split]), (before[split:], after[split:])]
    assert_equal(Changes.joined([find_changes(*part, dtype) for part in parts]), found)


def test_exact_arrays() -> None:
    before = np.zeros(600, np.uint16)
    after = before.copy()
    after[[3, 255, 256, 599]] = [1, 0x8000, 0x7FC1, 127]  # 1 ulp, -0.0, a NaN, 127 ulp
    found = find_changes(before, after, DTYPES["BF16"])
    assert found.counts.tolist() == [2, 1, 1]
    assert found.places.tolist() == [3, 255, 0, 87]
    assert found.steps.tolist() == [1, -1, WIDE, 127]
    assert found.wide.tolist() == [0x7FC1]
    assert found.num_bytes == 3 * 2 + 4 + 4 + 2


def test_a_fingerprint_depends_on_every_bit_and_its_position() -> None:
    bits = random_bits("BF16", (77,), 0)
    seen = {fingerprint(bits)}
    for place in range(bits.size):
        for bit in (0, 15):
            other = bits.copy()
            other[place] ^= np.uint16(1 << bit)
            seen.add(fingerprint(other))
    assert len(seen) == 1 + 2 * bits.size
    assert fingerprint(bits[::-1].copy()) not in seen
    assert fingerprint(bits.reshape(7, 11)) == fingerprint(bits)
    assert fingerprint(bits) == _by_hand(bits.tobytes())
    assert len({fingerprint(np.zeros(n, np.uint8)) for n in range(0, 33, 8)}) == 5


def _by_hand(content: bytes) -> int:
    total, mask = 0, 2**64 - 1
    content += bytes(8 - len(content) % 8)
    for start in range(0, len(content), 8):
        word = int.from_bytes(content[start : start + 8], "little")
        word = word + changes.STRIDE * (start // 8 + 1) & mask
        word = (word ^ word >> 32) * changes.FIRST & mask
        word = (word ^ word >> 29) * changes.SECOND & mask
        total += word ^ word >> 31
    return total & mask
