"""Means of what is logged."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.train


def test_weighted_means_that_begin_anew() -> None:
    import torch

    from trimtab.training.rollouts.trainer import Means

    means = Means()
    means.add("kl", torch.tensor(3.0), 2)
    means.add("reward", 1, 4)
    means.add("kl", torch.tensor(5.0), 6)
    assert means.take() == {"kl": 1.0, "reward": 0.25}
    assert means.take() == {}
