"""The result of a comparison: integer counts per tensor, and figures derived from them.

Tables and reports need only a `Comparison` (or its JSON), never the checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.counts import ChangeCounts
from trimtab.measure.geometry import Geometry
from trimtab.measure.precision import Precision
from trimtab.measure.rank import Rank
from trimtab.results import by_tensor
from trimtab.results.records import CheckpointRecord, Tied
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance, to_plain
from trimtab.words import one_line

COVERAGE_LISTS = ("tied", "missing", "extra", "shape_mismatch", "renamed", "folded")
"""Lists of tensors with remarks, in the order of reports."""


class Alone(TypedDict):
    """A tensor that only one side has."""

    name: str
    shape: tuple[Count, ...]
    dtype: str
    num_elements: Count
    hash: str


class Mismatch(TypedDict):
    """A tensor that is of two shapes."""

    name: str
    base_shape: tuple[Count, ...]
    tuned_shape: tuple[Count, ...]
    num_compared: Count
    num_uncompared_base: Count
    num_uncompared_tuned: Count
    base_hash: str
    tuned_hash: str


class Renamed(TypedDict):
    """The two names of a tensor."""

    base: str
    tuned: str


class Folded(TypedDict):
    """Scales that were multiplied into their weights."""

    name: str
    into: str
    num_elements: Count


class Analyses(TypedDict, total=False):
    """The optional sections by name."""

    precision: Precision
    rank: Rank
    geometry: Geometry


@dataclass(frozen=True)
class Coverage:
    """Which stored elements the counts speak of, and which they do not.

    Attributes:
        num_base: Elements stored in base, without tied copies.
        num_tuned: Elements stored in tuned, without tied copies.
        num_compared: Elements compared.
        tied: `{"name", "tied_to", "num_elements"}` of tensors that repeat another one.
        missing: `{"name", "shape", "dtype", "num_elements", "hash"}` of tensors only in base.
        extra: The same of tensors only in tuned.
        shape_mismatch: `{"name", "base_shape", "tuned_shape", "num_compared",
            "num_uncompared_base", "num_uncompared_tuned", "base_hash", "tuned_hash"}`; a resized
            vocabulary has its common rows compared.
        renamed: `{"base", "tuned"}` of tensors matched although their name prefixes differ.
        folded: `{"name", "into", "num_elements"}` of block scales that were multiplied into
            their weights.
    """

    PLAIN: ClassVar = (
        *("num_base", "num_tuned", "num_compared", "fraction_of_base", "fraction_of_tuned"),
        *COVERAGE_LISTS,
    )

    num_base: int
    num_tuned: int
    num_compared: int
    tied: tuple[Annotated[Mapping[str, Any], Like(Tied)], ...] = ()
    missing: tuple[Annotated[Mapping[str, Any], Like(Alone)], ...] = ()
    extra: tuple[Annotated[Mapping[str, Any], Like(Alone)], ...] = ()
    shape_mismatch: tuple[Annotated[Mapping[str, Any], Like(Mismatch)], ...] = ()
    renamed: tuple[Annotated[Mapping[str, Any], Like(Renamed)], ...] = ()
    folded: tuple[Annotated[Mapping[str, Any], Like(Folded)], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every stored element of both checkpoints was compared."""
        return self.num_base == self.num_tuned == self.num_compared

    @property
    def fraction_of_base(self) -> float | None:
        """Share of base that was compared; None of nothing."""
        return self.num_compared / self.num_base if self.num_base else None

    @property
    def fraction_of_tuned(self) -> float | None:
        """Share of tuned that was compared; None of nothing."""
        return self.num_compared / self.num_tuned if self.num_tuned else None

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for name in ("num_base", "num_tuned"):
            if not 0 <= self.num_compared <= getattr(self, name):
                yield f"num_compared is {self.num_compared} of {getattr(self, name)} ({name})"


