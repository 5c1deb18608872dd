"""The statistics beside those of SciPy, which is no dependency but of these tests.

Tolerances are relative and near what rounding allows, but where another approximation is compared:
those say why. Where a figure does not exist the two differ in what they return, and the last tests
name how: SciPy has NaN, trimtab has None for what is not known and NaN in arrays alone.
"""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from trimtab.results.statistics import (
    difference_over_seeds,
    discoveries,
    entropy,
    mcnemar,
    mean_interval,
    over_seeds,
    spearman,
    student_t,
    wilson,
)
from trimtab.results.urn import Moments, Strata, probabilities, tail

measured = st.floats(-1e3, 1e3).map(lambda value: round(value, 6))
samples = st.lists(measured, min_size=2, max_size=12)
p_values = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def by_seed(values: list[float], first: int = 0) -> dict[str, float]:
    return {str(first + place): value for place, value in enumerate(values)}


@pytest.mark.parametrize("degrees", [*range(1, 31), 100, 101, 1000])
def test_student_t(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-11)


@given(st.integers(1, 1000).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_wilson(counts: tuple[int, int]) -> None:
    right, num = counts
    expected = stats.binomtest(right, num).proportion_ci(method="wilson")
    assert wilson(right / num, num) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 500), st.integers(0, 500))
def test_mcnemar(gained: int, lost: int) -> None:
    assume(gained + lost)
    expected = stats.binomtest(gained, gained + lost).pvalue
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


@given(samples)
def test_a_mean_over_seeds(values: list[float]) -> None:
    assume(np.ptp(values) > 1e-3)
    result, expected = over_seeds(values), stats.ttest_1samp(values, 0).confidence_interval()
    near = 1e-9 * (abs(expected.low) + abs(expected.high))
    assert (result["low"], result["high"]) == pytest.approx(tuple(expected), abs=near)
    wide = stats.norm.interval(0.95, np.mean(values), stats.sem(values))
    assert mean_interval(values, -np.inf, np.inf) == pytest.approx(wide, rel=1e-9, abs=near)


@given(st.lists(st.tuples(measured, measured), min_size=2, max_size=12))
def test_a_difference_of_pairs(pairs: list[tuple[float, float]]) -> None:
    first, second = map(list, zip(*pairs, strict=True))
    assume(np.ptp(np.subtract(first, second)) > 1e-3)
    found = difference_over_seeds(by_seed(first), by_seed(second))
    expected = stats.ttest_rel(first, second).confidence_interval()
    near = 1e-9 * (abs(expected.low) + abs(expected.high))
    assert found.method == "paired t"
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=near)


@given(samples, samples)
def test_welch(first: list[float], second: list[float]) -> None:
    """Degrees of freedom are rounded down here, so the interval is SciPy's or a little wider."""
    assume(np.ptp(first) > 1e-3 and np.ptp(second) > 1e-3)
    found = difference_over_seeds(by_seed(first), by_seed(second, first=100))
    theirs = stats.ttest_ind(first, second, equal_var=False)
    error = np.hypot(stats.sem(first), stats.sem(second))
    degrees = theirs.df
    assume(abs(degrees - round(degrees)) > 1e-9)  # else rounding decides
    gap, half = np.mean(first) - np.mean(second), stats.t.ppf(0.975, int(degrees)) * error
    near = 1e-9 * (abs(gap) + half)
    assert found.method == "Welch"
    assert (found.low, found.high) == pytest.approx((gap - half, gap + half), abs=near)
    assert found.low is not None and found.high is not None
    low, high = theirs.confidence_interval()
    assert found.low <= low + near and found.high >= high - near


@given(p_values)
def test_false_discoveries(p: list[float]) -> None:
    expected = stats.false_discovery_control(p)
    assert discoveries(np.array(p)) == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=40))
def test_spearman_with_ties(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs, dtype=np.float64).T
    assume(np.ptp(first) and np.ptp(second))
    expected = stats.spearmanr(first, second).statistic
    assert spearman(first, second) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=40))
def test_entropy(counts: list[int]) -> None:
    assume(any(counts))
    expected = stats.entropy(counts, base=len(counts))
    assert entropy(np.array(counts)) == pytest.approx(expected, abs=1e-12)


@given(
    st.integers(1, 3000).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))
    ),
    st.floats(0, 1),
)
def test_the_hypergeometric_tail_of_one_urn(urn: tuple[int, int, int], place: float) -> None:
    """Twice the smaller tail, of logarithms: so tails below the smallest float are compared too."""
    n, a, b = urn
    strata = Strata(*(np.array([count]) for count in urn))
    shared = round(strata.least + place * (strata.most - strata.least))
    chance = stats.hypergeom(n, a, b)
    values = np.arange(strata.least, strata.most + 1)
    logs = chance.logpmf(values)  # its own tails are sums of probabilities, and end at 1e-308
    tails = logsumexp(logs[values >= shared]), logsumexp(logs[values <= shared])
    expected = min(0.0, (np.log(2) + min(tails)) / np.log(10))
    found = tail(strata, shared)
    assert found.method == "exact"
    assert found.log10_p == pytest.approx(expected, rel=1e-7, abs=1e-9)
    with np.errstate(all="ignore"):  # of higher moments, where nothing is random
        mean, variance = chance.stats("mv")
    assert strata.expected == pytest.approx(mean, rel=1e-12)
    assert strata.variance == pytest.approx(variance if n > 1 else 0, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("skewness", [-0.8, -0.3, 0.0, 0.3, 0.8])
def test_the_tail_of_pearson_iii(skewness: float) -> None:
    """The cube root of Wilson and Hilferty is near the exact tail, and too careful far out."""
    counts = np.arange(70, 131)
    chance = Moments(*(np.full(61, value) for value in (100.0, 100.0, skewness * 1000)))
    exact = stats.pearson3(skewness)
    both = exact.sf((counts - 100.5) / 10), exact.cdf((counts - 99.5) / 10)
    expected = np.minimum(1.0, 2 * np.minimum(*both))
    compared = expected >= 1e-3
    ratio = probabilities(counts, chance)[compared] / expected[compared]
    for least, below, above in ((0.1, 0.005, 0.005), (0.01, 0.005, 0.06), (0.001, 0.005, 0.3)):
        near = ratio[expected[compared] >= least]
        assert len(near) > 30
        assert -below < near.min() - 1 and near.max() - 1 < above
    if not skewness:
        assert ratio == pytest.approx(1, rel=1e-12)


def test_what_has_no_figure_is_none_here_and_nan_there() -> None:
    alike, other = np.ones(4), np.arange(4.0)
    with pytest.warns(stats.ConstantInputWarning):
        assert isnan(stats.spearmanr(alike, other).statistic)
    assert spearman(alike, other) is None
    with np.errstate(all="ignore"):
        assert isnan(stats.ttest_1samp([0.5], 0).confidence_interval().low)
    assert over_seeds([0.5])["low"] is None
    assert isnan(stats.entropy([0, 0]))
    assert entropy(np.zeros(2, np.int64)) is None


def test_nan_among_probabilities_is_left_out_here_and_refused_there() -> None:
    p = np.array([0.01, np.nan, 0.04])
    with pytest.raises(ValueError, match="between 0 and 1"):
        stats.false_discovery_control(p)
    assert discoveries(p) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)


def test_no_disagreement_is_certain_here_and_refused_there() -> None:
    with pytest.raises(ValueError, match="must be"):
        stats.binomtest(0, 0)
    assert mcnemar(0, 0) == 1.0
