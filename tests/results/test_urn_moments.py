"""Moments, probabilities, discoveries and concentrations equal their definitions."""

from __future__ import annotations

from math import comb, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.results.statistics import discoveries, entropy, gini, spearman
from trimtab.results.urn import Moments, hypergeometric, no_moments, probabilities, z_scores


def pmf(size: int, drawn: int, own: int) -> np.ndarray:
    """Probabilities of 0, 1, ... of a unit's elements being drawn."""
    ways = [comb(own, k) * comb(size - own, drawn - k) if k <= drawn else 0 for k in range(own + 1)]
    total = comb(size, drawn)
    return np.array([way / total for way in ways])  # integers too long for fp64 before


def sum_pmf(strata: list[tuple[int, int, int]]) -> np.ndarray:
    """Of a sum over strata of (size, drawn, own)."""
    total = np.ones(1)
    for stratum in strata:
        total = np.convolve(total, pmf(*stratum))
    return total


@st.composite
def strata(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    found = []
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0, 12))
        found.append((size, draw(st.integers(0, size)), draw(st.integers(0, size))))
    return found


@given(strata())
def test_moments_are_those_of_the_distribution(of_unit: list[tuple[int, int, int]]) -> None:
    chances = sum_pmf(of_unit)
    values = np.arange(len(chances))
    mean = float(values @ chances)
    size, drawn, own = (np.array(column, dtype=np.int64) for column in zip(*of_unit, strict=True))
    moments = hypergeometric(own[None, :], size, drawn)
    assert moments.mean[0] == pytest.approx(mean)
    assert moments.variance[0] == pytest.approx(float((values - mean) ** 2 @ chances), abs=1e-9)
    assert moments.third[0] == pytest.approx(float((values - mean) ** 3 @ chances), abs=1e-9)


@pytest.mark.parametrize(
    ("size", "drawn", "own"),
    [(5000, 500, 200), (5000, 100, 60), (400, 200, 100), (3000, 2700, 150)],
)
def test_probabilities_are_near_the_exact_ones_and_hardly_below(
    size: int, drawn: int, own: int
) -> None:
    exact = pmf(size, drawn, own)
    moments = hypergeometric(np.array([[own]]), np.array([size]), np.array([drawn]))
    counts = np.arange(own + 1)
    repeated = Moments(*(np.repeat(values, own + 1) for values in moments))
    found = probabilities(counts, repeated)
    upper = np.cumsum(exact[::-1])[::-1]
    expected = np.minimum(1.0, 2 * np.minimum(upper, np.cumsum(exact)))
    seen = expected > 1e-7
    ratio = found[seen] / expected[seen]
    assert ratio.min() > 0.9
    assert ratio[expected[seen] > 1e-3].max() < 1.8
    assert ratio.max() < 20, "far out it is too careful"
    order = np.abs(counts - moments.mean[0]).argsort()
    assert found[order[-1]] <= found[order[0]] <= 1


def test_the_skewed_tail_is_not_that_of_the_normal_distribution() -> None:
    """Few elements each: z of 5 is far less rare than a normal distribution says."""
    moments = hypergeometric(np.array([[50]]), np.array([10**5]), np.array([2000]))
    p = probabilities(np.array([6]), moments)
    exact = 2 * pmf(10**5, 2000, 50)[6:].sum()
    assert z_scores(np.array([6]), moments)[0] == pytest.approx(5.0, abs=0.06)
    assert 5.7e-7 < exact < p[0] < 4 * exact


def test_what_cannot_vary_is_not_tested() -> None:
    moments = hypergeometric(np.array([[4], [0], [4]]), np.array([8]), np.array([8]))
    counts = np.array([4, 0, 4])
    assert np.isnan(z_scores(counts, moments)).all()
    assert np.isnan(probabilities(counts, moments)).all()
    assert np.isnan(z_scores(np.zeros(2, dtype=np.int64), no_moments(2))).all()


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=12))
def test_discoveries_are_those_of_benjamini_and_hochberg(values: list[float]) -> None:
    """The units with q up to a level are those of the step-up procedure at that level."""
    p = np.array(values, dtype=np.float64)
    q = discoveries(p)
    tested = np.sort(p[~np.isnan(p)])
    np.testing.assert_array_equal(np.isnan(q), np.isnan(p))
    for level in (0.01, 0.05, 0.3, 0.999):
        passing = [
            value
            for rank, value in enumerate(tested.tolist(), start=1)
            if value * len(tested) / rank <= level
        ]
        threshold = max(passing, default=-1.0)
        np.testing.assert_array_equal(q[~np.isnan(p)] <= level, p[~np.isnan(p)] <= threshold)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9))
def test_gini_and_entropy_by_definition(values: list[int]) -> None:
    counts = np.array(values, dtype=np.int64)
    total = sum(values)
    if not total:
        assert gini(counts) is None
        assert entropy(counts) is None
        return
    apart = sum(abs(a - b) for a in values for b in values)
    assert gini(counts) == pytest.approx(apart / (2 * len(values) * total))
    if len(values) == 1:
        assert entropy(counts) is None
        return
    nats = -sum(n / total * log(n / total) for n in values if n)
    assert entropy(counts) == pytest.approx(nats / log(len(values)))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [5, 4, 3, 2], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 1, 2], [1, 2, 3], 3**0.5 / 2),  # ranks 1.5, 1.5, 3 and 1, 2, 3
    ],
)
def test_spearman(first: list[float], second: list[float], expected: float) -> None:
    found = spearman(np.array(first, dtype=np.float64), np.array(second, dtype=np.float64))
    assert found == pytest.approx(expected)


def test_spearman_of_what_is_all_alike() -> None:
    assert spearman(np.ones(3), np.arange(3.0)) is None
