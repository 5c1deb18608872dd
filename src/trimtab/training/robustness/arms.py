"""The sets of elements that are perturbed: the mask, and sets of its size to set it beside.

=============  ====================================================================================
`mask`         what the mask selects
`outside`      as many elements of each tensor that it does not select, at random
`random`       as many elements of each tensor, at random among all
`magnitude`    as many elements of each tensor and exponent of the base's weight, at random
=============  ====================================================================================

All four have the same number of elements in every tensor, so a tensor that is more than half
selected is thinned to what is left outside: the mask itself is, at random. The last two may take
elements of the mask, too; `Arm.num_in_mask` says how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trimtab.checkpoints import Checkpoint
from trimtab.masks import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.masks.random import random_tensor
from trimtab.masks.random_matched import random_matched

__all__ = ["ARMS", "Arm", "arms_of"]

ARMS = ("mask", "outside", "random", "magnitude")
"""In the order in which they are shown; the others are what the first is set against."""


@dataclass(frozen=True)
class Arm:
    """A set of elements.

    Attributes:
        name: One of `ARMS`.
        elements: Which.
        num_in_mask: How many of them the mask selects.
    """

    name: str
    elements: Mask
    num_in_mask: int


def arms_of(mask: Mask, base: Checkpoint, seed: int) -> dict[str, Arm]:
    """Draw the sets for one seed.

    Args:
        mask: The mask.
        base: What it was made against: its weights say which elements have one magnitude.
        seed: Of all that is drawn.

    Returns:
        Name -> set, in the order of `ARMS`.
    """
    outside = mask.complement()
    room = {name: min(mask.num_selected(name), outside.num_selected(name)) for name in mask}
    chosen = _thinned(mask, room, seed, "mask")
    sets = (
        chosen,
        _thinned(outside, room, seed, "outside"),
        chosen.random_like(seed),
        random_matched(chosen, base, seed),
    )
    return {
        name: Arm(name, elements, _num_common(elements, mask))
        for name, elements in zip(ARMS, sets, strict=True)
    }


def _thinned(mask: Mask, room: dict[str, int], seed: int, what: str) -> Mask:
    """So many of the elements that a mask selects in each tensor, at random."""
    if all(room[name] == mask.num_selected(name) for name in mask):
        return mask
    tensors = {}
    for name in mask:
        selected = mask.array(name)
        places = mask.indices(name)
        kept = random_tensor(places.shape, room[name], seed=seed, name=f"{what}\0{name}").unpack()
        selected.reshape(-1)[places[~kept]] = False
        tensors[name] = PackedTensor.pack(selected)
    return Mask(tensors, mask.base, mask.provenance)


def _num_common(left: Mask, right: Mask) -> int:
    return sum(int(np.bitwise_count(left.packed(name) & right.packed(name)).sum()) for name in left)
