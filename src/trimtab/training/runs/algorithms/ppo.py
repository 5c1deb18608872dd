"""PPO by trimtab's own `PPOTrainer`: TRL has none since 1.13.

The reference is the base, copied before the first step, also when a run goes on.
"""

from trimtab.training.runs.algorithms.rollouts import RolloutAlgorithm

__all__ = ["PPO"]

PPO = RolloutAlgorithm(
    name="ppo",
    trainer="trimtab.training:PPOTrainer",
    config="trimtab.training:PPOConfig",
    columns=("prompt",),
    takes_reward=True,
)
