"""What precision alone predicts: how many elements training steps of this size could change.

A measured sparsity means little beside an LR of 1e-6 if bf16 weights would have absorbed nearly
all such steps whatever the objective. So for each kind, from the base weights, their stored dtype,
LR, number of steps and the Adam betas alone:

=================  ==========================================================================
`one_step`         elements that ONE step of size LR can change. With pure low-precision weights
                   (no fp32 master) also what any number of steps of size <= LR can: each one is
                   rounded away on its own.
`random_walk`      EXPECTED number changed when a high-precision master takes N independent steps
                   of root mean square LR, so that it ends Normal(0, N·LR²) away, and is then
                   stored. A model of directionless training, not a bound.
`straight_line`    elements that N steps of LR all in one direction can move: the most that can
                   change at the usual Adam step size, with a high-precision master.
`adam_bound`       elements that N worst-case Adam steps can move, whatever the gradients.
=================  ==========================================================================

`adam_bound` sums the exact worst case of every step from an empty optimizer state
(`trimtab.elements.absorption.adam_step_bounds`). The constant √((1-β1)/(1-β2)) of arXiv
2602.03839 also bounds each step, but is 10 × LR from the first step on, where the truth begins at
1 × LR. A run that resumes with optimizer state is outside this bound; so is weight decay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import fsum, isfinite, sqrt
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.absorption import (
    adam_displacement_bound,
    adam_step_bounds,
    base_histogram,
    count_movable,
    expected_moved,
    num_finite,
)
from trimtab.elements.dtypes import DTYPES, Bits, DType
from trimtab.errors import AnalysisError
from trimtab.results.schema import Amount, Count, Share


class Predicted(TypedDict):
    """What precision alone predicts for some elements, and what it leaves unchanged."""

    num_elements: Count
    num_nonfinite: Count
    num_not_float: Count
    dtypes: Mapping[str, Count]
    one_step: Count
    random_walk: Amount
    straight_line: Count
    adam_bound: Count
    sparsity: Mapping[str, Share | None]


def _no_more_than_there_are(row: Predicted) -> str | None:
    counts = {
        "num_nonfinite": row["num_nonfinite"],
        "num_not_float": row["num_not_float"],
        "one_step": row["one_step"],
        "random_walk": row["random_walk"],
        "straight_line": row["straight_line"],
        "adam_bound": row["adam_bound"],
    }
    # The random walk is a sum of chances, so its last bits may be above a whole number.
    most = row["num_elements"] * (1 + 1e-9)
    for name, count in counts.items():
        if count > most:
            return f"has {name} {count} of {row['num_elements']} elements"
    return None


PredictedCounts = Annotated[Predicted, _no_more_than_there_are]


class Precision(TypedDict):
    """What `PrecisionProbe.to_dict` gives."""

    lr: Amount
    steps: Count
    betas: tuple[float, float]
    adam_step_bound: Amount
    adam_displacement_bound: Amount
    by_kind: Mapping[str, PredictedCounts]
    total: PredictedCounts


@dataclass
class PrecisionProbe:
    """Collects the base weights of a model, chunk by chunk, and predicts what can change.

    One probe is for one thread; probes of the same settings add with `+`.

    Attributes:
        lr: Learning rate (its peak, if scheduled).
        steps: Number of optimizer steps.
        betas: Adam's β1 and β2.

    Raises:
        AnalysisError: A setting is out of range.
    """

    lr: float
    steps: int
    betas: tuple[float, float] = (0.9, 0.999)
    _histograms: dict[tuple[str, str], NDArray[np.int64]] = field(default_factory=dict, repr=False)
    _not_float: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        if not (isfinite(self.lr) and self.lr > 0):
            raise AnalysisError(f"learning rate {self.lr}: expected a finite number above 0")
        if self.steps < 1:
            raise AnalysisError(f"{self.steps} steps: expected at least 1")
        beta1, beta2 = self.betas
        if not (beta1 >= 0 and beta1**2 < beta2 < 1):
            raise AnalysisError(
                f"betas ({beta1}, {beta2}): expected 0 <= β1 and β1² < β2 < 1; other betas leave "
                "the length of an Adam step without a bound"
            )

    def empty(self) -> PrecisionProbe:
        """An empty probe with the same settings."""
        return PrecisionProbe(self.lr, self.steps, self.betas)

    def add(self, kind: str, bits: Bits, dtype: DType | str) -> None:
        """Add some elements of the base checkpoint.

        Args:
            kind: Kind of their tensor, such as `q_proj`.
            bits: Elements as unsigned integers. Any shape.
            dtype: Dtype of the elements, or its safetensors name: `BF16`. Elements that are not
                floats are counted, and never predicted to move.
        """
        dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        if not dtype.is_float:
            self._not_float[kind] += bits.size
            return
        histogram = base_histogram(bits, dtype)
        key = kind, dtype.name
        self._histograms[key] = histogram + self._histograms.get(key, 0)

    def __add__(self, other: PrecisionProbe) -> PrecisionProbe:
        """The elements of both probes together.

        Raises:
            AnalysisError: They have different settings.
        """
        if (self.lr, self.steps, self.betas) != (other.lr, other.steps, other.betas):
            raise AnalysisError(f"probes of different settings cannot be added: {self}, {other}")
        histograms = dict(self._histograms)
        for key, histogram in other._histograms.items():
            histograms[key] = histogram + histograms.get(key, 0)
        not_float = self._not_float + other._not_float
        return PrecisionProbe(self.lr, self.steps, self.betas, histograms, not_float)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the settings, and counts by kind and in total.

        `adam_step_bound` is the longest single Adam step within the run and
        `adam_displacement_bound` their sum, both in units of the weights. Each entry of `by_kind`
        and `total` has `num_elements`, of which `num_nonfinite` and `num_not_float` can never be
        predicted to move; `dtypes`; the four counts of the module's table; and under `sparsity`
        the share left unchanged by each (`random_walk` is an expectation and not an integer).
        """
        # Sorted, since threads add tensors in any order.
        kinds = sorted({*(kind for kind, _ in self._histograms), *self._not_float})
        return {
            "lr": self.lr,
            "steps": self.steps,
            "betas": list(self.betas),
            "adam_step_bound": self.lr * float(adam_step_bounds(self.steps, self.betas).max()),
            "adam_displacement_bound": self.lr * adam_displacement_bound(self.steps, self.betas),
            "by_kind": {kind: self._predicted([kind]) for kind in kinds},
            "total": self._predicted(kinds),
        }

    def _predicted(self, kinds: Iterable[str]) -> dict[str, Any]:
        kinds = set(kinds)
        parts = [
            (histogram, DTYPES[name])
            for (kind, name), histogram in self._histograms.items()
            if kind in kinds
        ]
        num_not_float = sum(self._not_float[kind] for kind in kinds)
        dtypes: Counter[str] = Counter()
        for histogram, dtype in parts:
            dtypes[dtype.name] += int(histogram.sum())

        def movable(distance: float) -> int:
            return sum(count_movable(histogram, dtype, distance) for histogram, dtype in parts)

        deviation = self.lr * sqrt(self.steps)
        counts: dict[str, int | float] = {
            "one_step": movable(self.lr),
            "random_walk": fsum(expected_moved(*part, deviation) for part in parts),
            "straight_line": movable(self.lr * self.steps),
            "adam_bound": movable(self.lr * adam_displacement_bound(self.steps, self.betas)),
        }
        num_float = dtypes.total()
        num_elements = num_float + num_not_float
        return {
            "num_elements": num_elements,
            "num_nonfinite": num_float - sum(num_finite(*part) for part in parts),
            "num_not_float": num_not_float,
            "dtypes": dict(dtypes),
            **counts,
            "sparsity": {
                name: (num_elements - count) / num_elements if num_elements else None
                for name, count in counts.items()
            },
        }
