"""Moments and tails, against every possibility counted in whole numbers."""

from __future__ import annotations

from fractions import Fraction
from math import comb, log, log10, pi
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trimtab.results import urn
from trimtab.results.urn import Strata, tail


def strata_of(*rows: tuple[int, int, int]) -> Strata:
    counts = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return Strata(*counts.T)


def possibilities(strata: Strata) -> dict[int, int]:
    """In how many ways the second set can be drawn so that it shares so much with the first."""
    total = {0: 1}
    for n, a, b in zip(*(map(int, counts) for counts in strata), strict=True):
        joined: dict[int, int] = {}
        for before, ways in total.items():
            for x in range(max(0, a + b - n), min(a, b) + 1):
                more = comb(a, x) * comb(n - a, b - x)
                joined[before + x] = joined.get(before + x, 0) + ways * more
        total = joined
    return total


def log10_p(ways: dict[int, int], shared: int) -> float:
    """Twice the smaller tail, in whole numbers that no float holds."""
    upper = sum(num for x, num in ways.items() if x >= shared)
    lower = sum(num for x, num in ways.items() if x <= shared)
    return min(0.0, log10(2 * min(upper, lower)) - log10(sum(ways.values())))


@st.composite
def any_stratum(draw: st.DrawFn, largest: int = 40) -> tuple[int, int, int]:
    n = draw(st.integers(0, largest))
    return n, draw(st.integers(0, n)), draw(st.integers(0, n))


@given(st.lists(any_stratum(), min_size=1, max_size=4), st.data())
@example([(0, 0, 0)], None)
@example([(1, 1, 0), (1, 1, 1)], None)
@settings(max_examples=200, deadline=None)
def test_all_is_as_every_possibility_counted(rows: list[Any], data: st.DataObject | None) -> None:
    strata = strata_of(*rows)
    ways = possibilities(strata)
    num_ways = sum(ways.values())
    mean = Fraction(sum(x * num for x, num in ways.items()), num_ways)
    variance = Fraction(sum(x * x * num for x, num in ways.items()), num_ways) - mean**2
    assert strata.expected == pytest.approx(float(mean), rel=1e-12, abs=1e-12)
    assert strata.variance == pytest.approx(float(variance), rel=1e-12, abs=1e-12)
    assert (strata.least, strata.most) == (min(ways), max(ways))
    values = sorted(ways)
    for shared in values if data is None else [data.draw(st.sampled_from(values))]:
        found = tail(strata, shared)
        assert found.method == "exact"
        assert found.log10_p == pytest.approx(log10_p(ways, shared), rel=1e-10, abs=1e-10)


def test_tails_far_beyond_the_smallest_float() -> None:
    strata = strata_of((900, 450, 450), (800, 300, 500))
    ways = possibilities(strata)
    for shared in (strata.most, strata.most - 3, strata.least, strata.least + 1):
        expected = log10_p(ways, shared)
        assert expected < -320
        assert tail(strata, shared).log10_p == pytest.approx(expected, rel=1e-12)


def test_sparse_sets_of_a_large_model_are_exact() -> None:
    """With few of very many elements the number is Poisson, far from normal."""
    strata = strata_of((10**10, 20_000, 20_000))
    mean = 0.04
    for shared, p in ((1, -np.expm1(-mean)), (2, 1 - np.exp(-mean) * (1 + mean))):
        found = tail(strata, shared)
        assert found.method == "exact"
        # Twice the upper tail; the distribution is Poisson to within 1e-5.
        assert 10**found.log10_p == pytest.approx(2 * p, rel=1e-4)


def test_many_sets_in_many_strata_are_normal() -> None:
    strata = strata_of(*[(1_000_000, 100_000, 120_000)] * 10)
    assert strata.expected == 120_000
    sigma = strata.variance**0.5
    found = tail(strata, 120_000 + round(2 * sigma))
    assert found.method == "normal"
    assert 10**found.log10_p == pytest.approx(0.0455, rel=1e-2)


def test_exact_and_normal_agree_where_both_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    strata = strata_of((20_000, 9_000, 8_000), (20_000, 3_000, 10_000))
    for deviations in (-3, -1, 0.5, 2, 3):
        shared = round(strata.expected + deviations * strata.variance**0.5)
        exact = tail(strata, shared)
        with monkeypatch.context() as patch:
            patch.setattr(urn, "MOST_VALUES", 0)
            normal = tail(strata, shared)
        assert (exact.method, normal.method) == ("exact", "normal")
        # What is between them is the width of one value.
        assert 10**exact.log10_p == pytest.approx(10**normal.log10_p, rel=0.06)


def log10_erfc(x: float) -> float:
    """By Laplace's continued fraction, from the inside out; for x of 1 or more."""
    fraction = 1.0
    for depth in range(4000, 0, -1):
        fraction = 1 + depth / (2 * x * x) / fraction
    return -x * x / log(10) - log10(x * pi**0.5 * fraction)


@pytest.mark.parametrize("x", [1.0, 3.5, 19.9, 20.0, 25.0, 100.0, 1e6])
def test_the_normal_tail(x: float) -> None:
    assert urn._log10_erfc(x) == pytest.approx(log10_erfc(x), rel=1e-10)


def test_the_normal_tail_is_smooth_where_its_formula_changes() -> None:
    below, above = (urn._log10_erfc(20 + step) for step in (-1e-9, 1e-9))
    assert above < below < above + 1e-7


def test_exact_tails_of_sampled_sets(
    num: int = 4000, shape: tuple[int, int, int] = (60, 25, 20)
) -> None:
    """p of sets that are drawn at random is at most any level about as often as the level says."""
    rng = np.random.default_rng(0)
    n, a, b = shape
    strata = strata_of(shape)
    drawn: NDArray[np.int64] = rng.hypergeometric(a, n - a, b, size=num)
    p = np.array([10 ** tail(strata, int(x)).log10_p for x in drawn])
    for level in (0.01, 0.05, 0.2, 0.5):
        # Discrete, so at most the level; four standard errors above.
        assert np.mean(p <= level) <= level + 4 * (level / num) ** 0.5
