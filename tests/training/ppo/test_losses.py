"""The losses of PPO: by hand, and by plain loops over tokens in fp64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytestmark = pytest.mark.train

SMALL = arrays.arrays(np.float64, 6, elements=st.floats(-1, 1))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped", "slope"),
    [
        (1.0, 2.0, -2.0, False, -2.0),
        (1.1, 2.0, -2.2, False, -2.2),
        (1.5, 2.0, -2.4, True, 0.0),  # no gain beyond 1.2
        (0.5, 2.0, -1.0, False, -1.0),  # the way back is open
        (1.5, -2.0, 3.0, False, 3.0),
        (0.5, -2.0, 1.6, True, 0.0),  # no gain below 0.8
    ],
)
def test_policy_loss_by_hand(
    ratio: float, advantage: float, loss: float, is_clipped: bool, slope: float
) -> None:
    """The slope is by the log-probability: d ratio / d log_prob = ratio."""
    import torch

    from trimtab.training.rollouts.sampling import policy_loss

    log_prob = torch.tensor(math.log(ratio) - 1.0, dtype=torch.float64, requires_grad=True)
    found, clipped = policy_loss(log_prob, torch.tensor(-1.0), torch.tensor(advantage), 0.2)
    torch.autograd.backward(found)
    assert found.item() == pytest.approx(loss)
    assert bool(clipped) is is_clipped
    assert log_prob.grad is not None
    assert log_prob.grad.item() == pytest.approx(slope)


@given(log_probs=SMALL, old=SMALL, advantages=SMALL, cliprange=st.floats(0.05, 0.5))
def test_policy_loss_is_eq_7(
    log_probs: np.ndarray, old: np.ndarray, advantages: np.ndarray, cliprange: float
) -> None:
    import torch

    from trimtab.training.rollouts.sampling import policy_loss

    tensors = [torch.from_numpy(array) for array in (log_probs, old, advantages)]
    found, _ = policy_loss(tensors[0], tensors[1], tensors[2], cliprange)
    for token in range(6):
        ratio = math.exp(log_probs[token] - old[token])
        kept = min(max(ratio, 1 - cliprange), 1 + cliprange)
        expected = -min(ratio * advantages[token], kept * advantages[token])
        assert found[token].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("value", "loss", "is_clipped", "slope"),
    [
        (1.1, 0.5 * 0.9**2, False, -0.9),  # old value 1, return 2
        (1.5, 0.5 * 0.8**2, True, 0.0),  # clipped to 1.2, which is farther from 2
        (0.5, 0.5 * 1.5**2, False, -1.5),  # clipped to 0.8, which is nearer: the larger counts
    ],
)
def test_value_loss_by_hand(value: float, loss: float, is_clipped: bool, slope: float) -> None:
    import torch

    from trimtab.training.ppo import value_loss

    given_value = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    found, clipped = value_loss(given_value, torch.tensor(1.0), torch.tensor(2.0), 0.2)
    torch.autograd.backward(found)
    assert found.item() == pytest.approx(loss)
    assert bool(clipped) is is_clipped
    assert given_value.grad is not None
    assert given_value.grad.item() == pytest.approx(slope, abs=1e-12)


@given(values=SMALL, old=SMALL, returns=SMALL, cliprange=st.floats(0.05, 0.5))
def test_value_loss_is_the_larger_half_square(
    values: np.ndarray, old: np.ndarray, returns: np.ndarray, cliprange: float
) -> None:
    import torch

    from trimtab.training.ppo import value_loss

    tensors = [torch.from_numpy(array) for array in (values, old, returns)]
    found, _ = value_loss(tensors[0], tensors[1], tensors[2], cliprange)
    for token in range(6):
        near = old[token] + min(max(values[token] - old[token], -cliprange), cliprange)
        squares = [(at - returns[token]) ** 2 / 2 for at in (values[token], near)]
        assert found[token].item() == pytest.approx(max(squares), abs=1e-12)


def test_kl_estimates_by_hand() -> None:
    import torch

    from trimtab.training.ppo import kl_estimate

    log_probs, reference = torch.tensor([0.5, 0.2]).log(), torch.tensor([0.25, 0.4]).log()
    two = math.log(2)
    for estimator, expected in {
        "k1": [two, -two],
        "k2": [two**2 / 2, two**2 / 2],
        "k3": [0.5 - 1 + two, 2 - 1 - two],
    }.items():
        found = kl_estimate(log_probs, reference, estimator)  # type: ignore[arg-type]
        assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_what_the_estimators_are_on_average() -> None:
    """Over all tokens of a distribution: k1 and k3 are the KL divergence; and their gradients."""
    import torch

    from trimtab.training.ppo import kl_estimate

    torch.manual_seed(0)
    logits = torch.randn(7, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(7, dtype=torch.float64).log_softmax(0)
    log_probs = logits.log_softmax(0)
    sampled_with = log_probs.detach().exp()
    divergence = (log_probs.exp() * (log_probs - reference)).sum()
    (gradient,) = torch.autograd.grad(divergence, logits, retain_graph=True)
    for estimator in ("k1", "k2", "k3"):
        mean = (sampled_with * kl_estimate(log_probs, reference, estimator)).sum()
        (slope,) = torch.autograd.grad(mean, logits, retain_graph=True)
        if estimator != "k2":
            torch.testing.assert_close(mean, divergence)
        if estimator == "k1":
            torch.testing.assert_close(slope, torch.zeros_like(slope))
        if estimator == "k2":
            torch.testing.assert_close(slope, gradient)
