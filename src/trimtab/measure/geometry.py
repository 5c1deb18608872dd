"""Where in a matrix the update lies: off its principal directions, on its small weights?

RL updates are reported to avoid the principal directions of a pretrained matrix, to favour its
small
weights, and to change its singular values little (2511.08567). Each claim is a share, shown with
its
chance level, at which `lift` is 1:

====================  ======================================================================
`energy_left`         ‖Uᵀ Δ‖² / ‖Δ‖² with U the base's top k left singular directions (of the
                      outputs, for weights stored [out, in]); chance k/m
`energy_right`        ‖Δ V‖² / ‖Δ‖² with V its top k right ones (of the inputs); chance k/n
`energy_both`         ‖Uᵀ Δ V‖² / ‖Δ‖²; chance k²/(mn)
`low_magnitude_mask`  share of the changed elements among the α·m·n of smallest |base|; chance α
`principal_mask`      share of the changed elements among the α·m·n where the rank-k part of the
                      base is largest in magnitude; chance α
`spectral_shift`      NSS = ‖σ(tuned) - σ(base)‖ / ‖σ(base)‖; at most ‖Δ‖ / ‖base‖, shown with it
====================  ======================================================================

"Changed" is criterion `value` (Δ ≠ 0). Precision alone makes small weights change more often
(`trimtab.measure.precision`): a random update of the size of an RL step, stored as bf16, has a lift
above 1 on the low-magnitude mask and below 1 on the principal one. Neither alone is evidence of a
preference. Magnitudes in bf16 tie in the thousands: a mask has exactly α·m·n elements, the ties at
its edge counting in part, which is the expectation over every way to break them.

Source: arXiv 2511.08567 sec. 4. The defaults of k (a share of min(m, n)) and α are trimtab's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Annotated, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from trimtab.elements import spectrum
from trimtab.errors import AnalysisError
from trimtab.measure.matrices import Matrix, MatrixAnalysis, Skipped, reason_to_skip
from trimtab.results.schema import Amount, Count, Share

SHARES = (
    "energy_left",
    "energy_right",
    "energy_both",
    "low_magnitude_mask",
    "principal_mask",
)


class ShareOfUpdate(TypedDict):
    """A share of an update with its chance level."""

    share: Share
    chance: Share
    lift: Amount


class GeometrySummary(TypedDict):
    """The shares over the matrices."""

    energy_left: ShareOfUpdate | None
    energy_right: ShareOfUpdate | None
    energy_both: ShareOfUpdate | None
    low_magnitude_mask: ShareOfUpdate | None
    principal_mask: ShareOfUpdate | None
    spectral_shift: Amount | None
    relative_update: Amount | None


class GeometryOfMatrix(GeometrySummary):
    """The shares of one matrix."""

    shape: tuple[Count, ...]
    num_elements: Count
    num_changed: Count
    k: Count | None


def _no_more_changed(row: GeometryOfMatrix) -> str | None:
    if row["num_changed"] <= row["num_elements"]:
        return None
    return f"has {row['num_changed']} changed of {row['num_elements']} elements"


class Geometry(TypedDict):
    """What `GeometryAnalysis.to_dict` gives."""

    principal: Share
    mask: Share
    max_rank: Count
    max_elements: Count
    num_matrices: Count
    num_zero_updates: Count
    skipped: tuple[Skipped, ...]
    summary: GeometrySummary
    by_tensor: Mapping[str, Annotated[GeometryOfMatrix, _no_more_changed]]


def mask_overlap(score: Matrix, changed: NDArray[np.bool_], fraction: float) -> float:
    """Number of changed elements among the `fraction` of all that score lowest.

    Args:
        score: Any shape, finite.
        changed: Which elements to count; same shape.
        fraction: Size of the mask as a share of all elements, in (0, 1).

    Returns:
        The count; not an integer where elements that tie at the edge of the mask count in part.
    """
    size = fraction * score.size
    edge = np.partition(score.ravel(), ceil(size) - 1)[ceil(size) - 1]
    below, tied = score < edge, score == edge
    part = (size - np.count_nonzero(below)) / np.count_nonzero(tied)
    return float(np.count_nonzero(changed & below) + part * np.count_nonzero(changed & tied))


@dataclass
class GeometryAnalysis(MatrixAnalysis):
    """Collects the geometry of a model's update, one matrix at a time.

    A matrix needs about three arrays of its size in addition to base and tuned, and a few of min(m,
    n)²
    fp64 numbers: 1.7 GB in all for 4096 × 14336.

    Attributes:
        principal: k as a share of min(m, n), rounded up.
        mask: α, the size of the masks as a share of all elements.
        max_rank: Matrices with a larger min(m, n) are listed as skipped. 4096 × 4096 took 21 s and
            4096 × 14336 40 s on two cores.

    Raises:
        AnalysisError: A share is not between 0 and 1.
    """

    principal: float = spectrum.PRINCIPAL_SHARE
    mask: float = 0.5
    max_rank: int = 4096

    def __post_init__(self) -> None:
        for name, share in (("principal", self.principal), ("mask", self.mask)):
            if not 0 < share < 1:
                raise AnalysisError(f"{name} share {share}: expected a number between 0 and 1")

    def _figures(self, name: str, base: Matrix, tuned: Matrix, update: Matrix) -> dict[str, Any]:
        size = min(base.shape)
        changed = update != 0
        row: dict[str, Any] = {
            "shape": list(base.shape),
            "num_elements": base.size,
            "num_changed": int(np.count_nonzero(changed)),
            **dict.fromkeys((*SHARES, "k"), None),
            "relative_update": None,
            "spectral_shift": None,
        }
        base_energy, update_energy = spectrum.energy(base), spectrum.energy(update)
        if base_energy > 0:
            # Below this, the noise of a Gram spectrum is small beside any shift worth stating.
            smallest = 1e-5 * sqrt(base_energy)
            before = spectrum.singular_values(base, smallest=smallest)
            shift = spectrum.singular_values(tuned, smallest=smallest) - before
            row["relative_update"] = sqrt(update_energy / base_energy)
            row["spectral_shift"] = float(np.linalg.norm(shift) / np.linalg.norm(before))
        if base_energy > 0 and update_energy > 0:
            left, right = spectrum.principal_directions(base, ceil(self.principal * size))
            row["k"] = left.shape[1]
            row |= _energy_shares(update, update_energy, left, right)
            row["low_magnitude_mask"] = self._mask_share(np.abs(base), changed)
            projection = spectrum.principal_part(base, right)
            row["principal_mask"] = self._mask_share(-np.abs(projection, out=projection), changed)
        return row

    def _reason_to_skip(self, base: Matrix, tuned: Matrix, update: Matrix) -> str | None:
        for side, matrix in (("base", base), ("tuned", tuned), ("update", update)):
            reason = reason_to_skip(matrix, self.max_elements)
            if reason is not None:
                return f"{side}: {reason}"
        if min(base.shape) > self.max_rank:
            return f"its smaller side, {min(base.shape)}, is above the limit of {self.max_rank}"
        return None

    def _mask_share(self, score: Matrix, changed: NDArray[np.bool_]) -> dict[str, float]:
        inside = mask_overlap(score, changed, self.mask)
        return _share(inside / np.count_nonzero(changed), self.mask)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Every entry of `by_tensor` has the figures of the module's table, each share with its
        `chance` and `lift`; `k`, fewer than asked for where the base has lower rank; and
        `relative_update` = ‖Δ‖ / ‖base‖. Figures that do not exist (no change, or a base of zeros)
        are null. `summary` averages over the matrices that have the figure, weighted by changed
        elements, with the mean chance weighted alike.
        """
        rows = list(self._by_tensor.values())
        return {
            "principal": self.principal,
            "mask": self.mask,
            "max_rank": self.max_rank,
            "max_elements": self.max_elements,
            "num_matrices": len(rows),
            "num_zero_updates": sum(row["num_changed"] == 0 for row in rows),
            "skipped": list(self._skipped),
            "summary": {
                **{name: _mean_share(name, rows) for name in SHARES},
                **{
                    name: _weighted_mean((row[name], row["num_changed"]) for row in rows)
                    for name in ("spectral_shift", "relative_update")
                },
            },
            "by_tensor": dict(self._by_tensor),
        }


