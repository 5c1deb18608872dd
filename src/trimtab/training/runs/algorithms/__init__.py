"""One small adapter for each algorithm, so that a change upstream costs one file.

To add an algorithm, write its adapter and list it in `ALGORITHMS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.training.runs.algorithms.algorithm import Algorithm
from trimtab.training.runs.algorithms.dpo import DPO
from trimtab.training.runs.algorithms.grpo import GRPO
from trimtab.training.runs.algorithms.kto import KTO
from trimtab.training.runs.algorithms.orpo import ORPO
from trimtab.training.runs.algorithms.ppo import PPO
from trimtab.training.runs.algorithms.prime import PRIME
from trimtab.training.runs.algorithms.rft import RFT
from trimtab.training.runs.algorithms.rloo import RLOO
from trimtab.training.runs.algorithms.sft import SFT
from trimtab.training.runs.algorithms.simpo import SIMPO

__all__ = ["ALGORITHMS", "Algorithm"]

ALGORITHMS: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (SFT, RFT, DPO, ORPO, KTO, SIMPO, PPO, GRPO, RLOO, PRIME)
}
