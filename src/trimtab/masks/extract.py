"""`extract_mask`: one streaming pass over two checkpoints that keeps which elements changed.

Both sides are read in chunks, and one bit for each element is what stays: memory is 1/16 of a
bf16 checkpoint, and a few buffers per thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from trimtab.checkpoints.pairing import Pair, Pairing, may_repeat, pair_tensors
from trimtab.checkpoints.record import record_of
from trimtab.checkpoints.sources import Source, chunks_of, new_buffer
from trimtab.checkpoints.tied import Hashes, without_tied_copies
from trimtab.elements.criteria import Criterion, parse_criterion
from trimtab.elements.criteria import changed as changed_by
from trimtab.elements.dtypes import Bits, DType
from trimtab.masks.mask import Mask, provenance_of
from trimtab.masks.packed import BaseTensor, PackedTensor, num_packed_bytes

__all__ = ["extract_mask"]

Progress = Callable[[int, int], None]
"""Called with bytes read since the last call, and bytes to read in all."""


def extract_mask(
    base: str | os.PathLike[str] | Checkpoint,
    tuned: str | os.PathLike[str] | Checkpoint,
    *,
    changed: str = "bits",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Mask:
    """Select the elements that changed from a base to a tuned checkpoint.

    Tensors have base's names and shapes. What has no counterpart is not in the mask: tensors only
    on one side, and rows that a resized vocabulary has only in tuned; rows only in base are there
    and not selected. A tied copy is left out for its original. The provenance lists all of it.

    Args:
        base: The checkpoint before training: a folder, a file, a hub id (`org/name@revision`),
            or an open checkpoint.
        tuned: The checkpoint after training.
        changed: The criterion: `bits`, `value`, `atol=1e-5`, `rel=1e-3`.
        threads: Tensors read at the same time; by default the processors there are, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The mask; nothing is selected in it where nothing changed.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: The two have nothing in common, or differ in dtypes.
        CriterionError: `changed` is no criterion.
    """
    criterion = parse_criterion(changed)
    with ExitStack() as stack:
        base = base if isinstance(base, Checkpoint) else stack.enter_context(open_checkpoint(base))
        tuned = (
            tuned if isinstance(tuned, Checkpoint) else stack.enter_context(open_checkpoint(tuned))
        )
        pairing = pair_tensors(base, tuned)
        run = _Run(criterion, pairing.pairs, pairing.apart(base, tuned), progress)
        tensors, hashes = run.all(threads or min(os.cpu_count() or 1, 8))
        doubtful = may_repeat(pairing.pairs, base, tuned)
        kept, tied = without_tied_copies(pairing.pairs, doubtful, hashes, base, tuned)
        step = {
            "step": "extract",
            "criterion": criterion.key,
            "conversion": pairing.conversion,
            "base": record_of(base, hashes[0]).to_dict(),
            "tuned": record_of(tuned, hashes[1]).to_dict(),
            "tied": [{"name": row["name"], "tied_to": row["tied_to"]} for row in tied],
            **_gaps(pairing, kept),
        }
        return Mask(
            {pair.name: tensors[pair] for pair in kept},
            {
                pair.name: BaseTensor(pair.base.dtype.name, hashes[0][pair.base.name])
                for pair in kept
            },
            provenance_of([step]),
        )


def _gaps(pairing: Pairing, kept: Sequence[Pair]) -> dict[str, Any]:
    """Lists of what could not be compared, named as in the coverage of a comparison."""

    def alone(tensor: StoredTensor) -> dict[str, Any]:
        return {"name": tensor.name, "shape": tensor.shape, "dtype": tensor.dtype.name}

    def mismatch(base: StoredTensor, tuned: StoredTensor, num_compared: int) -> dict[str, Any]:
        return {
            "name": base.name,
            "base_shape": base.shape,
            "tuned_shape": tuned.shape,
            "num_compared": num_compared,
        }

    return {
        "missing": [alone(tensor) for tensor in pairing.missing],
        "extra": [alone(tensor) for tensor in pairing.extra],
        "shape_mismatch": [
            *(mismatch(p.base, p.tuned, prod(p.shape)) for p in kept if _is_resized(p)),
            *(mismatch(base, tuned, 0) for base, tuned in pairing.mismatched),
        ],
        "renamed": [{"base": base, "tuned": tuned} for base, tuned in pairing.renamed.items()],
    }


def _is_resized(pair: Pair) -> bool:
    return pair.base.shape != pair.tuned.shape


def _changed(base: Bits, tuned: Bits, dtype: DType, criterion: Criterion) -> NDArray[np.bool_]:
    """The definition, `trimtab.elements.criteria.changed`, asked only where the answer is open.

    Most elements have the same bits, which no criterion calls a change unless they are a NaN; a
    tolerance takes ten times as long to decide.
    """
    differ: NDArray[np.bool_] = base != tuned
    if criterion.rule != "bits":
        differ |= dtype.is_nan(base)
        unsure = np.flatnonzero(differ)
        differ[unsure] = changed_by(base[unsure], tuned[unsure], dtype, criterion)
    return differ


class _Marked(NamedTuple):
    """What reading a pair gives: its bits, and the hashes of both sides."""

    tensor: PackedTensor
    base_hash: str
    tuned_hash: str


class _Worker(threading.local):
    """What a thread keeps from task to task."""

    def __init__(self) -> None:
        self.buffers = new_buffer(), new_buffer()


class _Run:
    """The settings of one extraction, and the threads that carry it out."""

    def __init__(
        self,
        criterion: Criterion,
        pairs: Sequence[Pair],
        apart: Sequence[tuple[int, StoredTensor]],
        progress: Progress | None,
    ) -> None:
        self._criterion = criterion
        self._pairs = pairs
        self._apart = apart
        self._progress = progress
        self._num_bytes = sum(p.base.num_bytes + p.tuned.num_bytes for p in pairs)
        self._num_bytes += sum(tensor.num_bytes for _, tensor in apart)
        self._worker = _Worker()
        self._stop = threading.Event()

    def all(self, num_threads: int) -> tuple[dict[Pair, PackedTensor], Hashes]:
        """Mark every pair and hash every other tensor; hashes are by name, of base and of tuned."""
        executor = ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-mask")
        try:
            # Large tensors first, so that no thread is left with one at the end.
            by_size = sorted(self._pairs, key=lambda pair: pair.base.num_bytes, reverse=True)
            tasks = {pair: executor.submit(self._mark, pair) for pair in by_size}
            hashed = [executor.submit(self._hash, tensor) for _, tensor in self._apart]
            hashes: tuple[dict[str, str], dict[str, str]] = ({}, {})
            for (side, tensor), task in zip(self._apart, hashed, strict=True):
                hashes[side][tensor.name] = task.result()
            tensors = {}
            for pair in self._pairs:
                tensors[pair], base_hash, tuned_hash = tasks[pair].result()
                hashes[0][pair.base.name] = base_hash
                hashes[1][pair.tuned.name] = tuned_hash
        finally:
            # After an error or Ctrl-C the tasks under way end at their next chunk.
            self._stop.set()
            executor.shutdown(cancel_futures=True)
        return tensors, hashes

    def _mark(self, pair: Pair) -> _Marked:
        """Mark what changed in a pair of tensors."""
        base, tuned = (
            Source(tensor, tensor.dtype, None, buffer)
            for tensor, buffer in zip((pair.base, pair.tuned), self._worker.buffers, strict=True)
        )
        bits: NDArray[np.uint8] = np.zeros(num_packed_bytes(pair.base.num_elements), np.uint8)
        # Rows that both have come first in either tensor; seen flat, every chunk starts at a byte.
        for chunk in chunks_of((prod(pair.shape),)):
            if self._stop.is_set():
                break
            before, after = base.read(chunk).ravel(), tuned.read(chunk).ravel()
            marked = _changed(before, after, pair.dtype, self._criterion)
            packed = np.packbits(marked, bitorder="little")
            bits[chunk.column // 8 : chunk.column // 8 + len(packed)] = packed
            self._report(
                chunk.num_columns * (pair.base.dtype.num_bytes + pair.tuned.dtype.num_bytes)
            )
        tensor = PackedTensor.of(pair.base.shape, bits)
        if self._stop.is_set():
            return _Marked(tensor, "", "")  # nobody waits for the result any more
        return _Marked(tensor, base.finish(), tuned.finish())

    def _hash(self, tensor: StoredTensor) -> str:
        """Hash a tensor that has no counterpart."""
        digest = Source(tensor, tensor.dtype, None, self._worker.buffers[0]).finish()
        self._report(tensor.num_bytes)
        return digest

    def _report(self, num_bytes: int) -> None:
        if self._progress is not None:
            self._progress(num_bytes, self._num_bytes)