def _energy_shares(
    update: Matrix, total: float, left: NDArray[np.float64], right: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    rows, columns = update.shape
    k = left.shape[1]
    kept_left = left.T.astype(update.dtype) @ update
    kept_right = update @ right.astype(update.dtype)
    kept_both = kept_left @ right.astype(update.dtype)
    return {
        "energy_left": _share(spectrum.energy(kept_left) / total, k / rows),
        "energy_right": _share(spectrum.energy(kept_right) / total, k / columns),
        "energy_both": _share(spectrum.energy(kept_both) / total, k**2 / (rows * columns)),
    }


def _share(share: float, chance: float) -> dict[str, float]:
    return {"share": share, "chance": chance, "lift": share / chance}


def _mean_share(name: str, rows: list[dict[str, Any]]) -> dict[str, float] | None:
    present = [row for row in rows if row[name] is not None]
    share, chance = (
        _weighted_mean((row[name][part], row["num_changed"]) for row in present)
        for part in ("share", "chance")
    )
    return None if share is None or chance is None else _share(share, chance)


def _weighted_mean(pairs: Iterable[tuple[float | None, int]]) -> float | None:
    """Mean of the values that exist; None where their weights sum to 0."""
    present = [(value, weight) for value, weight in pairs if value is not None]
    total = sum(weight for _, weight in present)
    return sum(value * weight for value, weight in present) / total if total else None
