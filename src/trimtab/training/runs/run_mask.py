"""The mask of a run: from a file, or drawn at random; checked against the base before it loads."""

from __future__ import annotations

from math import prod
from pathlib import Path

from trimtab.masks import Mask
from trimtab.masks.provenance import provenance_of
from trimtab.masks.random import random_tensor
from trimtab.training.runs.base_model import BaseModel

__all__ = ["load_mask", "random_mask"]


def load_mask(path: Path, base: BaseModel) -> Mask:
    """Load a mask that was made against this very base.

    Raises:
        MaskError: It is no mask file.
        MaskMismatchError: It is one for another model, or for other weights.
    """
    return base.fitted(Mask.load(path))


def random_mask(base: BaseModel, density: float, seed: int) -> Mask:
    """Select the same share of every parameter, at random places.

    Args:
        base: The model.
        density: Selected elements of each tensor, rounded to a whole number.
        seed: Decides the places; the same as `trimtab mask random` would choose.
    """
    tensors = {
        name: random_tensor(shape, round(density * prod(shape)), seed=seed, name=name)
        for name, shape in base.shapes.items()
    }
    known = {name: base.tensors[name] for name in tensors if name in base.tensors}
    step = {"step": "random density", "density": density, "seed": seed, "base": base.record.id}
    return Mask(tensors, known, provenance_of([step]))
