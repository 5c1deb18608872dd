"""Agreement of two tunings against the definition of "changed", one region at a time."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.elements.cases import edge_bits, random_pair
from trimtab.elements.criteria import DEFAULT_CRITERIA, changed
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.elements.scan import NumpyScanner, Scanner
from trimtab.elements.scan_kernels import NumbaScanner
from trimtab.elements.three_way import Agreement, AgreementTally, SplitAgreement
from trimtab.errors import ResultFormatError
from trimtab.results.schema import from_plain, to_plain

BF16 = DTYPES["BF16"]
SUMS = ("difference_sum_squares", "full_update_sum_squares", "sub_update_sum_squares", "update_dot")


@pytest.fixture(params=[NumpyScanner, NumbaScanner])
def scanner(request: pytest.FixtureRequest) -> Scanner:
    made: Scanner = request.param()
    return made


def tallied(
    base: Bits, full: Bits, sub: Bits, inside: NDArray[np.bool_], dtype: DType, scanner: Scanner
) -> SplitAgreement:
    """Count a matrix in two chunks."""
    tally = AgreementTally(dtype, DEFAULT_CRITERIA, *base.shape)
    half = len(base) // 2
    for rows, row in ((slice(half), 0), (slice(half, None), half)):
        tally.add(base[rows], full[rows], sub[rows], inside[rows], row, 0, scanner)
    return tally.counts(scanner)


def defined(base: Bits, full: Bits, sub: Bits, dtype: DType) -> dict[str, Any]:
    """The agreement of some elements by its definition."""
    before, by_full, by_sub = (dtype.decode(bits) for bits in (base, full, sub))
    with np.errstate(invalid="ignore", over="ignore"):
        three = np.stack([by_sub - by_full, by_full - before, by_sub - before])
    for place, (left, right) in enumerate(((sub, full), (full, base), (sub, base))):
        three[place, left == right] = 0  # a NaN that is equal bit for bit went nowhere
    finite = np.isfinite(three).all(axis=0)
    difference, full_update, sub_update = three[:, finite].tolist()

    def num_equal(bits: Bits) -> dict[str, int]:
        return {
            c.key: int(np.count_nonzero(~changed(full, bits, dtype, c))) for c in DEFAULT_CRITERIA
        }

    def total(left: list[float], right: list[float]) -> float:
        return math.fsum(x * y for x, y in zip(left, right, strict=True))

    return {
        "num_elements": base.size,
        "num_sub_equal": num_equal(sub),
        "num_base_equal": num_equal(base),
        "num_sub_moved": np.count_nonzero(base != sub),
        "num_full_moved": np.count_nonzero(base != full),
        "num_nonfinite": np.count_nonzero(~finite),
        "difference_sum_squares": total(difference, difference),
        "full_update_sum_squares": total(full_update, full_update),
        "sub_update_sum_squares": total(sub_update, sub_update),
        "update_dot": total(sub_update, full_update),
        "difference_max_abs": max(map(abs, difference), default=0.0),
        "full_update_max_abs": max(map(abs, full_update), default=0.0),
    }


def assert_defined(found: Agreement, expected: dict[str, Any]) -> None:
    data = to_plain(found)
    for key, value in expected.items():
        if key in SUMS:
            scale = math.sqrt(
                expected["full_update_sum_squares"] * expected["sub_update_sum_squares"]
            )
            assert data[key] == pytest.approx(value, rel=1e-12, abs=1e-12 * scale), key
        else:
            assert data[key] == value, key


def random_three(
    dtype: DType, shape: tuple[int, int], seed: int
) -> tuple[Bits, Bits, Bits, NDArray[np.bool_]]:
    """Base, full, sub (which follows full in part and goes its own way in part), and a mask."""
    base, full = random_pair(dtype, shape, 0.3, seed)
    _, other = random_pair(dtype, shape, 0.2, seed + 1)
    rng = np.random.default_rng(seed + 2)
    sub = np.choose(rng.integers(0, 3, shape), [base, full, other])
    return base, full, sub, rng.random(shape) < 0.4


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
def test_both_regions_by_definition(dtype: DType, scanner: Scanner) -> None:
    base, full, sub, inside = random_three(dtype, (9, 150), seed=5)
    found = tallied(base, full, sub, inside, dtype, scanner)
    for agreement, region in ((found.inside, inside), (found.outside, ~inside)):
        assert_defined(agreement, defined(base[region], full[region], sub[region], dtype))
    assert_defined(found.all, defined(base, full, sub, dtype))


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3"])
def test_every_edge_value_in_every_place(name: str, scanner: Scanner) -> None:
    """NaN, infinities, zeros of both signs and subnormals, each against each against each."""
    dtype = DTYPES[name]
    edges = edge_bits(dtype)
    base, full, sub = (
        np.ascontiguousarray(grid.reshape(len(edges), -1))
        for grid in np.meshgrid(edges, edges, edges, indexing="ij")
    )
    inside = np.indices(base.shape).sum(axis=0) % 2 == 0
    found = tallied(base, full, sub, inside, dtype, scanner)
    for agreement, region in ((found.inside, inside), (found.outside, ~inside)):
        assert agreement.num_nonfinite > 0
        assert_defined(agreement, defined(base[region], full[region], sub[region], dtype))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["BF16", "F32", "F8_E5M2", "I8"]),
    st.integers(0, 2**32),
    st.integers(1, 140),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_any_bits(name: str, seed: int, columns: int, density: float) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (3, 2, columns, dtype.num_bytes), dtype=np.uint8)
    base, full, sub = raw.view(dtype.bits)[..., 0]
    full = np.where(rng.random(base.shape) < 0.5, full, base)
    sub = np.choose(rng.integers(0, 3, base.shape), [base, full, sub])
    inside = rng.random(base.shape) < density
    found = tallied(base, full, sub, inside, dtype, NumbaScanner())
    for agreement, region in ((found.inside, inside), (found.outside, ~inside)):
        expected = defined(base[region], full[region], sub[region], dtype)
        assert_defined(agreement, expected)


def test_ratios() -> None:
    some = Agreement(
        num_elements=4,
        difference_sum_squares=1.0,
        full_update_sum_squares=16.0,
        sub_update_sum_squares=9.0,
        update_dot=-6.0,
    )
    assert (some.relative_l2, some.cosine) == (0.25, -0.5)
    assert (Agreement().relative_l2, Agreement().cosine) == (None, None)
    only_sub = Agreement(difference_sum_squares=1.0, sub_update_sum_squares=1.0)
    assert (only_sub.relative_l2, only_sub.cosine) == (None, None)
    overflowed = Agreement(full_update_sum_squares=math.inf, difference_sum_squares=1.0)
    assert (overflowed.relative_l2, overflowed.cosine) == (None, None)


def test_equal_and_opposite_updates_have_a_cosine_of_exactly_one(scanner: Scanner) -> None:
    rng = np.random.default_rng(0)
    base = np.zeros((3, 1000), dtype=np.float32)
    update = rng.normal(0, 1e-3, base.shape).astype(np.float32)
    bits, everywhere = (array.view(np.uint32) for array in (base, update)), base == 0
    before, full = bits
    dtype = DTYPES["F32"]
    same = tallied(before, full, full, everywhere, dtype, scanner).inside
    assert (same.cosine, same.relative_l2) == (1.0, 0.0)
    opposite = (-update).view(np.uint32)
    against = tallied(before, full, opposite, everywhere, dtype, scanner).inside
    assert (against.cosine, against.relative_l2) == (-1.0, 2.0)


def test_doing_nothing_has_a_relative_distance_of_one(scanner: Scanner) -> None:
    base, full, _, inside = random_three(BF16, (4, 100), seed=1)
    for agreement in (
        tallied(base, full, base, inside, BF16, scanner).inside,
        tallied(base, full, base, inside, BF16, scanner).outside,
    ):
        assert agreement.relative_l2 == 1.0
        assert agreement.cosine is None
        assert agreement.num_sub_equal == agreement.num_base_equal
        assert agreement.num_sub_moved == 0


def test_parts_add_up_to_the_whole(scanner: Scanner) -> None:
    base, full, sub, inside = random_three(BF16, (8, 90), seed=3)
    whole = tallied(base, full, sub, inside, BF16, scanner)
    halves = sum(
        (
            tallied(base[r], full[r], sub[r], inside[r], BF16, scanner)
            for r in (slice(4), slice(4, 8))
        ),
        SplitAgreement(),
    )
    for left, right in ((halves.inside, whole.inside), (halves.outside, whole.outside)):
        data = to_plain(right)
        for ratio in ("cosine", "relative_l2"):
            assert getattr(left, ratio) == pytest.approx(data.pop(ratio), rel=1e-12)
        assert_defined(left, data)


def test_json_and_back() -> None:
    base, full, sub, inside = random_three(BF16, (8, 90), seed=3)
    result = tallied(base, full, sub, inside, BF16, NumpyScanner())
    data = json.loads(json.dumps(to_plain(result), allow_nan=False))
    assert from_plain(SplitAgreement, data, what="agreement") == result
    data["inside"]["cosine"] = data["inside"]["relative_l2"] = 7.0
    data["all"] = None
    assert (
        from_plain(SplitAgreement, data, what="agreement") == result
    )  # what is derived is not read


def test_an_overflow_becomes_null_and_back() -> None:
    huge = np.array([[0.0, 0.0]]), np.array([[1e300, 1.0]]), np.array([[1e300, 2.0]])
    base, full, sub = (array.view(np.uint64) for array in huge)
    found = tallied(base, full, sub, base == 0, DTYPES["F64"], NumpyScanner()).inside
    assert found.full_update_sum_squares == math.inf
    assert (found.relative_l2, found.cosine, found.num_nonfinite) == (None, None, 0)
    data = json.loads(json.dumps(to_plain(found), allow_nan=False))
    assert data["full_update_sum_squares"] is None
    assert from_plain(Agreement, data, what="agreement") == found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_elements", -1),
        ("num_elements", 1.5),
        ("num_elements", True),
        ("num_elements", 10**30),
        ("num_sub_moved", 10**9),
        ("num_sub_equal", {"bits": 10**9}),
        ("num_sub_equal", {"bits": "3"}),
        ("num_sub_equal", {"sometimes": 1}),
        ("num_sub_equal", {"value": 1}),
        ("num_base_equal", {"bits": 1}),
        ("num_base_equal", {}),
        ("difference_max_abs", None),
        ("difference_max_abs", -1.0),
        ("difference_sum_squares", math.nan),
        ("full_update_sum_squares", math.inf),
        ("sub_update_sum_squares", "1"),
        ("update_dot", [1]),
    ],
)
def test_numbers_that_cannot_be_are_refused(key: str, value: Any) -> None:
    base, full, sub, inside = random_three(BF16, (2, 30), seed=3)
    data = to_plain(tallied(base, full, sub, inside, BF16, NumpyScanner()).inside)
    assert from_plain(Agreement, data, what="agreement")
    with pytest.raises(ResultFormatError, match="damaged agreement"):
        from_plain(Agreement, {**data, key: value}, what="agreement")
