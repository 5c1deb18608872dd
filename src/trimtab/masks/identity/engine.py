"""`identity`: did training only the mask give the model that training every weight gives?

One streaming pass over three checkpoints and the mask. Each tensor is a task of its own, see
`trimtab.checkpoints.stream`; memory is the mask and a few buffers per thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, opened, parts_of
from trimtab.checkpoints.align import without_tied_copies
from trimtab.checkpoints.quantized import with_scales
from trimtab.checkpoints.stream import Chunk, Digests, Progress, Reading, overlaps
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.fast import Scanners
from trimtab.elements.three_way import AgreementTally
from trimtab.masks.identity.matching import Triple, coverage_of, match_tensors
from trimtab.masks.identity.result import Identity, TensorIdentity, mask_record
from trimtab.masks.mask import Mask
from trimtab.masks.matching import named_as_in
from trimtab.results.records import made_now, record_of

__all__ = ["identity"]


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
    with opened(base, full, sub) as checkpoints:
        base, full, sub = checkpoints
        mask_id = None if isinstance(mask, Mask) else os.fspath(mask)
        mask = mask if isinstance(mask, Mask) else Mask.load(mask)
        mask = named_as_in(mask, base)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        mask.check(shapes)
        matching = match_tensors(base, full, sub)
        triples = matching.triples
        reading = Reading(triples, matching.apart, threads=threads, progress=progress)
        scanners = Scanners(sum(triple.stored[0].num_elements for triple in triples))
        run = _Run(reading, scanners, mask, base.config or full.config or sub.config)
        results, hashes = reading.run(run.one)
        mask.check(shapes, hashes[0])
        kept, tied = without_tied_copies(triples, matching.doubtful, hashes)
        base_record, full_record, sub_record = map(record_of, checkpoints, hashes)
        return Identity(
            base=base_record,
            full=full_record,
            sub=sub_record,
            mask=mask_record(mask, mask_id, hashes[0]),
            coverage=coverage_of(matching, kept, tied, mask),
            tensors=tuple(part for triple in kept for part in results[triple]),
            conversion=with_scales(matching.conversion, triples, matching.scales, hashes),
            provenance=made_now(device="cpu", threads=reading.num_threads, sums="fp64"),
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """The settings of one check, and what its threads share."""

    reading: Reading[Triple]
    scanners: Scanners
    mask: Mask
    config: Mapping[str, Any]

    def one(self, triple: Triple) -> tuple[tuple[TensorIdentity, ...], Digests]:
        """Count one tensor of the model: its parts, and the hashes of the three."""
        dtype = triple.stored[0].dtype
        sources = self.reading.sources(triple.stored, dtype)
        scanner = self.scanners.scanner
        parts = [
            (part, AgreementTally(dtype, DEFAULT_CRITERIA, part.num_rows, part.num_columns))
            for part in parts_of(triple.name, triple.shape, self.config)
        ]
        for chunk in self.reading.chunks(triple.stored, triple.shape):
            base, full, sub = (source.read(chunk) for source in sources)
            selected = self.selected(triple, chunk)
            for part, tally in parts:
                for at, row, column in overlaps(part.rectangles, chunk):
                    tally.add(base[at], full[at], sub[at], selected[at], row, column, scanner)
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
        return identities, tuple(source.finish() for source in sources)

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
