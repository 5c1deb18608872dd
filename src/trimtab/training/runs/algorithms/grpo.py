"""GRPO by TRL's `GRPOTrainer`: advantages within the group, a clipped ratio for each token."""

from trimtab.training.runs.algorithms.online import OnlineAlgorithm

__all__ = ["GRPO"]

GRPO = OnlineAlgorithm(
    name="grpo",
    trainer="trl:GRPOTrainer",
    config="trl:GRPOConfig",
    columns=("prompt",),
    takes_reward=True,
)
