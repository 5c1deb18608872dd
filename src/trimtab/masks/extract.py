"""`extract_mask`: one streaming pass over two checkpoints that keeps which elements changed.

Memory is one bit for each element (1/16 of a bf16 checkpoint) and a few buffers per thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.align import Aligned, Alignment, align
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.stream import Progress, Reader, stream
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.criteria import Criterion, parse_criterion
from trimtab.elements.criteria import changed as changed_by
from trimtab.elements.dtypes import Bits, DType
from trimtab.masks.header import BaseTensor, provenance_of
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.results.records import record_of


def extract_mask(
    base: str | os.PathLike[str] | Checkpoint,
    tuned: str | os.PathLike[str] | Checkpoint,
    *,
    changed: str = "bits",
    cast: str | None = None,
    dequantize: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Mask:
    """Select the elements that changed from a base to a tuned checkpoint.

    Tensors have base's names and shapes. The mask leaves out tensors that only one side has and
    rows of a resized vocabulary that only tuned has; rows that only base has are not selected. A
    tied copy is left out for its original. The provenance lists all of these.

    Args:
        base: The checkpoint before training: a folder, a file, a hub id (`org/name@revision`),
            or an open checkpoint.
        tuned: The checkpoint after training.
        changed: The criterion: `bits`, `value`, `atol=1e-5`, `rel=1e-3`.
        cast: Name of a float dtype (`fp32`) that both are converted to first; None to refuse
            tensors that are stored in different dtypes.
        dequantize: Multiply quantised weights by their scales, giving fp32.
        threads: Tensors read at the same time; by default the number of processors, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The mask; it selects nothing where nothing changed.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: The two have nothing in common, or differ in dtypes without `cast`.
        CriterionError: `changed` is not a criterion.
    """
    criterion = parse_criterion(changed)
    with opened(base, tuned) as (base, tuned):
        alignment = align(base, tuned, cast=cast, dequantize=dequantize, labels=("base", "tuned"))
        task = partial(_mark, criterion)
        done = stream(alignment, task, threads=threads, progress=progress)
        base_hashes, tuned_hashes = done.hashes
        step = {
            "step": "extract",
            "criterion": criterion.key,
            "conversion": done.conversion,
            "base": record_of(base, base_hashes).to_dict(),
            "tuned": record_of(tuned, tuned_hashes).to_dict(),
            "tied": [{"name": item.name, "tied_to": other.name} for item, other in done.tied],
            **_gaps(alignment, done.items),
        }
        return Mask(
            {item.name: done.results[item] for item in done.items},
            {
                item.name: BaseTensor(tensor.dtype.name, base_hashes[tensor.name])
                for item in done.items
                for tensor in item.stored[:1]
            },
            provenance_of([step]),
        )


def _gaps(alignment: Alignment, items: Sequence[Aligned]) -> dict[str, Any]:
    """What could not be compared, in the keys of the coverage of a comparison."""
    (side,) = alignment.sides

    def only(tensor: StoredTensor) -> dict[str, Any]:
        return {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype.name}

    def mismatch(stored: Sequence[StoredTensor], num_compared: int) -> dict[str, Any]:
        base, tuned = stored
        return {
            "name": base.name,
            "base_shape": base.shape,
            "tuned_shape": tuned.shape,
            "num_compared": num_compared,
        }

    return {
        "missing": [only(tensor) for tensor in side.missing.values()],
        "extra": [only(tensor) for tensor in side.extra],
        "shape_mismatch": [
            *(mismatch(item.stored, item.num_elements) for item in items if item.is_resized),
            *(mismatch(pair, 0) for pair in side.mismatched),
        ],
        "renamed": [{"base": base, "tuned": tuned} for base, tuned in side.renamed.items()],
    }


def _changed(base: Bits, tuned: Bits, dtype: DType, criterion: Criterion) -> NDArray[np.bool_]:
    """`trimtab.elements.criteria.changed`, evaluated only for elements that differ or are NaN."""
    differ: NDArray[np.bool_] = base != tuned
    if criterion.rule != "bits":
        differ |= dtype.is_nan(base)
        unsure = np.flatnonzero(differ)
        differ[unsure] = changed_by(base[unsure], tuned[unsure], dtype, criterion)
    return differ


def _mark(criterion: Criterion, item: Aligned, reader: Reader) -> PackedTensor:
    """Mark what changed in a tensor."""
    # The rows that both have come first. Flat chunks are whole bytes, but scales need the 2-D view.
    is_scaled = any(scale is not None for scale in item.scales)
    pairs = map(reader.read, reader.chunks(item.shape if is_scaled else (item.num_elements,)))
    marked = (
        _changed(before.ravel(), after.ravel(), item.dtype, criterion) for before, after in pairs
    )
    return PackedTensor.of_parts(item.stored[0].shape, marked)
