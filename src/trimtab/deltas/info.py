"""What a delta tells of a tuned checkpoint: by itself, and more with its base."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress, in_order
from trimtab.deltas.apply import opened_replay
from trimtab.deltas.chain import Replay
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import Manifest, TensorEntry
from trimtab.elements.criteria import Criterion
from trimtab.elements.dtypes import DTYPES, Bits
from trimtab.elements.fast import Scanners
from trimtab.elements.scan import Scanner, Tally
from trimtab.inputs import AnyPath


def delta_info(
    delta: AnyPath,
    base: AnyPath | Checkpoint | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """What a delta holds: its manifest; with the base, also how far elements moved.

    Args:
        delta: The delta file, or a hub id.
        base: The checkpoint that it was made against. Then the tensors are decoded and checked, and
            the entries of the result have an `ulp_histogram`.
        threads: Tensors decoded at the same time; by default one for each core.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: The delta cannot be read or is damaged, or the base is another one.
    """
    if base is None:
        with DeltaFile(delta) as file:
            return file.manifest
    with opened_replay(base, delta) as replay:
        manifest = replay.manifest
        scanners = Scanners(manifest.num_elements)
        total = sum(entry.num_bytes for entry in manifest.tensors)

        def measured(entry: TensorEntry, threads: int) -> TensorEntry:
            return _measured(replay, entry, scanners.scanner, threads)

        entries = []
        for entry in in_order(manifest.tensors, measured, lambda e: e.num_bytes, threads):
            entries.append(entry)
            if progress is not None:
                progress(entry.num_bytes, total)
        return replace(manifest, tensors=tuple(entries))


def _measured(replay: Replay, entry: TensorEntry, scanner: Scanner, threads: int) -> TensorEntry:
    """An entry with its histogram; decoding checks the hashes."""
    tuned, base = replay.tensor(entry, threads=threads), replay.before(entry)
    if base is None:
        return replace(entry, ulp_histogram={})
    shape = entry.common_shape
    rows, columns = int(np.prod(shape[:-1])), shape[-1] if shape else 1

    def matrix(bits: Bits) -> Bits:
        return np.ascontiguousarray(bits).reshape(-1)[: entry.num_common].reshape(rows, columns)

    tally = Tally(DTYPES[entry.dtype], [Criterion("bits")], rows, columns)
    tally.add(matrix(base), matrix(tuned), 0, 0, scanner)
    return replace(entry, ulp_histogram=tally.counts(scanner).plain_ulp_histogram())
