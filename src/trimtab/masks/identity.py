"""`identity`: did training only the mask give the model that training every weight gives?

One streaming pass over three checkpoints and the mask. Each tensor is a task of its own, read in
chunks from first byte to last by one thread, so sums are added in a fixed order whatever the number
of threads, and memory is the mask and a few buffers per thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import trimtab
from trimtab.checkpoints import Checkpoint, StoredTensor, open_checkpoint, parts_of
from trimtab.checkpoints.record import record_of
from trimtab.checkpoints.sources import Chunk, Source, chunks_of, new_buffer, overlaps
from trimtab.elements.agreement import AgreementTally
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.scan import NumpyScanner, Scanner
from trimtab.masks.identity_result import Identity, MaskRecord, TensorIdentity
from trimtab.masks.mask import Mask
from trimtab.masks.matching import (
    Matching,
    Triple,
    coverage_of,
    match_tensors,
    without_tied_copies,
)

__all__ = ["identity"]

COMPILED_FROM = 4_000_000
"""Elements from which loading the compiled kernels costs less than it saves (about 0.5 s)."""

Progress = Callable[[int, int], None]
"""Called with bytes read since the last call, and bytes to read in all."""


def identity(
    base: str | os.PathLike[str] | Checkpoint,
    full: str | os.PathLike[str] | Checkpoint,
    sub: str | os.PathLike[str] | Checkpoint,
    mask: str | os.PathLike[str] | Mask,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Identity:
    """Count where SUB equals FULL, inside the mask and outside it, under every default criterion.

    BASE is set against FULL in the same way: what doing nothing would score. A tensor that is not
    in the mask is wholly outside it.

    Args:
        base: The checkpoint from which both trainings started: a folder, a file, a hub id
            (`org/name@revision`), or an open checkpoint.
        full: The checkpoint after training every weight.
        sub: The checkpoint after training those of the mask.
        mask: The mask, or the file of one.
        threads: Tensors read at the same time; by default the processors there are, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The result.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: The three have nothing in common, or differ in dtypes.
        MaskError: The file is no mask.
        MaskMismatchError: The mask is of another model, or was made against another base. The
            second is only known once BASE has been read.
    """
    with ExitStack() as stack:
        checkpoints = tuple(
            ref if isinstance(ref, Checkpoint) else stack.enter_context(open_checkpoint(ref))
            for ref in (base, full, sub)
        )
        base, full, sub = checkpoints
        mask_id = None if isinstance(mask, Mask) else os.fspath(mask)
        mask = mask if isinstance(mask, Mask) else Mask.load(mask)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        mask.check(shapes)
        matching = match_tensors(base, full, sub)
        num_threads = threads or min(os.cpu_count() or 1, 8)
        run = _Run(matching, mask, base.config or full.config or sub.config, progress)
        results, hashes = run.all(num_threads)
        mask.check(shapes, hashes[0])
        kept, tied = without_tied_copies(matching.triples, hashes)
        base_record, full_record, sub_record = map(record_of, checkpoints, hashes)
        return Identity(
            base=base_record,
            full=full_record,
            sub=sub_record,
            mask=MaskRecord(
                id=mask_id,
                digest=mask.digest,
                num_tensors=len(mask),
                num_elements=mask.num_elements(),
                num_selected=mask.num_selected(),
                num_checked=len(mask.base.keys() & hashes[0].keys()),
                provenance=mask.provenance,
            ),
            coverage=coverage_of(matching, kept, tied, mask),
            tensors=tuple(part for triple in kept for part in results[triple]),
            conversion=matching.conversion,
            provenance={
                "trimtab_version": trimtab.__version__,
                "command": None,
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "device": "cpu",
                "threads": num_threads,
                "sums": "fp64",
            },
        )


class _Counted(NamedTuple):
    """What reading a triple gives: its parts, and the hashes of the three tensors."""

    parts: tuple[TensorIdentity, ...]
    hashes: tuple[str, ...]


class _Worker(threading.local):
    """What a thread keeps from task to task."""

    def __init__(self, compiled: bool) -> None:
        self.scanner: Scanner = NumpyScanner()
        if compiled:
            from trimtab.elements.kernels import NumbaScanner

            self.scanner = NumbaScanner()
        self.buffers = new_buffer(), new_buffer(), new_buffer()


@dataclass(eq=False)
class _Run:
    """The settings of one check, and the threads that carry it out."""

    matching: Matching
    mask: Mask
    config: Mapping[str, Any]
    progress: Progress | None
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        triples = self.matching.triples
        self.worker = _Worker(sum(triple.num_elements for triple in triples) >= COMPILED_FROM)
        self.num_bytes = sum(triple.num_bytes for triple in triples)
        self.num_bytes += sum(tensor.num_bytes for _, tensor in self.matching.apart)

    def all(
        self, num_threads: int
    ) -> tuple[dict[Triple, tuple[TensorIdentity, ...]], tuple[dict[str, str], ...]]:
        """Count every triple and hash every other tensor.

        Returns:
            The parts of each triple, and for each checkpoint the hashes of its tensors by name.
        """
        executor = ThreadPoolExecutor(num_threads, thread_name_prefix="trimtab-identity")
        try:
            # Large tensors first, so that no thread is left with one at the end.
            by_size = sorted(self.matching.triples, key=lambda t: t.num_bytes, reverse=True)
            counted = {triple: executor.submit(self.one, triple) for triple in by_size}
            hashed = [executor.submit(self.hash_only, tensor) for _, tensor in self.matching.apart]
            hashes: tuple[dict[str, str], ...] = ({}, {}, {})
            for (side, tensor), task in zip(self.matching.apart, hashed, strict=True):
                hashes[side][tensor.name] = task.result()
            parts = {}
            for triple in self.matching.triples:
                parts[triple], found = counted[triple].result()
                for of, tensor, digest in zip(hashes, triple.stored, found, strict=True):
                    of[tensor.name] = digest
        finally:
            # After an error or Ctrl-C the tasks under way end at their next chunk.
            self.stop.set()
            executor.shutdown(cancel_futures=True)
        return parts, hashes

    def one(self, triple: Triple) -> _Counted:
        """Count one tensor of the model."""
        dtype = triple.stored[0].dtype
        sources = [
            Source(tensor, dtype, None, buffer)
            for tensor, buffer in zip(triple.stored, self.worker.buffers, strict=True)
        ]
        scanner = self.worker.scanner
        parts = [
            (part, AgreementTally(dtype, DEFAULT_CRITERIA, part.num_rows, part.num_columns))
            for part in parts_of(triple.name, triple.shape, self.config)
        ]
        for chunk in chunks_of(triple.shape):
            if self.stop.is_set():
                return _Counted((), ())  # nobody waits for the result any more
            base, full, sub = (source.read(chunk) for source in sources)
            selected = self.selected(triple, chunk)
            for part, tally in parts:
                for at, row, column in overlaps(part.rectangles, chunk):
                    tally.add(base[at], full[at], sub[at], selected[at], row, column, scanner)
            self.report(3 * base.nbytes)
        identities = tuple(
            TensorIdentity(
                name=part.name_in(triple.name),
                layer=part.layer,
                kind=part.kind,
                shape=part.shape_in(triple.shape),
                dtype=dtype.name,
                agreement=tally.counts(scanner),
            )
            for part, tally in parts
        )
        return _Counted(identities, tuple(source.finish() for source in sources))

    def selected(self, triple: Triple, chunk: Chunk) -> NDArray[np.bool_]:
        """Which elements of a chunk are in the mask, shape `[rows, columns]`."""
        shape = chunk.num_rows, chunk.num_columns
        if triple.name not in self.mask:
            return np.zeros(shape, dtype=np.bool_)
        columns = triple.shape[-1] if triple.shape else 1
        start = chunk.row * columns + chunk.column
        stop = start + chunk.num_rows * chunk.num_columns
        first, last = start // 8, -(-stop // 8)
        bits = np.unpackbits(self.mask.packed(triple.name)[first:last], bitorder="little")
        return bits[start - 8 * first : stop - 8 * first].view(np.bool_).reshape(shape)

    def hash_only(self, tensor: StoredTensor) -> str:
        """Hash a tensor that is not in all three."""
        digest = Source(tensor, tensor.dtype, None, self.worker.buffers[0]).finish()
        self.report(tensor.num_bytes)
        return digest

    def report(self, num_bytes: int) -> None:
        """Tell that so many bytes are done."""
        if self.progress is not None:
            self.progress(num_bytes, self.num_bytes)
