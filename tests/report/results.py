"""A result of each kind that reports are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

import trimtab
from tests.report.factory import make_comparison
from tests.report.identity_factory import make_identity
from tests.report.overlap_factory import make_overlap
from tests.report.split_factory import make_split
from tests.report.structure_factory import make_structure
from tests.report.trajectory_factory import make_trajectory
from tests.training.evaluation.results import make_evaluation
from tests.training.robustness.results import make_probe
from trimtab.masks.mask import Mask
from trimtab.masks.prediction import PredictionScore, score_prediction
from trimtab.results.result import Result

__all__ = ["RESULTS"]

ROOT = Path(__file__).parents[2]


def make_score() -> PredictionScore:
    """Half of a small matrix predicted, a quarter come true."""
    pred, true = (
        Mask.from_arrays({"model.layers.0.self_attn.q_proj.weight": np.array(rows, np.bool_)})
        for rows in ([[1, 1], [0, 0]], [[1, 0], [0, 0]])
    )
    return score_prediction(pred, true)


RESULTS: Mapping[str, Callable[[Path], Result]] = {
    "comparison": lambda _: make_comparison(3, analysed=True),
    "trajectory": lambda _: make_trajectory(),
    "identity": lambda _: make_identity(num_strays=1),
    "overlap": lambda _: make_overlap(3),
    "split": lambda _: make_split(),
    "prediction": lambda _: make_score(),
    "structure": lambda folder: make_structure(folder, 2, has_base=True),
    "evaluation": lambda _: make_evaluation(levels=(1, 1, 2, 2, 3, 3), suites=True),
    "robustness": lambda _: make_probe(),
    "paper": lambda _: trimtab.load_result(ROOT / "papers/critics/results/small.json"),
}
"""Kind -> what makes one, given an empty folder."""
