"""Carry a mask to another checkpoint: the same elements where there are the same, else by a map.

Exact: the other checkpoint has the mask's tensors with their shapes (base and instruct, another
seed, another task). The bits stay; what the mask was made against becomes the other checkpoint. Of
a vocabulary of another size the rows that both have are carried, token by token.

By a map, which has to be named, because it is a hypothesis and no fact about the other model:

- `layers=interpolate`, for another depth: layer i of L₂ gets the bits of layer
  round(i·(L₁ - 1) / (L₂ - 1)) of L₁.
- `units=density`, for another width: each row gets as large a share of selected elements as the
  row at the same relative place of the mask, at random places. No element is carried.

Only shapes and hashes of the other checkpoint are used, and tensors are made one at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterator
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, StoredTensor, opened
from trimtab.checkpoints.align import has_vocabulary_rows
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits
from trimtab.errors import MaskError
from trimtab.masks.derived import DerivedMask, tensor_of
from trimtab.masks.outline import MaskOutline
from trimtab.masks.packed import BaseTensor, PackedMask, PackedTensor
from trimtab.masks.provenance import provenance_with
from trimtab.masks.selection.weights import read_weights
from trimtab.masks.transfer.plan import DENSITY, HOW, INTERPOLATE, TransferPlan, plan_transfer
from trimtab.masks.transfer.rows import nearest, random_rows, row_counts, scaled_counts
from trimtab.results.records import record_of
from trimtab.words import first_few

__all__ = ["MAPS", "transferred"]

MAPS = (INTERPOLATE, DENSITY)
"""The maps there are."""


def transferred(
    mask: PackedMask,
    to: str | os.PathLike[str] | Checkpoint,
    *,
    maps: Collection[str] = (),
    seed: int = 0,
    progress: Progress | None = None,
) -> DerivedMask:
    """Carry a mask to another checkpoint.

    Args:
        mask: The mask.
        to: The checkpoint: a folder, a file, a hub id (`org/name@revision`), or an open one.
            Its bytes are read once, to hash them.
        maps: `layers=interpolate` to carry it to another depth, `units=density` to another width;
            each is used only where it is needed.
        seed: Of the places that a row of another width gets; nothing else is drawn.
        progress: Called after each chunk that is read, from any thread.

    Returns:
        A mask of the checkpoint's tensors, without those that the mask does not have. The last step
        of its provenance says what was carried, and how.

    Raises:
        MaskError: There is no such map.
        MaskMismatchError: The mask cannot be carried so; the message names all tensors, up to a
            handful, and the map that would help.
        CheckpointError: The checkpoint cannot be read.
    """
    if unknown := [repr(one) for one in maps if one not in MAPS]:
        raise MaskError(f"no map {first_few(unknown)}: expected {' or '.join(MAPS)}")
    with opened(to) as (other,):
        shapes = {name: tensor.shape for name, tensor in other.tensors.items()}
        plan = plan_transfer(mask, shapes, other.tied, maps=frozenset(maps), to=other.id)
        _, digests = read_weights(other, other.tensors, _read_past, progress=progress)
        step = {
            "step": "transfer",
            "of": mask.digest,
            "to": record_of(other, digests).to_dict(),
            **_account(mask, plan, seed),
        }
        base = {
            name: BaseTensor(other.tensors[name].dtype.name, digests[name]) for name in plan.tensors
        }
    carried_shapes = {name: carried.shape for name, carried in plan.tensors.items()}
    outline = MaskOutline(carried_shapes, base, provenance_with(mask.provenance, step))

    def tensor(name: str) -> PackedTensor:
        source, shape, how = plan.tensors[name]
        before = tensor_of(mask, source, mask.shape(source))
        if how == "density":
            return _spread(before, shape, seed=seed, name=name)
        return before if how == "bits" else before.resized(shape)

    return DerivedMask(outline, tensor)


def _read_past(_: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> None:
    """Read a tensor for its hash alone."""
    deque(chunks, maxlen=0)


def _account(mask: PackedMask, plan: TransferPlan, seed: int) -> dict[str, Any]:
    """What provenance says of how a mask was carried."""
    by = {how: [n for n, one in plan.tensors.items() if one.how == how] for how in HOW}
    used = {INTERPOLATE: plan.layers is not None, DENSITY: bool(by["density"])}
    return {
        "maps": [one for one in MAPS if used[one]],
        "layers": None if plan.layers is None else {str(k): v for k, v in plan.layers.items()},
        "seed": seed if by["density"] else None,
        "by_density": by["density"],
        "common_rows": [
            {
                "name": name,
                "shape": list(plan.tensors[name].shape),
                "mask_shape": list(mask.shape(plan.tensors[name].source)),
            }
            for name in by["rows"]
        ],
        "not_in_mask": list(plan.not_in_mask),
        "left_out": list(plan.left_out),
    }


def _spread(before: PackedTensor, shape: tuple[int, ...], *, seed: int, name: str) -> PackedTensor:
    """Select as large a share of each row as of the row at the same relative place before."""
    if not prod(before.shape) or not prod(shape):
        return random_rows(shape, np.zeros(prod(shape[:-1]), np.int64), seed=seed, name=name)
    counts = row_counts(before)
    if has_vocabulary_rows(name) and len(shape) == 2:  # a token's row is its own, not a place
        picked: NDArray[np.int64] = np.zeros(shape[0], dtype=np.int64)
        num_common = min(shape[0], before.shape[0])
        picked[:num_common] = counts[:num_common]
    else:
        axes = zip(shape[:-1], before.shape[:-1], strict=True)
        places = (nearest(np.arange(num), num, num_before) for num, num_before in axes)
        picked = counts[np.ix_(*places)].reshape(-1)
    scaled = scaled_counts(picked, before.shape[-1], shape[-1])
    return random_rows(shape, scaled, seed=seed, name=name)
