"""Checkpointing of activations changes no weight, neither of the policy nor beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.test_resume import all_weights
from tests.training.rollouts.trainers import BUILDERS
from tests.training.tiny_trainers import assert_same_bits, train

pytestmark = pytest.mark.train


@pytest.mark.parametrize("name", BUILDERS)
def test_checkpointing_of_activations_changes_nothing(name: str, tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    for checkpointing in (False, True):
        trainer = BUILDERS[name](
            tiny.model(), tmp_path, activation_checkpointing=checkpointing, max_steps=4
        )
        train(trainer)
        companion = trainer.auxiliary
        modules = list(companion.model.modules())
        assert (
            any(getattr(one, "gradient_checkpointing", False) for one in modules) is checkpointing
        )
        assert companion.model.training
        found.append(all_weights(trainer))
    assert_same_bits(*found)
