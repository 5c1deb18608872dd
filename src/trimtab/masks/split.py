"""What several masks have in common and what is unique to each: of tasks, seeds or algorithms.

The common core is what all masks select; a mask's own part is what no other selects. Large masks
share much, so each count is shown with its expectation for independent random masks that select as
many elements of each tensor (the per-tensor null of `trimtab.masks.overlap`) and, with the base, of
each tensor × exponent bin (the magnitude-matched null). If mask j selects the share pⱼ, an element
is
in the core with probability ∏ pⱼ, and in the own part of mask i with pᵢ·∏ (1 - pⱼ) over the others.

All parts are written in one pass over the masks. Reports need only the `Split` (or its JSON).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import fsum, prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.stream import Progress
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import MaskHeader, PackedMask, mask_record, provenance_from
from trimtab.masks.matching import common_model, named_alike
from trimtab.masks.on_disk import mask_writer
from trimtab.masks.overlap import overlap
from trimtab.masks.overlap_result import Overlap
from trimtab.masks.packed import PackedTensor
from trimtab.outputs import ensure_free
from trimtab.results.records import CheckpointRecord, MaskRecord, made_now
from trimtab.results.result import Result
from trimtab.results.schema import Amount, Provenance, to_plain
from trimtab.words import are, first_few, one_line, out_of, plural


@dataclass(frozen=True)
class Part:
    """The common core, or the own part of one mask.

    Attributes:
        file: The file that it was written to.
        mask: Index of the mask that it is the own part of; None for the core.
        num_selected: Elements in it.
        chance: Expected elements by chance, for masks of the same size in each tensor.
        matched_chance: The same for each tensor × exponent bin of the base; None without one.
    """

    PLAIN: ClassVar = (
        *("file", "mask", "num_selected", "chance", "matched_chance"),
        *("share?=_of_the_split", "lift?=_of_the_split", "matched_lift?=_of_the_split"),
    )
    _of_the_split: ClassVar = None  # `Split.plain_parts` adds them

    file: str
    mask: int | None
    num_selected: int
    chance: Amount
    matched_chance: Amount | None = None

    @property
    def lift(self) -> float | None:
        """Selected / expected elements; None if none are expected."""
        return self.num_selected / self.chance if self.chance else None

    @property
    def matched_lift(self) -> float | None:
        """The same over `matched_chance`."""
        return self.num_selected / self.matched_chance if self.matched_chance else None


@dataclass(frozen=True, eq=False)
class Split(Result):
    """Several masks, split.

    Attributes:
        num_elements: Elements of the tensors of all masks.
        masks: What was split.
        parts: The core, then the own part of each mask.
        base: The checkpoint whose weights are matched by magnitude, or None.
        base_differs: Tensors for which the masks do not agree what they were made against.
        provenance: trimtab version, command, date.
    """

    FORMAT = "trimtab.split"
    NAME = "split"
    COMMAND = "trimtab mask share"
    ROWS = "parts"

    num_elements: int
    masks: tuple[MaskRecord, ...]
    parts: tuple[Part, ...]
    base: CheckpointRecord | None
    base_differs: tuple[str, ...]
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        core = out_of(self.core.num_selected, self.num_elements, "element")
        return one_line(self, f"{plural(len(self.masks), 'mask')}, {core} in all of them")

    @property
    def core(self) -> Part:
        """What all masks select."""
        return self.parts[0]

    def whole(self, part: Part) -> int:
        """The size that a part is a share of: its mask, or for the core the smallest mask."""
        num_selected = [mask.num_selected for mask in self.masks]
        return min(num_selected) if part.mask is None else num_selected[part.mask]

    def share(self, part: Part) -> float | None:
        """A part as a share of `whole`; None if that is empty."""
        whole = self.whole(part)
        return part.num_selected / whole if whole else None

    def plain_parts(self) -> list[dict[str, Any]]:
        """The parts with their derived figures."""
        derived = (
            {"share": self.share(part), "lift": part.lift, "matched_lift": part.matched_lift}
            for part in self.parts
        )
        return [to_plain(part) | figures for part, figures in zip(self.parts, derived, strict=True)]

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if [part.mask for part in self.parts] != [None, *range(len(self.masks))]:
            yield "its parts are not a core and an own part of each mask"
        elif len(self.masks) < 2:
            yield "it is not of several masks"
        else:
            for index, part in enumerate(self.parts):
                if not 0 <= part.num_selected <= self.whole(part) <= self.num_elements:
                    yield f"parts[{index}] has {part.num_selected} of {self.whole(part)} elements"
                if (part.matched_chance is None) != (self.base is None):
                    yield f"parts[{index}] and the base do not agree on magnitudes"


def part_files(folder: str | os.PathLike[str], ids: Sequence[str]) -> tuple[Path, ...]:
    """Files of the core and of each mask's own part: `core`, `own-1-ID`, `own-2-ID`, …."""
    names = ["core", *(f"own-{number}-{id}" for number, id in enumerate(ids, 1))]
    return tuple(Path(folder) / f"{name}.safetensors" for name in names)


def share(
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
        masks: At least two masks of one model. Tensors that a mask lacks are not selected by it.
        files: Files of the core, then of the own part of each mask.
        base: The checkpoint that the masks were made against; read once, for the chance of masks
            that favour the same magnitudes of weights. All masks need to have the same tensors.
        progress: Called after each chunk of the base, from any thread.
        command: Command to record in the provenance.
        force: Replace existing files.

    Raises:
        MaskError: There are fewer than two masks.
        MaskMismatchError: Shapes differ, or the base is another one; the message names the tensors,
            up to a handful.
        CheckpointError: The base cannot be read.
        OutputExistsError: A file exists and `force` is not set.
    """
    if len(masks) < 2:
        raise MaskError("one mask has nothing in common with others: expected at least two")
    for file in files:
        ensure_free(file, force=force)
    masks = named_alike(masks)
    model = common_model(masks)
    steps: list[dict[str, Any]] = [{"step": "core"}]
    steps += [{"step": "own", "mask": index} for index in range(len(masks))]
    disagreements = {"base_differs": list(model.base_differs)}
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
            provenance = provenance_from(masks, {**step, **disagreements}) | {"command": command}
            header = MaskHeader(model.shapes, model.base, provenance)
            writers.append(stack.enter_context(mask_writer(file, header, force=force)))
        for name in writers[0].names:
            tensors = [mask.tensor(name, model.shapes[name]) for mask in masks]
            for index, part in enumerate(split_tensor(tensors)):
                writers[index].add(part)
            means = chance_of(tensors[0].num_elements, [one.num_selected for one in tensors])
            chance = [sum_ + mean for sum_, mean in zip(chance, means, strict=True)]
    return Split(
        num_elements=sum(prod(shape) for shape in model.shapes.values()),
        masks=records,
        parts=tuple(
            Part(os.fspath(file), step.get("mask"), sum(writer.num_selected.values()), *means)
            for file, step, writer, means in zip(
                files, steps, writers, zip(chance, matched, strict=True), strict=True
            )
        ),
        base=against,
        base_differs=model.base_differs,
        provenance=made_now(command=command),
    )


def split_tensor(tensors: Sequence[PackedTensor]) -> list[PackedTensor]:
    """What all masks select of a tensor, then what only each one selects."""
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
        share * prod(1 - other for at, other in enumerate(shares) if at != index)
        for index, share in enumerate(shares)
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
