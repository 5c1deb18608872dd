"""`RolloutAlgorithm`: what PPO and PRIME share, whose trainers are trimtab's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimtab.training.runs.algorithms.online import OnlineAlgorithm

__all__ = ["RolloutAlgorithm"]


class RolloutAlgorithm(OnlineAlgorithm):
    """Samples in rounds, and trains a second model beside the policy."""

    def problems(self, args: Any) -> Iterator[str]:
        """None: the configuration itself refuses what its trainer would."""
        return iter(())

    def steps_per_round(self, args: Any) -> int:
        """Samples serve all steps of a round."""
        steps: int = args.steps_per_round
        return steps
