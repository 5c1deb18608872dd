"""`identity`: does training only the mask give the model that training every weight gives?

One streaming pass over three checkpoints and the mask; memory is the mask and a few buffers per
thread. Tables and reports need only the `Identity` (or its JSON), never the checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Annotated, Any, ClassVar, TypedDict

from trimtab.checkpoints.align import Aligned, Alignment, align
from trimtab.checkpoints.checkpoint import Checkpoint, opened
from trimtab.checkpoints.names import parts_of
from trimtab.checkpoints.stream import Progress, Reader, Streamed, overlaps, stream
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.fast import Scanners
from trimtab.elements.three_way import AgreementTally, SplitAgreement
from trimtab.masks.header import PackedMask, mask_record
from trimtab.masks.matching import named_as_in
from trimtab.masks.on_disk import opened_masks
from trimtab.masks.packed import unpacked_block
from trimtab.results.by_tensor import by_kind, by_layer, plain_layers
from trimtab.results.records import CheckpointRecord, MaskRecord, Tied, made_now, record_of
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance
from trimtab.words import one_line

SIDES = ("base", "full", "sub")
"""The three checkpoints, in the order in which they are given."""

COVERAGE_LISTS = ("not_compared", "not_in_mask", "tied", "renamed")
"""Lists of tensors with remarks, in the order of reports."""


class NotCompared(TypedDict):
    """A tensor that not all three have in one shape; None where it is missing."""

    name: str
    base_shape: tuple[Count, ...] | None
    full_shape: tuple[Count, ...] | None
    sub_shape: tuple[Count, ...] | None
    num_selected: Count | None


class NotInMask(TypedDict):
    """A tensor that is entirely outside the mask."""

    name: str
    num_elements: Count


class Renamed(TypedDict):
    """The three names of a tensor."""

    base: str
    full: str
    sub: str


@dataclass(frozen=True)
class IdentityCoverage:
    """Which stored elements the counts cover, and which they do not.

    Attributes:
        num_base: Elements stored in BASE, without tied copies.
        num_full: Elements stored in FULL, without tied copies.
        num_sub: Elements stored in SUB, without tied copies.
        num_compared: Elements compared.
        not_compared: `{"name", "base_shape", "full_shape", "sub_shape", "num_selected"}` of tensors
            that are not in all three, or not of one shape; a shape is None where it is missing.
        not_in_mask: `{"name", "num_elements"}` of compared tensors that the mask lacks; they are
            entirely outside it.
        tied: `{"name", "tied_to", "num_elements"}` of tensors that repeat another one.
        renamed: `{"base", "full", "sub"}` of tensors matched although their name prefixes differ.
    """

    num_base: int
    num_full: int
    num_sub: int
    num_compared: int
    not_compared: tuple[Annotated[Mapping[str, Any], Like(NotCompared)], ...] = ()
    not_in_mask: tuple[Annotated[Mapping[str, Any], Like(NotInMask)], ...] = ()
    tied: tuple[Annotated[Mapping[str, Any], Like(Tied)], ...] = ()
    renamed: tuple[Annotated[Mapping[str, Any], Like(Renamed)], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every stored element of the three checkpoints was compared."""
        return self.num_base == self.num_full == self.num_sub == self.num_compared

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for name in ("num_base", "num_full", "num_sub"):
            if not 0 <= self.num_compared <= getattr(self, name):
                yield f"num_compared is {self.num_compared} of {getattr(self, name)} ({name})"


@dataclass(frozen=True)
class TensorIdentity:
    """The agreement of one tensor, or of one part of a fused tensor.

    Attributes:
        name: Name in BASE; a part of a fused tensor adds its label, as `...qkv_proj.weight[q]`.
        layer: Index of the transformer layer, or None outside the layers.
        kind: What it is: `q_proj`, `down_proj`, `norm`, `embed`, `expert.up_proj`, ...
        shape: Its shape.
        dtype: safetensors name of its dtype.
        agreement: How SUB agrees with FULL in it.
    """

    PLAIN: ClassVar = ("name", "layer", "kind", "shape", "dtype", "=agreement")

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    dtype: str
    agreement: SplitAgreement

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.agreement.inside.summary()} inside the mask")

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        num = self.agreement.all.num_elements
        if min(self.shape, default=0) < 0 or prod(self.shape) != num:
            yield f"shape is {list(self.shape)}, and inside and outside have {num} elements"