@dataclass(frozen=True, eq=False)
class Profile:
    """How the changed elements of a tensor are distributed over its rows, or its columns.

    Rows and columns are those of the 2-D view `[prod(shape[:-1]), shape[-1]]`; changed means that
    the bits differ.

    Attributes:
        num: Rows.
        num_touched: Rows with at least one changed element.
        max_changed: Largest number of changed elements in a row.
        changed: Changed elements of every row, int64 `[num]`; None unless profiles were requested.
    """

    PLAIN: ClassVar = ("num", "num_touched", "max_changed", "changed?")

    num: int
    num_touched: int
    max_changed: int
    changed: NDArray[np.int64] | None = None

    __repr__ = one_line

    @classmethod
    def of(cls, changed: NDArray[np.int64], *, keep: bool) -> Profile:
        """Summarise the counts of all rows; `keep` stores them too."""
        return cls(
            num=len(changed),
            num_touched=int(np.count_nonzero(changed)),
            max_changed=int(changed.max(initial=0)),
            changed=changed if keep else None,
        )

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if not 0 <= self.num_touched <= self.num or self.max_changed < 0:
            yield f"{self.num_touched} of {self.num} lines are touched, by {self.max_changed}"
        changed = self.changed
        if changed is not None and (
            len(changed) != self.num
            or changed.min(initial=0) < 0
            or self.num_touched != np.count_nonzero(changed)
            or self.max_changed != changed.max(initial=0)
        ):
            yield "changed does not fit num, num_touched and max_changed"


@dataclass(frozen=True, eq=False)
class TensorChange:
    """Change counts of one tensor, or of one part of a fused tensor.

    Attributes:
        name: Name in base; a part of a fused tensor adds its label, as `...qkv_proj.weight[q]`.
        layer: Index of the transformer layer, or None outside the layers.
        kind: What it is: `q_proj`, `down_proj`, `norm`, `embed`, `expert.up_proj`, ...
        shape: Shape of what was compared.
        dtype: safetensors name of the dtype in which elements were compared.
        base_dtype: As stored in base; differs from `dtype` only after an explicit cast or
            dequantisation.
        tuned_dtype: As stored in tuned.
        base_hash: xxh3-128 of the bytes of the whole stored tensor.
        tuned_hash: The same in tuned.
        counts: What changed.
        rows: How the changes fall on rows.
        columns: How the changes fall on columns.
    """

    PLAIN: ClassVar = (
        *("name", "layer", "kind", "shape", "dtype", "base_dtype", "tuned_dtype"),
        *("base_hash", "tuned_hash", "=counts", "rows", "columns"),
    )

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    dtype: str
    base_dtype: str
    tuned_dtype: str
    base_hash: str
    tuned_hash: str
    counts: ChangeCounts
    rows: Profile
    columns: Profile

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: {self.counts.summary()}")

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        num = self.counts.num_elements
        if min(self.shape, default=0) < 0 or prod(self.shape) != num:
            yield f"shape is {list(self.shape)}, and num_elements {num}"
        if "bits" not in self.counts.num_changed:
            yield "num_changed has no bits"
        changed = self.counts.num_changed.get("bits", 0)
        for name in ("rows", "columns"):
            profile: Profile = getattr(self, name)
            if profile.num_touched > changed or profile.max_changed > changed or profile.num > num:
                yield f"{name} does not fit {changed} changed of {num} elements"
        if self.layer is not None and self.layer < 0:
            yield f"layer is {self.layer}"


