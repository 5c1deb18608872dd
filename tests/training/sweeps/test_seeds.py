"""Means over seeds, against printed tables of Student's distribution and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from trimtab.results.statistics import over_seeds, student_t

PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042}
"""Two-sided 95 % points, as in any table."""


@pytest.mark.parametrize(("degrees", "point"), PRINTED.items())
def test_student_t(degrees: int, point: float) -> None:
    assert round(student_t(degrees), 3) == point


def test_many_degrees_are_normal() -> None:
    assert student_t(5000) == pytest.approx(1.96, abs=1e-3)


def test_over_seeds() -> None:
    assert over_seeds([0.5]) == {
        "n": 1,
        "mean": 0.5,
        "low": None,
        "high": None,
        "least": 0.5,
        "most": 0.5,
    }
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found["n"], found["mean"], found["least"], found["most"]) == (3, 2.0, 1.0, 3.0)
    assert found["high"] == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-4)  # deviation 1
    assert found["low"] == pytest.approx(4 - found["high"])


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    found = [over_seeds(list(one)) for one in draws]
    held = np.mean([one["low"] <= 0 <= one["high"] for one in found])
    assert abs(held - 0.95) < 0.011  # three standard errors
