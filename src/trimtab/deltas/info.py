"""What a delta tells of a tuned checkpoint: by itself, and more with its base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.deltas.apply import opened_replay
from trimtab.deltas.chain import Replay
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.manifest import Manifest, TensorEntry
from trimtab.deltas.masked import AnyMask
from trimtab.deltas.workers import Workers
from trimtab.elements.criteria import Criterion
from trimtab.elements.dtypes import DTYPES, Bits
from trimtab.elements.fast import Scanners
from trimtab.elements.scan import Scanner, Tally
from trimtab.elements.update_coding import CHUNK
from trimtab.inputs import AnyPath


def delta_info(
    delta: AnyPath,
    base: AnyPath | Checkpoint | None = None,
    *,
    mask: AnyMask | Sequence[AnyMask] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """What a delta holds: its manifest; with the base, also how far elements moved.

    Args:
        delta: The delta file, or a hub id.
        base: The checkpoint that it was made against. Then the tensors are decoded and checked, and
            the entries of the result have an `ulp_histogram`.
        mask: As in `apply_delta`; only needed with the base.
        threads: Chunks decoded at the same time; by default one for each core.
        progress: Called with bytes done and bytes in all.

    Raises:
        CheckpointError: The base cannot be read.
        DeltaError: The delta cannot be read or is damaged, or the base is another one.
    """
    if base is None:
        with DeltaFile(delta) as file:
            return file.manifest
    with opened_replay(base, delta, mask=mask) as replay:
        manifest = replay.manifest
        scanners = Scanners(manifest.num_elements)
        total = sum(entry.num_bytes for entry in manifest.tensors)

        entries = []
        with Workers(threads) as workers:
            chunks = replay.chunks(manifest.tensors, workers)
            for entry in manifest.tensors:
                entries.append(_measured(replay, entry, chunks, scanners.scanner))
                if progress is not None:
                    progress(entry.num_bytes, total)
        return replace(manifest, tensors=tuple(entries))


def _measured(
    replay: Replay,
    entry: TensorEntry,
    chunks: Iterator[tuple[TensorEntry, Bits]],
    scanner: Scanner,
) -> TensorEntry:
    """An entry with its histogram, given what follows of all tensors, which is checked."""
    base = replay.before(entry)
    columns = min(CHUNK, entry.num_common)
    rows = -(-entry.num_common // CHUNK)
    tally = Tally(DTYPES[entry.dtype], [Criterion("bits")], rows, columns)
    start = 0
    for _, tuned in chunks:
        common = tuned[: max(0, entry.num_common - start)].reshape(1, -1)
        if base is not None and common.size:
            before = base.elements(start, start + common.size).reshape(1, -1)
            tally.add(before, common, start // CHUNK, 0, scanner)
        start += tuned.size
        if start == entry.num_elements:
            break
    histogram = {} if base is None else tally.counts(scanner).plain_ulp_histogram()
    return replace(entry, ulp_histogram=histogram)