@dataclass(frozen=True, eq=False)
class Comparison(Result):
    """What changed from a base to a tuned checkpoint.

    Attributes:
        base: Where base came from.
        tuned: Where tuned came from.
        coverage: What the counts speak of.
        tensors: One entry per tensor or part of a fused tensor, in the order of base's files.
        criterion: Key of the criterion that headlines use; every criterion is counted anyway.
        conversion: Words for a cast or dequantisation that was asked for, else None. Shown
            wherever a number is shown.
        provenance: trimtab version, command, date, seed, device, threads.
        analyses: Optional sections by name (`precision`, `rank`, `geometry`), as plain data.
    """

    FORMAT = "trimtab.comparison"
    NAME = "comparison"
    COMMAND = "trimtab compare"
    PLAIN: ClassVar = (
        *("criterion", "conversion", "provenance", "provenance.base=base"),
        *("provenance.tuned=tuned", "coverage", "total=_plain_total", "by_layer=_plain_layers"),
        *("by_kind=_plain_kinds", "by_layer_kind=_plain_layers_and_kinds", "tensors", "=analyses"),
    )

    base: CheckpointRecord
    tuned: CheckpointRecord
    coverage: Coverage
    tensors: tuple[TensorChange, ...]
    criterion: str = "bits"
    conversion: str | None = None
    provenance: Provenance = field(default_factory=dict)
    analyses: Annotated[Mapping[str, Mapping[str, Any]], Like(Analyses)] = field(
        default_factory=dict
    )

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{self.base.id} → {self.tuned.id}: {self.total.summary(self.criterion)}"
            + ("" if self.coverage.is_complete else ", coverage INCOMPLETE"),
        )

    @property
    def total(self) -> ChangeCounts:
        """Counts of the whole model."""
        return _counts(self.tensors)

    @property
    def sparsity(self) -> float | None:
        """Update sparsity of the whole model under `criterion`, weighted by elements."""
        return self.total.sparsity(self.criterion) if self.tensors else None

    def by_layer(self) -> dict[int | None, ChangeCounts]:
        """Counts by layer index, ascending; None for tensors outside the layers comes last."""
        return by_tensor.by_layer(self.tensors, _counts)

    def by_kind(self) -> dict[str, ChangeCounts]:
        """Counts by kind, in the order in which the kinds first appear."""
        return by_tensor.by_kind(self.tensors, _counts)

    def by_layer_kind(self) -> dict[tuple[int | None, str], ChangeCounts]:
        """Counts by layer and kind, ordered by layer."""
        return by_tensor.by_layer_kind(self.tensors, _counts)

    def unweighted_mean_sparsity(
        self, criterion: str, tensors: Iterable[TensorChange] | None = None
    ) -> float | None:
        """Mean of the tensors' sparsities, a norm counting as much as a matrix.

        The published script averages like this, so papers that quote it should be compared with
        this column;
        every other figure in trimtab is weighted by elements.
        """
        values = [
            value
            for tensor in (self.tensors if tensors is None else tensors)
            if (value := tensor.counts.sparsity(criterion)) is not None
        ]
        return sum(values) / len(values) if values else None

    def _plain_total(self) -> dict[str, Any]:
        return self._plain_group(self.tensors)

    def _plain_layers(self) -> dict[str, Any]:
        return by_tensor.plain_layers(by_tensor.by_layer(self.tensors, self._plain_group))

    def _plain_kinds(self) -> dict[str, Any]:
        return by_tensor.by_kind(self.tensors, self._plain_group)

    def _plain_layers_and_kinds(self) -> list[dict[str, Any]]:
        return by_tensor.plain_layer_kinds(by_tensor.by_layer_kind(self.tensors, self._plain_group))

    def _plain_group(self, tensors: Sequence[TensorChange]) -> dict[str, Any]:
        counts = _counts(tensors)
        return {
            "num_tensors": len(tensors),
            **to_plain(counts),
            "unweighted_mean_sparsity": {
                name: self.unweighted_mean_sparsity(name, tensors) for name in counts.num_changed
            },
        }

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        for tensor in self.tensors:
            if self.criterion not in tensor.counts.num_changed:
                yield f"criterion is {self.criterion[:40]!a}, which {tensor.name!a} does not count"
                break
        if len({frozenset(tensor.counts.num_changed) for tensor in self.tensors}) > 1:
            yield "tensors are counted under different criteria"
        num_elements = sum(tensor.counts.num_elements for tensor in self.tensors)
        if num_elements != self.coverage.num_compared:
            yield (
                f"coverage.num_compared is {self.coverage.num_compared}, and its tensors have "
                f"{num_elements} elements"
            )


def _counts(tensors: Iterable[TensorChange]) -> ChangeCounts:
    return ChangeCounts.sum(tensor.counts for tensor in tensors)
