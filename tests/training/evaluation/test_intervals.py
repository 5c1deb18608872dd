"""Intervals against their definitions, and by how often they hold the truth; the test by hand."""

from __future__ import annotations

from itertools import product
from math import comb, isclose, sqrt
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.results.statistics import (
    clustered_interval,
    mcnemar,
    mean_interval,
    normal_interval,
    paired_interval,
    standard_error,
    wilson,
)

Z = NormalDist().inv_cdf(0.975)


def test_wilson_by_hand() -> None:
    # 8 of 10: centre (0.8 + z²/20) / (1 + z²/10), half z·sqrt(0.016 + z²/400) / (1 + z²/10).
    low, high = wilson(0.8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0.0, 10) == pytest.approx((0.0, Z**2 / (10 + Z**2)), abs=0)
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + Z**2), 1.0))


@given(st.integers(1, 400).flatmap(lambda num: st.tuples(st.integers(0, num), st.just(num))))
def test_wilson_holds_exactly_the_shares_that_the_score_test_keeps(counts: tuple[int, int]) -> None:
    """Brute force: p belongs to it if the count is no further than z standard errors *of p*."""
    correct, num = counts
    share = correct / num
    low, high = wilson(share, num)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert isclose(abs(share - end), Z * sqrt(end * (1 - end) / num), abs_tol=1e-9)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.93])
@pytest.mark.parametrize("num", [32, 100])
def test_wilson_holds_the_truth_as_often_as_it_says(share: float, num: int) -> None:
    held = sum(
        comb(num, k) * share**k * (1 - share) ** (num - k)
        for k in range(num + 1)
        for low, high in [wilson(k / num, num)]
        if low <= share <= high
    )
    assert 0.92 < held < 0.985


def test_standard_error_is_of_the_mean() -> None:
    # Shares 1, 1, 0, 0: variance 1/3 over the questions.
    assert standard_error([1.0, 1.0, 0.0, 0.0]) == pytest.approx(sqrt(1 / 3) / 2)
    assert standard_error([0.5]) is None
    assert standard_error([]) is None


def test_one_sample_of_each_question_is_an_ordinary_share() -> None:
    # The effective number of samples is then n - 1: the standard error divides by n - 1, not n.
    assert clustered_interval([1.0, 0.0, 1.0, 1.0], 1) == pytest.approx(wilson(0.75, 3))


def test_samples_of_a_question_that_always_agree_count_once() -> None:
    result = clustered_interval([1.0, 0.0] * 20, 100)
    assert result == pytest.approx(wilson(0.5, 39))


def test_the_effective_number_has_bounds() -> None:
    assert clustered_interval([0.5] * 10, 8) == wilson(0.5, 80)
    assert clustered_interval([1.0] * 10, 8) == wilson(1.0, 10)
    assert clustered_interval([0.0] * 10, 8) == wilson(0.0, 10)
    assert clustered_interval([0.25], 8) == wilson(0.25, 1)


def test_clustered_intervals_hold_the_truth_where_plain_ones_do_not() -> None:
    generator = np.random.default_rng(0)
    num_questions, num_samples, held, plain = 40, 16, 0, 0
    for _ in range(1000):
        chances = generator.beta(0.3, 0.7, num_questions)  # mean 0.3
        right = generator.binomial(num_samples, chances)
        low, high = clustered_interval([n / num_samples for n in right.tolist()], num_samples)
        held += low <= 0.3 <= high
        low, high = wilson(int(right.sum()) / (num_questions * num_samples), 640)
        plain += low <= 0.3 <= high
    assert 920 <= held <= 980
    assert plain < 600


def test_mean_interval() -> None:
    values = [0.5, -0.25, 0.0, 0.75]
    half = Z * standard_error(values)  # type: ignore[operator]
    assert mean_interval(values, -1, 1) == pytest.approx((0.25 - half, 0.25 + half))
    assert mean_interval([1.0, 0.9], -1, 1) == pytest.approx((0.95 - Z * 0.05, 1.0))
    assert mean_interval([1.0], -1, 1) is None
    assert normal_interval(0.5, 0.1) == pytest.approx((0.5 - Z * 0.1, 0.5 + Z * 0.1))
    assert normal_interval(0.1, 0.2, low=0.0) == pytest.approx((0.0, 0.1 + Z * 0.2))


@pytest.mark.parametrize("num", range(9))
def test_mcnemar_against_every_way_to_fall(num: int) -> None:
    """Brute force: fair coins, as far from even as seen or further."""
    ways = [sum(way) for way in product((0, 1), repeat=num)]
    for gained in range(num + 1):
        far = abs(2 * gained - num)
        expected = sum(abs(2 * way - num) >= far for way in ways) / len(ways)
        assert mcnemar(gained, num - gained) == pytest.approx(expected)


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(2000, 2000) == 1.0
    assert mcnemar(3000, 1000) == pytest.approx(mcnemar(1000, 3000))
    assert 0 <= mcnemar(3000, 1000) < 1e-200


def test_paired_interval_by_hand() -> None:
    # 3 gained, 1 lost of 10: (4 - 2) / 12 ± z sqrt((6/12 - (2/12)²) / 12).
    half = Z * sqrt((6 / 12 - 1 / 36) / 12)
    assert paired_interval(3, 1, 10) == pytest.approx((1 / 6 - half, 1 / 6 + half))
    half = Z * sqrt(0.125)
    assert paired_interval(0, 0, 2) == pytest.approx((-half, half))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.data())
def test_paired_interval_is_antisymmetric(counts: tuple[int, int], data: st.DataObject) -> None:
    gained, num = counts
    lost = data.draw(st.integers(0, num - gained))
    low, high = paired_interval(gained, lost, num)
    assert -1 <= low <= high <= 1
    assert paired_interval(lost, gained, num) == pytest.approx((-high, -low))


@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.02), (0.2, 0.05), (0.3, 0.3), (0.6, 0.1)])
def test_paired_interval_holds_the_truth_as_often_as_it_says(gain: float, loss: float) -> None:
    """Every outcome of 40 questions, with its probability."""
    num, held = 40, 0.0
    for gained in range(num + 1):
        for lost in range(num + 1 - gained):
            low, high = paired_interval(gained, lost, num)
            if low <= gain - loss <= high:
                ways = comb(num, gained) * comb(num - gained, lost)
                rest = (1 - gain - loss) ** (num - gained - lost)
                held += ways * gain**gained * loss**lost * rest
    assert held > 0.93
