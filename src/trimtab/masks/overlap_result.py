"""The result of an overlap: what masks share, tensor by tensor, as counts.

Ratios, chance and lifts are derived from the counts, which are checked for contradictions when they
are read. Tables and reports need only the `Overlap` (or its JSON).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import comb, prod
from typing import Annotated, Any, ClassVar, TypedDict

import numpy as np

from trimtab.masks.overlap_chance import (
    INDEPENDENT,
    MAGNITUDE,
    PER_TENSOR,
    Consensus,
    Counted,
    Null,
    Shared,
)
from trimtab.results import by_tensor
from trimtab.results.records import CheckpointRecord, MaskRecord
from trimtab.results.result import Result
from trimtab.results.schema import Count, Like, Provenance
from trimtab.results.urn import Strata
from trimtab.words import one_line, out_of, plural

COVERAGE_LISTS = ("not_compared", "other_base")
"""Lists of tensors with remarks, in the order of reports."""


def pairs_of(num_masks: int) -> list[tuple[int, int]]:
    """All pairs of some masks, in the order of their counts."""
    return list(combinations(range(num_masks), 2))


class NotCompared(TypedDict):
    """A tensor that not all masks have; None for those that lack it."""

    name: str
    shape: tuple[Count, ...]
    num_selected: tuple[Count | None, ...]


class BaseOfMask(TypedDict):
    """The base tensor that a mask records."""

    dtype: str
    digest: str


class OtherBase(TypedDict):
    """A tensor that the masks were made against in different versions."""

    name: str
    base: tuple[BaseOfMask | None, ...]


@dataclass(frozen=True)
class OverlapCoverage:
    """Which elements of the masks the counts cover, and which they do not.

    Attributes:
        num_compared: Elements of the tensors that all masks have.
        not_compared: `{"name", "shape", "num_selected"}` of tensors that not all masks have; for
            each mask, the elements that it selects there, or None if it lacks the tensor.
        other_base: `{"name", "base"}` of tensors that were compared although masks were made
            against different bases; for each mask, the recorded dtype and digest, or None.
    """

    num_compared: Count
    not_compared: tuple[Annotated[Mapping[str, Any], Like(NotCompared)], ...] = ()
    other_base: tuple[Annotated[Mapping[str, Any], Like(OtherBase)], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every tensor of every mask was compared."""
        return not self.not_compared


@dataclass(frozen=True)
class MagnitudeBins:
    """A tensor counted by the binary exponent of the base's weights, without empty bins.

    Attributes:
        bins: Biased exponents, see `trimtab.elements.dtypes`.
        num_elements: In each bin.
        num_selected: Of each mask, in each bin.
    """

    bins: tuple[int, ...]
    num_elements: tuple[int, ...]
    num_selected: tuple[tuple[int, ...], ...]

    __repr__ = one_line


@dataclass(frozen=True)
class TensorOverlap:
    """What masks share in one tensor.

    Attributes:
        name: Its name.
        layer: Index of the transformer layer, or None outside the layers.
        kind: What it is: `q_proj`, `down_proj`, `norm`, `embed`, ... Kinds follow from names alone,
            so a fused tensor is one tensor of one kind.
        shape: Its shape.
        num_selected: Elements that each mask selects.
        num_shared: Elements that every two masks share, in the order of `pairs_of`.
        num_by_count: Elements in exactly 0, 1, ... of the masks.
        bins: The counts by magnitude in the base; None without one.
    """

    PLAIN: ClassVar = (
        *("name", "layer", "kind", "shape", "num_elements"),
        *("num_selected", "num_shared", "num_by_count", "bins"),
    )

    name: str
    layer: int | None
    kind: str
    shape: tuple[int, ...]
    num_selected: tuple[int, ...]
    num_shared: tuple[int, ...]
    num_by_count: tuple[int, ...]
    bins: MagnitudeBins | None = None

    __repr__ = one_line

    def __post_init__(self) -> None:
        n, selected = self.num_elements, self.num_selected
        counts, bins = self.num_by_count, self.bins
        if not (
            min(self.shape, default=0) >= 0
            and all(0 <= num <= n for num in selected)
            and len(self.num_shared) == comb(len(selected), 2)
            and all(
                max(0, selected[i] + selected[j] - n) <= num <= min(selected[i], selected[j])
                for (i, j), num in zip(pairs_of(len(selected)), self.num_shared, strict=True)
            )
            and len(counts) == len(selected) + 1
            and min(counts) >= 0
            and sum(counts) == n
            and sum(j * num for j, num in enumerate(counts)) == sum(selected)
            and sum(comb(j, 2) * num for j, num in enumerate(counts)) == sum(self.num_shared)
            and (bins is None or _fit(bins, n, selected))
        ):
            raise ValueError(f"the counts of {self.name!r} contradict each other")

    @property
    def num_elements(self) -> int:
        """Elements in the tensor."""
        return prod(self.shape)


