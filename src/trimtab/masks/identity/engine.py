"""`identity`: did training only the mask give the model that training every weight gives?

One streaming pass over three checkpoints and the mask. Each tensor is a task of its own, see
`trimtab.checkpoints.stream`; memory is the mask and a few buffers per thread.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint, opened, parts_of
from trimtab.checkpoints.align import Aligned, Alignment, align, num_columns
from trimtab.checkpoints.stream import Chunk, Progress, Reader, Streamed, overlaps, stream
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.fast import Scanners
from trimtab.elements.three_way import AgreementTally
from trimtab.masks.header import mask_record
from trimtab.masks.identity.result import SIDES, Identity, IdentityCoverage, TensorIdentity
from trimtab.masks.mask import Mask
from trimtab.masks.matching import named_as_in
from trimtab.masks.packed import unpacked
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
        labels = [side.upper() for side in SIDES]
        alignment = align(base, full, sub, exact=True, labels=labels)
        scanners = Scanners(sum(item.num_elements for item in alignment.items))
        config = base.config or full.config or sub.config
        task = partial(_agreement, scanners, mask, config)
        done = stream(alignment, task, threads=threads, progress=progress)
        mask.check(shapes, done.hashes[0])
        base_record, full_record, sub_record = map(record_of, checkpoints, done.hashes)
        return Identity(
            base=base_record,
            full=full_record,
            sub=sub_record,
            mask=mask_record(mask, mask_id, done.hashes[0]),
            coverage=_coverage(alignment, done, mask),
            tensors=tuple(part for item in done.kept for part in done.results[item]),
            conversion=done.conversion,
            provenance=made_now(device="cpu", threads=done.num_threads, sums="fp64"),
        )


def _agreement(
    scanners: Scanners, mask: Mask, config: Mapping[str, Any], item: Aligned, reader: Reader
) -> tuple[TensorIdentity, ...]:
    """Count one tensor of the model: its parts."""
    scanner = scanners.scanner
    parts = [
        (part, AgreementTally(item.dtype, DEFAULT_CRITERIA, part.num_rows, part.num_columns))
        for part in parts_of(item.name, item.shape, config)
    ]
    for chunk in reader.chunks():
        base, full, sub = reader.read(chunk)
        selected = _selected(mask, item, chunk)
        for part, tally in parts:
            for at, row, column in overlaps(part.rectangles, chunk):
                tally.add(base[at], full[at], sub[at], selected[at], row, column, scanner)
    return tuple(
        TensorIdentity(
            name=part.name_in(item.name),
            layer=part.layer,
            kind=part.kind,
            shape=part.shape_in(item.shape),
            dtype=item.dtype.name,
            agreement=tally.counts(scanner),
        )
        for part, tally in parts
    )


def _selected(mask: Mask, item: Aligned, chunk: Chunk) -> NDArray[np.bool_]:
    """Which elements of a chunk are in the mask, shape `[rows, columns]`."""
    shape = chunk.num_rows, chunk.num_columns
    if item.name not in mask:
        return np.zeros(shape, dtype=np.bool_)
    start = chunk.row * num_columns(item.shape) + chunk.column
    return unpacked(mask.packed(item.name), start, start + prod(shape)).reshape(shape)


def _coverage(alignment: Alignment, done: Streamed[Any], mask: Mask) -> IdentityCoverage:
    """Sort every stored element into compared, tied or not compared, and the mask's beside it."""
    num_compared = sum(item.num_elements for item in done.kept)
    num_stored = [num_compared] * len(SIDES)
    not_compared: dict[str, dict[str, Any]] = {}
    for place, tensor in alignment.apart:
        num_stored[place] += tensor.num_elements
        row = not_compared.setdefault(
            tensor.name,
            {
                "name": tensor.name,
                **{f"{side}_shape": None for side in SIDES},
                "num_selected": mask.num_selected(tensor.name) if tensor.name in mask else 0,
            },
        )
        row[f"{SIDES[place]}_shape"] = list(tensor.shape)
    to_full, to_sub = (side.renamed for side in alignment.sides)
    return IdentityCoverage(
        num_base=num_stored[0],
        num_full=num_stored[1],
        num_sub=num_stored[2],
        num_compared=num_compared,
        not_compared=tuple(not_compared.values()),
        not_in_mask=tuple(
            {"name": item.name, "num_elements": item.num_elements}
            for item in done.kept
            if item.name not in mask
        ),
        tied=tuple(
            {"name": copy.name, "tied_to": original.name, "num_elements": copy.num_elements}
            for copy, original in done.tied
        ),
        renamed=tuple(
            {
                "base": item.name,
                "full": to_full.get(item.name, item.name),
                "sub": to_sub.get(item.name, item.name),
            }
            for item in alignment.items
            if item.name in to_full or item.name in to_sub
        ),
    )
