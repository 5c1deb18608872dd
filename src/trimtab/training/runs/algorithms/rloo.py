"""RLOO by TRL's `RLOOTrainer`: each sample against the mean of the others, a ratio for the whole.

Its KL penalty is in the reward and on by default (`beta`): the reference is the base, which TRL
loads again from the folder that the model came from.
"""

from trimtab.training.runs.algorithms.online import OnlineAlgorithm

__all__ = ["RLOO"]

RLOO = OnlineAlgorithm(
    name="rloo",
    trainer="trl:RLOOTrainer",
    config="trl:RLOOConfig",
    columns=("prompt",),
    takes_reward=True,
)
