"""SimPO by TRL's experimental `CPOTrainer`, whose loss it is without the cloning term.

`CPOConfig` keeps `cpo_alpha = 1.0` when only `loss_type` is set, which is another algorithm,
CPO-SimPO. So what makes it SimPO is fixed. TRL's `beta = 0.1` is DPO's; SimPO divides by the length
and needs a larger one. Ours, and the margin of half of it, are those that its authors trained
Llama-3-Base with and recommend to start from (README of princeton-nlp/SimPO).
"""

from trimtab.training.runs.algorithms.algorithm import PAIRS, Algorithm

__all__ = ["SIMPO"]

SIMPO = Algorithm(
    name="simpo",
    trainer="trl.experimental.cpo:CPOTrainer",
    config="trl.experimental.cpo:CPOConfig",
    columns=PAIRS,
    defaults={
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "remove_unused_columns": False,  # its collator reads them; TRL would warn and do so
    },
    fixed={"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0},
    made_of_samples="pairs",
)
