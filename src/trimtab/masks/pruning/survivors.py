"""What pruning has left of a checkpoint: the elements that are not 0, whoever made the others so.

Both zeros count, +0 and -0. A mask of the survivors is what keeps a pruned model pruned: training
only `mask & survivors` never touches a zero.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, StoredTensor, opened, tied_names
from trimtab.checkpoints.architectures import TIED
from trimtab.checkpoints.quantized import block_scales
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits, DType
from trimtab.masks.mask import Mask
from trimtab.masks.packed import BaseTensor, PackedTensor, num_packed_bytes
from trimtab.masks.provenance import provenance_of
from trimtab.masks.selection.weights import read_weights
from trimtab.results.records import record_of

__all__ = ["is_zero", "survivors"]


def survivors(
    checkpoint: str | os.PathLike[str] | Checkpoint, *, progress: Progress | None = None
) -> Mask:
    """Select the elements of a checkpoint that are not 0.

    A tied tensor that is stored twice is in the mask once.

    Args:
        checkpoint: A folder, a file, a hub id (`org/name@revision`), or an open checkpoint.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its weights are packed into integers.
    """
    with opened(checkpoint) as (checkpoint,):
        # A scale leaves a zero a zero; what trimtab does not know of could do anything.
        block_scales(checkpoint.tensors, checkpoint.config, checkpoint.id)
        tensors, digests = read_weights(
            checkpoint, checkpoint.tensors, _survivors_of, progress=progress
        )
        copies = _stored_copies(checkpoint, digests)
        step = {
            "step": "survivors",
            "checkpoint": record_of(checkpoint, digests).to_dict(),
            "tied": [{"name": name, "tied_to": original} for name, original in copies.items()],
        }
        kept = {name: tensor for name, tensor in tensors.items() if name not in copies}
        base = {
            name: BaseTensor(checkpoint.tensors[name].dtype.name, digests[name]) for name in kept
        }
        return Mask(kept, base, provenance_of([step]))


def is_zero(bits: Bits, dtype: DType) -> NDArray[np.bool_]:
    """Which elements are 0: +0 and -0 of a float, and no exponent of a scale."""
    if dtype.is_float:
        bits = bits << dtype.bits.type(1)  # all but the sign
    zero: NDArray[np.bool_] = bits == 0
    return zero & (dtype.kind != "scale")


def _survivors_of(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> PackedTensor:
    packed = np.zeros(num_packed_bytes(tensor.num_elements), dtype=np.uint8)
    for start, bits in chunks:
        part = np.packbits(~is_zero(bits, tensor.dtype), bitorder="little")
        packed[start // 8 : start // 8 + len(part)] = part
    return PackedTensor.of(tensor.shape, packed)


def _stored_copies(checkpoint: Checkpoint, digests: dict[str, str]) -> dict[str, str]:
    """Heads that the config ties to an embedding and that are stored all the same, bit for bit."""
    names = checkpoint.tensors.keys() - set(TIED.values())
    tied = tied_names(names, checkpoint.config)
    return {
        head: embedding
        for head, embedding in tied.items()
        if head in digests and digests[head] == digests[embedding]
    }
