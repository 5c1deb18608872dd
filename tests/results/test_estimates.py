"""Means and differences over seeds, against figures from tables and a simulation."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from trimtab.results.statistics import difference_over_seeds, mean_over_seeds

T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}
"""Two-sided 95 % points of Student's t, as tables have them."""


def by_seed(*values: float) -> dict[str, float]:
    """Values of seeds 0, 1, ..."""
    return {str(seed): value for seed, value in enumerate(values)}


def test_a_mean_has_a_t_interval() -> None:
    estimate = mean_over_seeds(by_seed(1.0, 2.0, 3.0))
    half = T[2] * 1.0 / sqrt(3)
    assert (estimate.n, estimate.value, estimate.method) == (3, 2.0, "t")
    assert estimate.low == pytest.approx(2 - half, abs=1e-3)
    assert estimate.high == pytest.approx(2 + half, abs=1e-3)


def test_one_seed_has_no_interval() -> None:
    estimate = mean_over_seeds({"0": 0.5})
    assert (estimate.n, estimate.value, estimate.low, estimate.high) == (1, 0.5, None, None)


def test_pairs_of_seeds_are_not_independent() -> None:
    """Three pairs of three seeds: leaving a seed out leaves the pair of the others."""
    values = {"0-1": 1.0, "0-2": 2.0, "1-2": 3.0}
    estimate = mean_over_seeds(values)
    half = T[2] * sqrt(2 / 3 * (1 + 0 + 1))
    assert (estimate.n, estimate.value, estimate.method) == (3, 2.0, "jackknife")
    assert estimate.low == pytest.approx(2 - half, abs=1e-3)
    assert estimate.high == pytest.approx(2 + half, abs=1e-3)


def test_one_pair_has_no_interval() -> None:
    estimate = mean_over_seeds({"0-1": 0.5})
    assert (estimate.n, estimate.value, estimate.low, estimate.high) == (2, 0.5, None, None)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_intervals_over_pairs_hold_what_they_say(noise: float) -> None:
    """Where a pair is what its seeds add to it, and noise: 95 % contain the true mean."""
    generator = np.random.default_rng(0)
    num_right = 0
    for _ in range(2000):
        of_seed = generator.normal(0.5, 1, 5)
        values = {
            f"{i}-{j}": of_seed[i] + of_seed[j] + generator.normal(0, noise)
            for i in range(5)
            for j in range(i + 1, 5)
        }
        estimate = mean_over_seeds(values)
        assert estimate.low is not None and estimate.high is not None
        num_right += estimate.low <= 1 <= estimate.high
    assert 0.93 <= num_right / 2000 <= 0.98


def test_seeds_that_both_have_are_pairs() -> None:
    """What the seeds have in common cancels: differences are 1, 1.5 and 2."""
    estimate = difference_over_seeds(by_seed(11.0, 21.5, 32.0), by_seed(10.0, 20.0, 30.0))
    half = T[2] * 0.5 / sqrt(3)
    assert estimate.method == "paired t"
    assert estimate.value == 1.5
    assert estimate.low == pytest.approx(1.5 - half, abs=1e-3)


def test_a_seed_that_one_lacks_is_left_out() -> None:
    estimate = difference_over_seeds(by_seed(1.0, 2.0, 100.0), by_seed(0.0, 1.0))
    assert (estimate.n, estimate.value, estimate.low, estimate.high) == (2, 1.0, 1.0, 1.0)


def test_other_seeds_are_compared_by_welch() -> None:
    """Equal variances and numbers: Student's interval with 2n - 2 degrees of freedom."""
    estimate = difference_over_seeds({"0": 1.0, "1": 2.0, "2": 3.0}, {"3": 0.0, "4": 1.0, "5": 2.0})
    assert (estimate.n, estimate.value, estimate.method) == (3, 1.0, "Welch")
    assert estimate.high == pytest.approx(1 + T[4] * sqrt(2 / 3), abs=1e-3)


def test_welch_needs_two_of_each() -> None:
    estimate = difference_over_seeds({"0": 1.0}, {"3": 0.0, "4": 1.0})
    assert (estimate.n, estimate.low, estimate.high) == (1, None, None)


def test_intervals_hold_what_they_say() -> None:
    """Of 2,000 simulated sets, 95 % of the intervals contain the true difference."""
    generator = np.random.default_rng(0)
    num_right = 0
    for _ in range(2000):
        values, other = generator.normal(0.3, 1, 3), generator.normal(0, 2, 4)
        estimate = difference_over_seeds(
            {f"a{i}": item for i, item in enumerate(values)},
            {f"b{i}": item for i, item in enumerate(other)},
        )
        assert estimate.low is not None and estimate.high is not None
        num_right += estimate.low <= 0.3 <= estimate.high
    assert 0.94 <= num_right / 2000 <= 0.99  # degrees are rounded down, so it is a little wide
