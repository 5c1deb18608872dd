"""ORPO by TRL's experimental `ORPOTrainer`: it needs no reference model."""

from trimtab.training.runs.algorithms.algorithm import PAIRS, Algorithm

__all__ = ["ORPO"]

ORPO = Algorithm(
    name="orpo",
    trainer="trl.experimental.orpo:ORPOTrainer",
    config="trl.experimental.orpo:ORPOConfig",
    columns=PAIRS,
    defaults={"remove_unused_columns": False},  # its collator reads them; TRL would warn and do so
    made_of_samples="pairs",
)
