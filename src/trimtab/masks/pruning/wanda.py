"""Wanda: keep, in each output row, the weights that move the output most.

The score of a weight is its magnitude times the norm of its input feature, |w_ij| · ‖x_j‖, and is
compared within the row: each output loses the same share of its inputs.

Source:
    Sun, Liu, Bair and Kolter 2024 (arXiv 2306.11695), sec. 3 and algorithm 1. Of equal scores the
    first in the row goes, as with the stable sort of their code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, StoredTensor
from trimtab.checkpoints.stream import Progress
from trimtab.elements.dtypes import Bits
from trimtab.errors import CheckpointError, MaskError
from trimtab.masks.mask import Mask
from trimtab.masks.packed import BaseTensor, PackedTensor
from trimtab.masks.provenance import provenance_of
from trimtab.masks.pruning.norms import InputNorms
from trimtab.masks.selection.weights import read_weights
from trimtab.words import first_few

__all__ = ["kept_by_wanda", "lowest_of_rows"]

TRANSPOSED = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types that keep matrices as [inputs, outputs]."""


def kept_by_wanda(
    base: Checkpoint,
    matrices: Sequence[StoredTensor],
    sparsity: float,
    norms: InputNorms,
    *,
    progress: Progress | None = None,
) -> Mask:
    """Select what Wanda keeps.

    Args:
        base: An open checkpoint.
        matrices: Those of its tensors to prune.
        sparsity: Share of each row to prune, rounded to a whole number of its elements.
        norms: Of the inputs of the matrices.
        progress: Called after each chunk, from any thread.

    Raises:
        CheckpointError: A matrix is not stored as [outputs, inputs].
        MaskError: A score is NaN.
        MaskMismatchError: The norms are not those of this model.
    """
    model_type = base.config.get("model_type")
    if model_type in TRANSPOSED:
        raise CheckpointError(
            f"{base.id} ({model_type}) stores its matrices as [inputs, outputs], whose rows are no "
            "outputs: prune it by magnitude"
        )
    if stacked := [f"{t.name} {t.shape}" for t in matrices if len(t.shape) != 2]:
        raise CheckpointError(
            f"{base.id} stores several matrices in one tensor, which see different inputs: "
            f"{first_few(stacked)}. Leave their kind out, or prune by magnitude"
        )
    norms.check(base, matrices)
    names = [matrix.name for matrix in matrices]
    task = partial(_kept, sparsity, norms)
    tensors, digests = read_weights(base, names, task, progress=progress)
    step = {
        "step": "wanda",
        "sparsity": sparsity,
        "base": base.id,
        "norms": dict(norms.provenance),
    }
    return Mask(
        tensors,
        {name: BaseTensor(base.tensors[name].dtype.name, digests[name]) for name in names},
        provenance_of([step]),
    )


def lowest_of_rows(scores: NDArray[np.float32], num: int) -> NDArray[np.bool_]:
    """The lowest elements of each row, exactly so many; of equal ones the first.

    Args:
        scores: `[rows, columns]`, none of them NaN.
        num: Of each row, at most all.
    """
    if num == 0:
        return np.zeros(scores.shape, dtype=np.bool_)
    edge = np.partition(scores, num - 1, axis=1)[:, num - 1 : num]
    below, tied = scores < edge, scores == edge
    room = num - below.sum(axis=1, keepdims=True)
    lowest: NDArray[np.bool_] = below | (tied & (np.cumsum(tied, axis=1) <= room))
    return lowest


def _kept(
    sparsity: float,
    norms: InputNorms,
    tensor: StoredTensor,
    chunks: Iterator[tuple[int, Bits]],
) -> PackedTensor:
    vector = norms.vectors[tensor.name]
    kept = np.empty(tensor.shape, dtype=np.bool_)
    row = 0
    for bits in _whole_rows(chunks, tensor.shape[1]):
        magnitudes = np.abs(tensor.dtype.decode(bits)).astype(np.float32)
        with np.errstate(invalid="ignore"):  # infinity times 0, which is told next
            scores = magnitudes * vector
        if np.isnan(scores).any():
            raise MaskError(f"{tensor.name} has scores that are NaN: its weights are not finite")
        kept[row : row + len(scores)] = ~lowest_of_rows(scores, round(sparsity * scores.shape[1]))
        row += len(scores)
    return PackedTensor.pack(kept)


def _whole_rows(chunks: Iterator[tuple[int, Bits]], num_columns: int) -> Iterator[Bits]:
    """Elements that come in chunks of any length, as whole rows of a matrix."""
    rest: Bits | None = None
    for _, bits in chunks:
        bits = bits.copy() if rest is None else np.concatenate([rest, bits])
        whole = len(bits) // num_columns * num_columns if num_columns else 0
        rest = bits[whole:]
        yield bits[:whole].reshape(-1, num_columns)