def _fit(bins: MagnitudeBins, num_elements: int, num_selected: Sequence[int]) -> bool:
    """Whether the counts by magnitude add up to those of the tensor."""
    return (
        len(bins.bins) == len(bins.num_elements)
        and min(bins.num_elements, default=0) >= 0
        and sum(bins.num_elements) == num_elements
        and len(bins.num_selected) == len(num_selected)
        and all(
            len(counts) == len(bins.bins)
            and sum(counts) == num
            and all(0 <= c <= n for c, n in zip(counts, bins.num_elements, strict=True))
            for counts, num in zip(bins.num_selected, num_selected, strict=True)
        )
    )


LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Names of the masks, in the order given; there can be no more."""


@dataclass(frozen=True, eq=False)
class Overlap(Result):
    """What two or more masks share, and what they would share by chance.

    Attributes:
        masks: The masks, called A, B, C, ... in this order.
        coverage: Which elements the counts cover.
        tensors: One entry for each tensor that all masks have, in the order of the first.
        base: The checkpoint by whose weights magnitudes are matched; None without one.
        is_series: Whether the masks are in temporal order, to be compared with the last.
        provenance: trimtab version, command, date, device, threads.
    """

    FORMAT = "trimtab.overlap"
    NAME = "overlap"
    COMMAND = "trimtab mask overlap"
    PLAIN: ClassVar = (
        # These two are needed if an overlap is part of another result.
        *("format=FORMAT", "format_version=FORMAT_VERSION", "is_series", "provenance"),
        *("provenance.masks=masks", "provenance.base=base"),
        *("coverage", "total?=_plain_total", "by_layer?=_plain_layers", "by_kind?=_plain_kinds"),
        *("by_layer_kind?=_plain_layers_and_kinds", "pairs?=_plain_pairs"),
        *("consensus?=_plain_consensus", "tensors"),
    )

    masks: tuple[MaskRecord, ...]
    coverage: OverlapCoverage
    tensors: tuple[TensorOverlap, ...]
    base: CheckpointRecord | None = None
    is_series: bool = False
    provenance: Provenance = field(default_factory=dict)

    def __repr__(self) -> str:
        masks = ", ".join(str(mask.id or mask.digest) for mask in self.masks)
        common = out_of(self.consensus().num_common, self.coverage.num_compared, "element")
        return one_line(self, f"{common} in all {plural(len(self.masks), 'mask')}: {masks}")

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of masks, by index."""
        return pairs_of(len(self.masks))

    @property
    def nulls(self) -> tuple[Null, ...]:
        """The null models that the counts support."""
        return (INDEPENDENT, PER_TENSOR, *(() if self.base is None else (MAGNITUDE,)))

    def total(self, first: int = 0, second: int = 1) -> Shared:
        """What two masks share in all tensors.

        Args:
            first: Index of a mask.
            second: Index of another one.
        """
        return self._shared(self.tensors, first, second)

    def by_layer(self, first: int = 0, second: int = 1) -> dict[int | None, Shared]:
        """The same by layer, ascending; None for tensors outside the layers comes last."""
        return by_tensor.by_layer(
            self.tensors, lambda tensors: self._shared(tensors, first, second)
        )

    def by_kind(self, first: int = 0, second: int = 1) -> dict[str, Shared]:
        """The same by kind, in the order in which the kinds first appear."""
        return by_tensor.by_kind(self.tensors, lambda tensors: self._shared(tensors, first, second))

    def by_layer_kind(
        self, first: int = 0, second: int = 1
    ) -> dict[tuple[int | None, str], Shared]:
        """The same by layer and kind, ordered by layer."""
        return by_tensor.by_layer_kind(
            self.tensors, lambda tensors: self._shared(tensors, first, second)
        )

    def consensus(self) -> Consensus:
        """What all masks agree on in all tensors."""
        return self._consensus(self.tensors)

    def consensus_by_kind(self) -> dict[str, Consensus]:
        """The same by kind, in the order in which the kinds first appear."""
        return by_tensor.by_kind(self.tensors, self._consensus)

    def _shared(self, tensors: Sequence[TensorOverlap], first: int, second: int) -> Shared:
        pair = self.pairs.index((min(first, second), max(first, second)))
        return Shared(
            num_elements=sum(tensor.num_elements for tensor in tensors),
            num_first=sum(tensor.num_selected[first] for tensor in tensors),
            num_second=sum(tensor.num_selected[second] for tensor in tensors),
            intersection=sum(tensor.num_shared[pair] for tensor in tensors),
            finer={
                null: Strata(counted.num_elements, *counted.num_selected.T[[first, second]])
                for null, counted in self._counted(tensors).items()
                if null != INDEPENDENT
            },
        )

    def _consensus(self, tensors: Sequence[TensorOverlap]) -> Consensus:
        rows = [tensor.num_by_count for tensor in tensors] or [(0,) * (len(self.masks) + 1)]
        return Consensus(tuple(map(sum, zip(*rows, strict=True))), self._counted(tensors))

    def _counted(self, tensors: Sequence[TensorOverlap]) -> dict[Null, Counted]:
        """The masks in the strata of each null."""
        by_tensor = self._strata((tensor.num_elements, *tensor.num_selected) for tensor in tensors)
        of_all = by_tensor.num_elements.sum(keepdims=True)
        counted = {
            INDEPENDENT: Counted(of_all, by_tensor.num_selected.sum(axis=0, keepdims=True)),
            PER_TENSOR: by_tensor,
        }
        if MAGNITUDE in self.nulls:
            counted[MAGNITUDE] = self._strata(
                counts
                for tensor in tensors
                if tensor.bins is not None
                for counts in zip(tensor.bins.num_elements, *tensor.bins.num_selected, strict=True)
            )
        return counted

    def _strata(self, rows: Iterable[tuple[int, ...]]) -> Counted:
        counts = np.array(list(rows), dtype=np.int64).reshape(-1, 1 + len(self.masks))
        return Counted(counts[:, 0], counts[:, 1:])

    # In the JSON two masks are compared directly, more of them pair by pair.

    def _plain_total(self) -> Shared | None:
        return self.total() if len(self.masks) == 2 else None

    def _plain_layers(self) -> dict[str, Shared] | None:
        return by_tensor.plain_layers(self.by_layer()) if len(self.masks) == 2 else None

    def _plain_kinds(self) -> dict[str, Shared] | None:
        return self.by_kind() if len(self.masks) == 2 else None

    def _plain_layers_and_kinds(self) -> list[dict[str, Any]] | None:
        return by_tensor.plain_layer_kinds(self.by_layer_kind()) if len(self.masks) == 2 else None

    def _plain_pairs(self) -> list[dict[str, Any]] | None:
        if len(self.masks) == 2:
            return None
        return [
            {
                "first": first,
                "second": second,
                "total": self.total(first, second),
                "by_layer": by_tensor.plain_layers(self.by_layer(first, second)),
                "by_kind": self.by_kind(first, second),
            }
            for first, second in self.pairs
        ]

    def _plain_consensus(self) -> dict[str, Any] | None:
        if len(self.masks) == 2:
            return None
        return {"total": self.consensus(), "by_kind": self.consensus_by_kind()}

    def problems(self) -> Iterator[str]:
        """Contradictions between the counts."""
        if not 2 <= len(self.masks) <= len(LETTERS):
            yield f"it is of {len(self.masks)} masks"
            return
        for tensor in self.tensors:
            if len(tensor.num_selected) != len(self.masks):
                yield f"{tensor.name[:100]!a} is of {len(tensor.num_selected)} masks"
            if (tensor.bins is None) != (self.base is None):
                yield f"{tensor.name[:100]!a} and the base do not agree on magnitudes"
        num = sum(tensor.num_elements for tensor in self.tensors)
        if num != self.coverage.num_compared:
            yield (
                f"coverage.num_compared is {self.coverage.num_compared}, and its tensors have "
                f"{num} elements"
            )
