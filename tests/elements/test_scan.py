"""Both scanners against the definitions of the criteria, written out element by element."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.elements.cases import edge_pair, random_pair
from trimtab.elements import scan as elements_scan
from trimtab.elements import ulps
from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import DEFAULT_CRITERIA, Criterion, changed, with_defaults
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.elements.scan import NumpyScanner, Scanner, Tally
from trimtab.elements.scan_kernels import NumbaScanner
from trimtab.results.schema import to_plain

FLOATS = [dtype for dtype in DTYPES.values() if dtype.is_float]
OTHERS = [dtype for dtype in DTYPES.values() if not dtype.is_float]
CRITERIA = with_defaults([Criterion("atol", 2.0**-17), Criterion("strict_atol", 2.0**-17)])


def scan(base: Bits, tuned: Bits, dtype: DType, scanner: Scanner, num_chunks: int = 1) -> Tally:
    """Scan a pair of matrices in chunks of rows."""
    tally = Tally(dtype, CRITERIA, *base.shape)
    bounds = np.linspace(0, base.shape[0], num_chunks + 1).astype(int)
    for low, high in pairwise(bounds):
        tally.add(base[low:high], tuned[low:high], int(low), 0, scanner)
    return tally


def brute_force(base: Bits, tuned: Bits, dtype: DType) -> ChangeCounts:
    """The same counts, one Python number at a time."""
    num_changed = dict.fromkeys((c.key for c in CRITERIA), 0)
    flips = nans = up = down = nonfinite = 0
    histogram: dict[str, int] = {}
    finite: list[float] = []
    sign = 1 << (8 * dtype.num_bytes - 1)
    for b, t, x, y in zip(
        base.ravel().tolist(),
        tuned.ravel().tolist(),
        dtype.decode(base).ravel().tolist(),
        dtype.decode(tuned).ravel().tolist(),
        strict=True,
    ):
        is_nan = math.isnan(x) or math.isnan(y)
        distance = abs(y - x)
        for c in CRITERIA:
            if c.rule == "bits":
                moved = b != t
            elif c.rule == "value":
                moved = x != y if dtype.is_float else b != t or is_nan
            elif c.rule == "rel":
                near = distance <= c.tolerance * max(abs(x), abs(y)) and distance < math.inf
                moved = not (x == y or near)
            elif c.rule == "strict_atol":
                moved = not (x == y or distance < c.tolerance)
            else:
                moved = not (x == y or distance <= c.tolerance)
            num_changed[c.key] += moved
        nans += is_nan
        if dtype.kind in ("float", "scale"):
            up, down = up + (y > x), down + (y < x)
        else:  # a double cannot tell large integers apart
            wrap = sign if dtype.kind == "int" else 0
            up, down = up + (t ^ wrap > b ^ wrap), down + (t ^ wrap < b ^ wrap)
        if b == t:
            continue
        flips += x == y and dtype.is_float
        if math.isfinite(distance):
            finite.append(y - x)
        else:
            nonfinite += 1
        if is_nan:
            continue
        if dtype.is_float:
            place = [-(v - sign) if v >= sign else v for v in (b, t)]
        elif dtype.kind == "int":
            place = [v - 2 * sign if v >= sign else v for v in (b, t)]
        else:
            place = [b, t]
        number = int(ulps.bin_of(np.array([abs(place[1] - place[0])], dtype=np.uint64))[0])
        if number:
            low, high = ulps.bin_bounds(number)
            assert low <= abs(place[1] - place[0]) <= high
            s = "-" if place[1] < place[0] else ""
            label = f"{s}{low}" if low == high else f"{s}{low}..{s}{high}"
            histogram[label] = histogram.get(label, 0) + 1
    return ChangeCounts(
        num_elements=base.size,
        num_changed=num_changed,
        num_zero_sign_flips=flips,
        num_nan=nans,
        num_increased=up,
        num_decreased=down,
        num_nonfinite_updates=nonfinite,
        ulp_histogram=histogram,
        update_sum=math.fsum(finite),
        update_sum_abs=math.fsum(abs(v) for v in finite),
        update_sum_squares=math.fsum(v * v for v in finite),
        update_max_abs=max((abs(v) for v in finite), default=0.0),
    )


def assert_same(got: ChangeCounts, expected: ChangeCounts) -> None:
    """Integers equal exactly; fp64 sums to a few roundings."""
    left, right = to_plain(got), to_plain(expected)
    got_update, expected_update = left.pop("update"), right.pop("update")
    assert left == right
    assert got_update["max_abs"] == expected_update["max_abs"]
    for name in ("sum_abs", "sum_squares", "l2"):
        assert got_update[name] == pytest.approx(expected_update[name], rel=1e-12)
    slack = 1e-12 * (expected_update["sum_abs"] + 1e-300)
    assert got_update["sum"] == pytest.approx(expected_update["sum"], abs=slack)


@pytest.fixture(params=["numpy", "numba", "numba with steps"])
def scanner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scanner:
    """Each of the implementations; large tensors of a small dtype are counted by steps."""
    if request.param == "numba with steps":
        monkeypatch.setattr(elements_scan, "STEPS_FROM", 0)
    return NumpyScanner() if request.param == "numpy" else NumbaScanner()


def test_steps_are_used_where_they_tell_all() -> None:
    many = elements_scan.STEPS_FROM
    default = {
        name: len(elements_scan.Accumulator(DEFAULT_CRITERIA, dtype, many).steps)
        for name, dtype in DTYPES.items()
    }
    assert {name for name, size in default.items() if size} == {"BF16", "F8_E4M3", "F8_E5M2"}
    coarse = [*DEFAULT_CRITERIA, Criterion("rel", 0.01)]
    assert len(elements_scan.Accumulator(coarse, DTYPES["BF16"], many).steps) == 0
    assert len(elements_scan.Accumulator(DEFAULT_CRITERIA, DTYPES["BF16"], many - 1).steps) == 0


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
def test_every_edge_value_against_every_other(dtype: DType, scanner: Scanner) -> None:
    base, tuned = edge_pair(dtype)
    if dtype.name == "F64":  # the squares of the largest doubles are infinite in any arithmetic
        small = ~(np.abs(dtype.decode(base)) > 1e100) & ~(np.abs(dtype.decode(tuned)) > 1e100)
        base, tuned = base[small][None, :], tuned[small][None, :]
    assert_same(scan(base, tuned, dtype, scanner).counts(scanner), brute_force(base, tuned, dtype))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_random_weights(dtype: DType, density: float, scanner: Scanner) -> None:
    base, tuned = random_pair(dtype, (7, 150), density, seed=3)
    tally = scan(base, tuned, dtype, scanner, num_chunks=3)
    assert_same(tally.counts(scanner), brute_force(base, tuned, dtype))
    differ = base != tuned
    np.testing.assert_array_equal(tally.changed_per_row, differ.sum(axis=1))
    np.testing.assert_array_equal(tally.changed_per_column, differ.sum(axis=0))


@pytest.mark.parametrize("columns", [0, 1, 63, 64, 65, 128, 1000])
def test_columns_that_do_not_fill_a_block(columns: int, scanner: Scanner) -> None:
    dtype = DTYPES["BF16"]
    base, tuned = random_pair(dtype, (5, columns), 0.2, seed=columns)
    assert_same(scan(base, tuned, dtype, scanner).counts(scanner), brute_force(base, tuned, dtype))


def test_unchanged_nan_in_the_tail_and_in_a_block(scanner: Scanner) -> None:
    dtype = DTYPES["BF16"]
    base = np.full((1, 70), 0x3F80, dtype=np.uint16)
    base[0, [3, 69]] = 0x7FC1
    counts = scan(base, base.copy(), dtype, scanner).counts(scanner)
    assert counts.num_changed["bits"] == 0
    assert counts.num_changed["value"] == counts.num_changed["atol=0.0001"] == 2
    assert counts.num_nan == 2


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(FLOATS),
    st.integers(0, 2**32 - 1),
    st.integers(1, 200),
    st.sampled_from([0.01, 0.5]),
)
def test_scanners_agree_on_any_bits(dtype: DType, seed: int, columns: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (2, 3, columns, dtype.num_bytes), dtype=np.uint8)
    base, tuned = raw.view(dtype.bits)[..., 0]
    tuned = np.where(rng.random(base.shape) < density, tuned, base)
    expected = to_plain(scan(base, tuned, dtype, NumpyScanner()).counts(NumpyScanner()))
    expected.pop("update")  # random doubles overflow; the sums are tested above
    for steps_from in (0, elements_scan.STEPS_FROM):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(elements_scan, "STEPS_FROM", steps_from)
            counts = to_plain(scan(base, tuned, dtype, NumbaScanner()).counts(NumbaScanner()))
        counts.pop("update")
        assert counts == expected


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("criterion", CRITERIA, ids=str)
def test_counts_agree_with_the_definition(dtype: DType, criterion: Criterion) -> None:
    base, tuned = edge_pair(dtype)
    with np.errstate(over="ignore"):
        counts = scan(base, tuned, dtype, NumpyScanner()).counts(NumpyScanner())
    expected = np.count_nonzero(changed(base, tuned, dtype, criterion))
    assert counts.num_changed[criterion.key] == expected


def test_histogram_covers_every_changed_number() -> None:
    dtype = DTYPES["F16"]
    base, tuned = edge_pair(dtype)
    counts = scan(base, tuned, dtype, NumbaScanner()).counts(NumbaScanner())
    nan = dtype.is_nan(base) | dtype.is_nan(tuned)
    with_distance = np.count_nonzero((base != tuned) & ~nan) - counts.num_zero_sign_flips
    assert sum(counts.ulp_histogram.values()) == with_distance


def test_default_criteria_are_those_of_the_papers() -> None:
    assert [c.key for c in DEFAULT_CRITERIA] == [
        "bits",
        "value",
        "atol=0",
        "atol=1e-08",
        "atol=1e-07",
        "atol=1e-06",
        "atol=1e-05",
        "atol=0.0001",
        "strict_atol=1e-08",
        "strict_atol=1e-07",
        "strict_atol=1e-06",
        "strict_atol=1e-05",
        "strict_atol=0.0001",
        "rel=0.001",
    ]
