"""The strictest random control: as many elements in each tensor × exponent bin as a mask has.

A step of training moves a stored weight only if it is large beside the weight (see
`trimtab.elements.absorption`), so masks of two trainings both favour small weights. What a mask has
beyond that shows only beside a random one that favours them as much.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from trimtab.checkpoints import Checkpoint, StoredTensor, opened
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits, exponent_bins
from trimtab.masks.mask import Mask
from trimtab.masks.naming import named_as_in
from trimtab.masks.packed import BaseTensor, PackedTensor
from trimtab.masks.provenance import provenance_with
from trimtab.masks.random import Lots
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.weights import read_weights

__all__ = ["random_matched"]


def random_matched(
    mask: Mask,
    base: str | os.PathLike[str] | Checkpoint,
    seed: int,
    *,
    progress: Progress | None = None,
) -> Mask:
    """Select as many elements of each tensor × exponent bin as a mask does, at random places.

    Every choice of so many elements of each bin is equally likely.

    Args:
        mask: The mask to match.
        base: The checkpoint that it was made against; read twice.
        seed: With a tensor's name it decides the tensor's elements, on any machine and whichever
            tensors there are besides.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: Base cannot be read.
        MaskMismatchError: The mask does not fit base, or was made against another one.
    """
    with opened(base) as (base,):
        mask = named_as_in(mask, base)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        quotas = Quotas.like(
            mask, shapes, match="magnitude", base=base, num_passes=2, progress=progress
        )
        groups = {group.name: group for group in quotas.groups}

        def draw(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> PackedTensor:
            group = groups[tensor.name]
            lots = Lots(group.sizes.tolist(), group.nums.tolist(), seed=seed, name=group.name)
            parts = (lots.draw(exponent_bins(bits, tensor.dtype)) for _, bits in chunks)
            return PackedTensor.of_parts(tensor.shape, parts)

        drawn, _ = read_weights(base, quotas.shapes, draw, num_passes=2, progress=progress)
        empty = {  # what base lacks; nothing of it is selected
            name: PackedTensor.of(mask.shape(name), np.zeros_like(mask.packed(name)))
            for name in mask
            if name not in drawn
        }
        of_base = {
            name: BaseTensor(base.tensors[name].dtype.name, digest)
            for name, digest in quotas.digests.items()
        }
    step = {"step": "random", "match": "magnitude", "seed": seed, "of": mask.digest}
    return Mask(
        {name: (drawn | empty)[name] for name in mask},
        {**mask.base, **of_base},
        provenance_with(mask.provenance, step),
    )
