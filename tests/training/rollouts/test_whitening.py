"""Whitening equals NumPy on the values that count, whatever the others are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytestmark = pytest.mark.train


@given(
    values=arrays.arrays(np.float64, (3, 4), elements=st.floats(-10, 10)),
    mask=arrays.arrays(np.bool_, (3, 4)).filter(lambda mask: mask.sum() > 1),
    shift_mean=st.booleans(),
)
def test_it_equals_numpy(values: np.ndarray, mask: np.ndarray, shift_mean: bool) -> None:
    import torch

    from trimtab.training.rollouts.sampling import EPSILON, whiten

    counted = values[mask]
    mean, variance = counted.mean(), counted.var(ddof=1)
    expected = np.where(mask, (values - mean) / np.sqrt(variance + EPSILON), 0.0)
    if not shift_mean:
        expected = np.where(mask, expected + mean, 0.0)
    given_values = torch.from_numpy(np.where(mask, values, 1e30))
    found = whiten(given_values, torch.from_numpy(mask), shift_mean=shift_mean)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-9)


def test_one_value_alone() -> None:
    import torch

    from trimtab.training.rollouts.sampling import whiten

    values, mask = torch.tensor([[3.0, 9.0]]), torch.tensor([[True, False]])
    assert whiten(values, mask).tolist() == [[0.0, 0.0]]
    assert whiten(values, mask, shift_mean=False).tolist() == [[3.0, 0.0]]
