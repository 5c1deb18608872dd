"""PRIME by trimtab's own `PRIMETrainer`: TRL never had it, and verl's recipe no longer runs.

The reward model begins as the base; so does its reference, also when a run goes on.
"""

from trimtab.training.runs.algorithms.rollouts import RolloutAlgorithm

__all__ = ["PRIME"]

PRIME = RolloutAlgorithm(
    name="prime",
    trainer="trimtab.training:PRIMETrainer",
    config="trimtab.training:PRIMEConfig",
    columns=("prompt",),
    takes_reward=True,
)