@dataclass(frozen=True, eq=False)
class Identity(Result):
    """How closely a model trained inside a mask matches one trained on every weight.

    Attributes:
        base: The checkpoint from which both trainings started.
        full: After training every weight.
        sub: After training those of the mask.
        mask: The mask.
        coverage: Which elements the counts cover.
        tensors: One entry per tensor or part of a fused tensor, in the order of BASE's files.
        conversion: Description of how elements were converted, or None.
        provenance: trimtab version, command, date, device, threads.
    """

    FORMAT = "trimtab.identity"
    NAME = "identity result"
    COMMAND = "trimtab identity"
    PLAIN: ClassVar = (
        *("conversion", "provenance", "provenance.base=base", "provenance.full=full"),
        *("provenance.sub=sub", "provenance.mask=mask", "coverage", "total"),
        *("by_layer=_plain_layers", "by_kind", "tensors"),
    )

    base: CheckpointRecord
    full: CheckpointRecord
    sub: CheckpointRecord
    mask: MaskRecord
    coverage: IdentityCoverage
    tensors: tuple[TensorIdentity, ...]
    conversion: str | None = None
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{self.sub.id} against {self.full.id}: {self.total.inside.summary()} inside the mask",
        )

    @property
    def total(self) -> SplitAgreement:
        """The agreement of the whole model."""
        return _agreement(self.tensors)

    @property
    def sub_stayed_outside(self) -> bool:
        """Whether SUB is BASE bit for bit outside the mask, as after training only the mask."""
        return not any(tensor.agreement.outside.num_sub_moved for tensor in self.tensors)

    @property
    def full_stayed_outside(self) -> bool:
        """Whether FULL is BASE bit for bit outside the mask: the mask holds all that it changed."""
        return not any(tensor.agreement.outside.num_full_moved for tensor in self.tensors)

    def by_layer(self) -> dict[int | None, SplitAgreement]:
        """Agreement by layer index, ascending; None for tensors outside the layers comes last."""
        return by_layer(self.tensors, _agreement)

    def by_kind(self) -> dict[str, SplitAgreement]:
        """Agreement by kind, in the order in which the kinds first appear."""
        return by_kind(self.tensors, _agreement)

    def _plain_layers(self) -> dict[str, SplitAgreement]:
        return plain_layers(self.by_layer())

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        num = sum(tensor.agreement.all.num_elements for tensor in self.tensors)
        if num != self.coverage.num_compared:
            yield f"coverage.num_compared is {self.coverage.num_compared}, its tensors have {num}"


def _agreement(tensors: Iterable[TensorIdentity]) -> SplitAgreement:
    return sum((tensor.agreement for tensor in tensors), SplitAgreement())


def identity(
    base: str | os.PathLike[str] | Checkpoint,
    full: str | os.PathLike[str] | Checkpoint,
    sub: str | os.PathLike[str] | Checkpoint,
    mask: str | os.PathLike[str] | PackedMask,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Identity:
    """Count where SUB equals FULL, inside the mask and outside it, under every default criterion.

    BASE is compared with FULL in the same way: the score of doing nothing. A tensor that the mask
    lacks is entirely outside it.

    Args:
        base: The checkpoint from which both trainings started: a folder, a file, a hub id
            (`org/name@revision`), or an open checkpoint.
        full: The checkpoint after training every weight.
        sub: The checkpoint after training those of the mask.
        mask: The mask, or its file.
        threads: Tensors read at the same time; by default the number of processors, at most 8.
        progress: Called after each chunk, from any thread.

    Returns:
        The result.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        TensorMismatchError: The three have nothing in common, or differ in dtypes.
        MaskError: The file is not a mask.
        MaskMismatchError: The mask is of another model, or was made against another base. The
            second is only known once BASE has been read.
    """
    with opened(base, full, sub) as checkpoints, ExitStack() as stack:
        base, full, sub = checkpoints
        (packed_mask,) = opened_masks([mask], stack)
        mask = named_as_in(packed_mask, base)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        mask.check(shapes)
        labels = [side.upper() for side in SIDES]
        alignment = align(base, full, sub, exact=True, labels=labels)
        scanners = Scanners(sum(item.num_elements for item in alignment.items))
        config = base.config or full.config or sub.config
        task = partial(_count_tensor, scanners, mask, config)
        done = stream(alignment, task, threads=threads, progress=progress)
        mask.check(shapes, done.hashes[0])
        base_record, full_record, sub_record = map(record_of, checkpoints, done.hashes)
        return Identity(
            base=base_record,
            full=full_record,
            sub=sub_record,
            mask=mask_record(mask, mask.path, done.hashes[0]),
            coverage=_coverage(alignment, done, mask),
            tensors=tuple(part for item in done.items for part in done.results[item]),
            conversion=done.conversion,
            provenance=made_now(device="cpu", threads=done.num_threads, sums="fp64"),
        )


def _count_tensor(
    scanners: Scanners, mask: PackedMask, config: Mapping[str, Any], item: Aligned, reader: Reader
) -> tuple[TensorIdentity, ...]:
    """Count one tensor of the model: its parts."""
    scanner = scanners.scanner
    packed = mask.tensor(item.name, item.shape).bits
    parts = [
        (part, AgreementTally(item.dtype, DEFAULT_CRITERIA, part.num_rows, part.num_columns))
        for part in parts_of(item.name, item.shape, config)
    ]
    for chunk in reader.chunks():
        base, full, sub = reader.read(chunk)
        selected = unpacked_block(packed, item.shape, chunk)
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


def _coverage(alignment: Alignment, done: Streamed[Any], mask: PackedMask) -> IdentityCoverage:
    """Sort every stored element into compared, tied and not compared."""
    num_compared = sum(item.num_elements for item in done.items)
    num_stored = [num_compared] * len(SIDES)
    not_compared: dict[str, dict[str, Any]] = {}
    for index, tensor in alignment.apart:
        num_stored[index] += tensor.num_elements
        row = not_compared.setdefault(
            tensor.name,
            {
                "name": tensor.name,
                **{f"{side}_shape": None for side in SIDES},
                "num_selected": mask.num_selected(tensor.name) if tensor.name in mask else 0,
            },
        )
        row[f"{SIDES[index]}_shape"] = list(tensor.shape)
    to_full, to_sub = (side.renamed for side in alignment.sides)
    return IdentityCoverage(
        num_base=num_stored[0],
        num_full=num_stored[1],
        num_sub=num_stored[2],
        num_compared=num_compared,
        not_compared=tuple(not_compared.values()),
        not_in_mask=tuple(
            {"name": item.name, "num_elements": item.num_elements}
            for item in done.items
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
