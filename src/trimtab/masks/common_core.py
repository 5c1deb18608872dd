"""What several masks have in common and what each has alone: of tasks, of seeds, of algorithms.

The common core is what all of them select; a mask's own part is what it selects and no other does.
Both say little by their size: masks that select much share much. So each count stands beside what
chance gives: the mean for masks that select as many elements of each tensor, at random and
independently of each other (the per-tensor null of `trimtab.masks.overlap`), and with the base at
hand as many of each tensor × exponent bin of its weights (the magnitude-matched null). Where mask j
selects the share pⱼ, an element is in the core with probability ∏ pⱼ, and in the own part of mask i
with probability pᵢ·∏ (1 - pⱼ) over the others.

All parts are written in one pass over the masks, which stay on disk; `trimtab.masks.split` holds
what comes of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from math import fsum, prod
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.algebra import in_common
from trimtab.masks.derived import tensor_of
from trimtab.masks.identity.result import mask_record
from trimtab.masks.naming import named_alike
from trimtab.masks.outline import MaskOutline
from trimtab.masks.overlap import overlap
from trimtab.masks.overlap.result import Overlap
from trimtab.masks.packed import PackedMask, PackedTensor
from trimtab.masks.provenance import provenance_from
from trimtab.masks.split import Part, Split
from trimtab.masks.writing import mask_writer
from trimtab.outputs import ensure_free
from trimtab.results.records import made_now
from trimtab.words import are, first_few

__all__ = ["chance_of", "part_files", "split_tensor", "write_parts"]


def part_files(folder: str | os.PathLike[str], ids: Sequence[str]) -> tuple[Path, ...]:
    """Files of the core and of each mask's own part: `core`, `own-1-ID`, `own-2-ID`, …."""
    names = ["core", *(f"own-{place}-{id}" for place, id in enumerate(ids, 1))]
    return tuple(Path(folder) / f"{name}.safetensors" for name in names)


def write_parts(
    masks: Sequence[PackedMask],
    files: Sequence[str | os.PathLike[str]],
    *,
    base: str | os.PathLike[str] | Checkpoint | None = None,
    progress: Progress | None = None,
    command: str | None = None,
    force: bool = False,
) -> Split:
    """Write the common core of masks and the own part of each, in one pass over them.

    Memory is that of the largest tensor's bits, for each mask and each part.

    Args:
        masks: At least two, of one model. What a mask does not have, it does not select.
        files: Where the core goes, then the own part of each mask.
        base: The checkpoint that the masks were made against; read once, for the chance of masks
            that favour the same magnitudes of weights. All masks need to have the same tensors.
        progress: Called after each chunk of the base, from any thread.
        command: For the provenance of all.
        force: Replace existing files.

    Raises:
        MaskError: There are fewer than two masks.
        MaskMismatchError: Shapes differ, or the base is another one; the message names every such
            tensor, up to a handful.
        CheckpointError: The base cannot be read.
        OutputExistsError: A file exists and `force` is not set.
    """
    if len(masks) < 2:
        raise MaskError("one mask has nothing in common with others: expected at least two")
    for file in files:
        ensure_free(file, force=force)
    masks = named_alike(masks)
    together = in_common(masks)
    steps: list[dict[str, Any]] = [{"step": "core"}]
    steps += [{"step": "own", "mask": place} for place in range(len(masks))]
    told = {"base_differs": list(together.base_differs)}
    records = tuple(mask_record(mask, mask.path, ()) for mask in masks)
    matched: Sequence[float | None] = [None] * len(steps)
    against = None
    if base is not None:
        counted = _counted(masks, base, progress)
        records, matched, against = counted.masks, _matched_chance(counted), counted.base
    chance = [0.0] * len(steps)
    with ExitStack() as stack:
        writers = []
        for file, step in zip(files, steps, strict=True):
            provenance = provenance_from(masks, {**step, **told}) | {"command": command}
            outline = MaskOutline(together.shapes, together.base, provenance)
            writers.append(stack.enter_context(mask_writer(file, outline, force=force)))
        for name in writers[0].names:
            tensors = [tensor_of(mask, name, together.shapes[name]) for mask in masks]
            for place, part in enumerate(split_tensor(tensors)):
                writers[place].add(part)
            means = chance_of(tensors[0].num_elements, [one.num_selected for one in tensors])
            chance = [sum_ + mean for sum_, mean in zip(chance, means, strict=True)]
    return Split(
        num_elements=sum(prod(shape) for shape in together.shapes.values()),
        masks=records,
        parts=tuple(
            Part(os.fspath(file), step.get("mask"), sum(writer.num_selected.values()), *means)
            for file, step, writer, means in zip(
                files, steps, writers, zip(chance, matched, strict=True), strict=True
            )
        ),
        base=against,
        base_differs=together.base_differs,
        provenance=made_now(command=command),
    )


def split_tensor(tensors: Sequence[PackedTensor]) -> list[PackedTensor]:
    """What all masks select of a tensor, then what each selects and no other does."""
    shape = tensors[0].shape
    core = tensors[0].bits.copy()
    seen = tensors[0].bits.copy()
    several = np.zeros_like(core)
    for tensor in tensors[1:]:
        core &= tensor.bits
        several |= seen & tensor.bits
        seen |= tensor.bits
    return [
        PackedTensor.of(shape, core),
        *(PackedTensor.of(shape, tensor.bits & ~several) for tensor in tensors),
    ]


def chance_of(num_elements: int, num_selected: Sequence[int]) -> list[float]:
    """Mean sizes of the parts of random masks, in the order of `split_tensor`.

    Args:
        num_elements: Elements that they select from.
        num_selected: How many of them each mask selects.
    """
    if not num_elements:
        return [0.0] * (1 + len(num_selected))
    shares = [num / num_elements for num in num_selected]
    own = (
        share * prod(1 - other for at, other in enumerate(shares) if at != place)
        for place, share in enumerate(shares)
    )
    return [num_elements * chance for chance in (prod(shares), *own)]


def _counted(
    masks: Sequence[PackedMask],
    base: str | os.PathLike[str] | Checkpoint,
    progress: Progress | None,
) -> Overlap:
    """The overlap of masks that have the same tensors."""
    counted = overlap(*masks, base=base, progress=progress)
    if apart := [row["name"] for row in counted.coverage.not_compared]:
        raise MaskMismatchError(
            f"{are(len(apart), 'tensor')} not in all masks: "
            f"{first_few(apart)}. Chance by the magnitudes of a base is of masks with the same "
            "tensors: restrict them, or leave out the base"
        )
    return counted


def _matched_chance(counted: Overlap) -> list[float]:
    """`chance_of` each tensor × exponent bin of the base, added up."""
    urns = (
        chance_of(num_elements, num_selected)
        for tensor in counted.tensors
        if tensor.bins is not None
        for num_elements, *num_selected in zip(
            tensor.bins.num_elements, *tensor.bins.num_selected, strict=True
        )
    )
    return [fsum(means) for means in zip(*urns, strict=True)] or [0.0] * (1 + len(counted.masks))
