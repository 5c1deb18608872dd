"""Settings of losses, and what rewards make of samples; gradients are tested with the engine."""

from __future__ import annotations

import pytest
import torch

from trimtab.errors import SettingsError
from trimtab.training.probes.losses import (
    AnswerLoss,
    OwnSamples,
    RewardLoss,
    group_advantages,
    read_data,
)
from trimtab.training.runs.settings import DataTable

pytestmark = pytest.mark.train


def test_advantages_of_groups() -> None:
    rewards = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.1, 0.1, 0.1, 0.1])
    advantages = group_advantages(rewards, 4)
    spread = (2 / 3) ** 0.5 + 1e-4
    assert advantages.tolist() == pytest.approx([-1 / spread, 0, 0, 1 / spread, 0, 0, 0, 0])
    assert not advantages[4:].any()  # exactly, however the mean was rounded


def test_how_many_there_are() -> None:
    data = read_data(DataTable(task="addition"), "prompts")
    assert OwnSamples(num_prompts=None, num_samples=3).num_terms(data) == 64 * 3
    assert OwnSamples(num_prompts=5, num_samples=3).num_terms(data) == 15
    assert OwnSamples(num_prompts=100, num_samples=1).num_terms(data) == 64
    assert AnswerLoss(num_batches=7).num_terms(data) == 7
    assert RewardLoss(num_batches=7).num_terms(data) == 7


@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        (OwnSamples(num_prompts=0), "num_prompts is 0: expected at least 1"),
        (AnswerLoss(0, -1), "num_batches is 0, batch_size is -1: expected at least 1"),
        (RewardLoss(num_samples=1), "num_samples is 1, expected at least 2"),
        (RewardLoss(batch_size=12, num_samples=8), "12, expected a multiple of the 8 samples"),
    ],
)
def test_settings_that_cannot_be(
    losses: OwnSamples | AnswerLoss | RewardLoss, problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem):
        losses.check(read_data(DataTable(task="addition"), "prompts"))
