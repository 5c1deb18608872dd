"""Elements that training steps of a given size can change in the stored dtype.

A weight `w` that moves by `d` changes only if `w + d` no longer rounds to `w`
(`trimtab.elements.absorption`). With pure low-precision weights each step is rounded on its own, so
steps of LR never change what one of them cannot. With an fp32 master the total distance counts:
after N steps of Adam at most LR × `adam_displacement_bound(N)`.

Source: arXiv 2602.03839 (PULSE) and 2511.08567 (Gate III), which use |w| / 256; here the threshold
is
exact for each weight and direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import read_weights
from trimtab.elements.absorption import adam_displacement_bound, rounding_reach
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import MaskError
from trimtab.masks.header import provenance_of
from trimtab.masks.makers.weight_scores import ElementScores, Lookup
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor

BETAS = (0.9, 0.999)
"""Adam's betas for `absorption_distance`; the usual ones."""


def absorption_distance(lr: float, steps: int = 1) -> float:
    """The distance that a weight can move in some steps of Adam: LR, for one.

    Args:
        lr: Peak learning rate.
        steps: Steps that accumulate in a high-precision master; 1 without one.

    Raises:
        MaskError: `lr` is not a positive number, or `steps` is below 1.
    """
    if not (isfinite(lr) and lr > 0):
        raise MaskError(f"learning rate {lr}: expected a finite number above 0")
    if steps < 1:
        raise MaskError(f"{steps} steps: expected 1 or more")
    return lr * adam_displacement_bound(steps, BETAS)


def absorption_scores(
    base: Checkpoint, names: Iterable[str] | None = None, *, progress: Progress | None = None
) -> ElementScores:
    """Weights that the smallest move changes first. Arguments as for `WeightScores`."""
    return ElementScores(
        lambda bits, dtype: -smallest_reach(bits, dtype), base, names, progress=progress
    )


def absorption_mask(
    base: Checkpoint,
    distance: float,
    names: Iterable[str] | None = None,
    *,
    provenance: Mapping[str, Any],
    progress: Progress | None = None,
) -> Mask:
    """Select the elements that a move of some distance, up or down, can change.

    The criterion is `value`: -0.0 that becomes 0.0 has not changed.

    Args:
        base: An open checkpoint.
        distance: As `absorption_distance` returns it.
        names: Names of its tensors; by default all that are stored as floats.
        provenance: The step that decided the distance.
        progress: Called after each chunk, from any thread.

    Raises:
        MaskError: A weight is NaN.
        CheckpointError: Weights are quantised.
    """
    weights = absorption_scores(base, names, progress=progress)
    moves = Lookup(lambda bits, dtype: smallest_reach(bits, dtype) <= distance)

    def one(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> PackedTensor:
        parts = (moves(bits, tensor.dtype) for _, bits in chunks)
        return PackedTensor.of_parts(tensor.shape, parts)

    tensors, _ = read_weights(base, weights.shapes, one, progress=progress)
    return Mask(tensors, weights.base, provenance_of([{**provenance, "distance": distance}]))


def smallest_reach(bits: Bits, dtype: DType) -> NDArray[np.float64]:
    """Smallest move, up or down, that changes each element; infinite where it is infinite."""
    return np.minimum(*rounding_reach(bits, dtype))
