"""DPO by TRL's `DPOTrainer`.

The reference is the base: TRL loads it again from the folder that the model came from, in the same
dtype, also when a run goes on.
"""

from trimtab.training.runs.algorithms.algorithm import PAIRS, Algorithm

__all__ = ["DPO"]

DPO = Algorithm(
    name="dpo",
    trainer="trl:DPOTrainer",
    config="trl:DPOConfig",
    columns=PAIRS,
    made_of_samples="pairs",
)
