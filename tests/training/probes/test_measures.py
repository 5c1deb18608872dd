"""What becomes of gradients, against the definitions written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.training.probes.engine import FISHER, SIGN_CONSISTENCY, SNIP, Measure

pytestmark = pytest.mark.train

NUMBERS = st.floats(-8, 8, width=16)
GRADIENTS = st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=6)


def scores(
    measure: Measure, gradients: list[tuple[float, ...]], weights: list[float]
) -> list[float]:
    sums = torch.zeros(3)
    for gradient in gradients:
        measure.add(sums, torch.tensor(gradient))
    measure.finish(sums, torch.tensor(weights), len(gradients))
    return sums.tolist()


@settings(deadline=None)
@given(GRADIENTS)
def test_fisher_is_the_mean_square(gradients: list[tuple[float, ...]]) -> None:
    expected = [sum(g * g for g in item) / len(item) for item in zip(*gradients, strict=True)]
    assert scores(FISHER, gradients, [1.0, 2.0, 3.0]) == pytest.approx(expected)


@settings(deadline=None)
@given(GRADIENTS)
def test_sign_consistency_counts_signs(gradients: list[tuple[float, ...]]) -> None:
    expected = [
        abs(sum(g > 0 for g in item) - sum(g < 0 for g in item)) / len(item)
        for item in zip(*gradients, strict=True)
    ]
    assert scores(SIGN_CONSISTENCY, gradients, [1.0, 2.0, 3.0]) == pytest.approx(expected)


@settings(deadline=None)
@given(GRADIENTS, st.lists(NUMBERS, min_size=3, max_size=3))
def test_snip_is_weight_times_mean_gradient(
    gradients: list[tuple[float, ...]], weights: list[float]
) -> None:
    columns = zip(zip(*gradients, strict=True), weights, strict=True)
    expected = [abs(w * sum(one) / len(one)) for one, w in columns]
    assert scores(SNIP, gradients, weights) == pytest.approx(expected, abs=1e-5)
