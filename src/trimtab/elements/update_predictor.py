"""Predictors of updates: none yet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CheckpointError


@dataclass(frozen=True, eq=False)
class Predictor:
    """What predicts an update of a matrix: factors of its rows and of its columns."""

    coded: bytes
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    scale: int

    @property
    def rank(self) -> int:
        """Number of factors."""
        return self.right.shape[0]


NO_PREDICTOR = Predictor(b"", np.zeros((0, 0), np.int32), np.zeros((0, 0), np.int32), 0)


def fit_predictor(base: Bits, tuned: Bits, dtype: DType, max_rank: int) -> Predictor:
    """The predictor that makes an update smallest."""
    return NO_PREDICTOR


def read_predictor(coded: bytes, shape: tuple[int, ...]) -> Predictor:
    """The predictor that a frame holds."""
    if coded:
        raise CheckpointError("does not fit a tensor")
    return NO_PREDICTOR
