"""AdamW in single operations: NumPy's fp32, operation by operation, and torch's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.optimizers.reference import bits
from trimtab.training.optimizers.kernels import AdamWFactors, adamw_step

pytestmark = pytest.mark.train


def vectors(n: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights, gradient, mean, square = torch.randn(4, n, generator=generator)
    return [weights, gradient, mean, square.square()]


def factors(step: int) -> AdamWFactors:
    return AdamWFactors.of_step(
        step, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, clip=1 / 3
    )


@pytest.mark.parametrize("n", [1, 7, 100_003])
def test_every_operation_rounds_once(n: int) -> None:
    weights, gradient, mean, square = vectors(n)
    w, g, m, v = (np.copy(tensor.numpy()) for tensor in (weights, gradient, mean, square))
    by = [np.float32(factor) for factor in factors(3)]
    clip, decay, new_mean, old_square, new_square, root, eps, size = by
    g = g * clip
    m = m + (g - m) * new_mean
    v = v * old_square + g * g * new_square
    w = w * decay + m / (np.sqrt(v) * root + eps) * size

    before = gradient.clone()
    adamw_step(weights, gradient, mean, square, factors(3))
    assert torch.equal(gradient, before)
    for found, expected in ((mean, m), (square, v), (weights, w)):
        assert expected.dtype == np.float32
        assert torch.equal(bits(found), bits(torch.from_numpy(expected)))


def test_factors_are_fp32_numbers() -> None:
    for factor in factors(2):
        assert factor == float(np.float32(factor))
    assert factors(2).size == float(np.float32(-1e-3 / (1 - 0.9**2)))
    assert factors(2).root == float(np.float32(1 / math.sqrt(1 - 0.99**2)))


def test_the_formula_is_torchs() -> None:
    weights, _, mean, square = vectors(1000)
    mean.zero_(), square.zero_()
    theirs = torch.nn.Parameter(weights.double())
    reference = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(1, 21):
        gradient = torch.randn(1000, generator=torch.Generator().manual_seed(step))
        theirs.grad = gradient.double() * factors(step).clip
        reference.step()
        adamw_step(weights, gradient, mean, square, factors(step))
    torch.testing.assert_close(weights.double(), theirs.detach(), rtol=1e-6, atol=1e-7)
