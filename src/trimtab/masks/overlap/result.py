"""The result of an overlap: what masks share, tensor by tensor, as counts.

An `Overlap` is complete in itself: tables and reports are drawn from it (or from its JSON, years
later) without opening a mask or a checkpoint again. All it keeps are integers; every ratio, chance
and lift is derived from them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import numpy as np

from trimtab.masks.identity.result import MaskRecord
from trimtab.masks.overlap.consensus import Consensus, Counted
from trimtab.masks.overlap.counts import OverlapCoverage, TensorOverlap, pairs_of
from trimtab.masks.overlap.hypergeometric import Strata
from trimtab.masks.overlap.shared import INDEPENDENT, MAGNITUDE, PER_TENSOR, Null, Shared
from trimtab.results.records import CheckpointRecord
from trimtab.results.schema import Provenance, from_plain, to_plain
from trimtab.words import one_line, out_of, plural

__all__ = ["FORMAT", "FORMAT_VERSION", "LETTERS", "Overlap"]

FORMAT = "trimtab.overlap"
FORMAT_VERSION = 1
"""History: 1, the first."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""What the masks are called, in the order in which they are given; there can be no more."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Overlap:
    """What two or more masks share, and what they would share by chance.

    Attributes:
        masks: The masks, called A, B, C, ... in this order.
        coverage: What the counts speak of.
        tensors: One entry for each tensor that all masks have, in the order of the first.
        base: The checkpoint by whose weights magnitudes are matched; None without one.
        is_series: Whether the masks are in the order of time, to be set against the last.
        provenance: trimtab version, command, date, device, threads.
    """

    PLAIN: ClassVar = (
        *("format=_format", "format_version=_format_version", "is_series", "provenance"),
        *("provenance.masks=masks", "provenance.base=base"),
        *("coverage", "total?=_plain_total", "by_layer?=_plain_layers", "by_kind?=_plain_kinds"),
        *("by_layer_kind?=_plain_layers_and_kinds", "pairs?=_plain_pairs"),
        *("consensus?=_plain_consensus", "tensors"),
    )

    _format: ClassVar = FORMAT
    _format_version: ClassVar = FORMAT_VERSION

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
        """Every two masks, by their places."""
        return pairs_of(len(self.masks))

    @property
    def nulls(self) -> tuple[Null, ...]:
        """The null models that the counts allow."""
        return (INDEPENDENT, PER_TENSOR, *(() if self.base is None else (MAGNITUDE,)))

    def total(self, first: int = 0, second: int = 1) -> Shared:
        """What two masks share in all tensors.

        Args:
            first: Place of a mask.
            second: Place of another one.
        """
        return self._shared(self.tensors, first, second)

    def by_layer(self, first: int = 0, second: int = 1) -> dict[int | None, Shared]:
        """The same by layer, ascending; None for tensors outside the layers comes last."""
        groups = self._grouped(lambda tensor: tensor.layer)
        ordered = sorted(groups.items(), key=lambda item: (item[0] is None, item[0] or 0))
        return {layer: self._shared(tensors, first, second) for layer, tensors in ordered}

    def by_kind(self, first: int = 0, second: int = 1) -> dict[str, Shared]:
        """The same by kind, in the order in which the kinds first appear."""
        groups = self._grouped(lambda tensor: tensor.kind)
        return {kind: self._shared(tensors, first, second) for kind, tensors in groups.items()}

    def by_layer_kind(
        self, first: int = 0, second: int = 1
    ) -> dict[tuple[int | None, str], Shared]:
        """The same by layer and kind, ordered by layer."""
        groups = self._grouped(lambda tensor: (tensor.layer, tensor.kind))
        keys = sorted(groups, key=lambda key: (key[0] is None, key[0] or 0))
        return {key: self._shared(groups[key], first, second) for key in keys}

    def consensus(self) -> Consensus:
        """What all masks agree on in all tensors."""
        return self._consensus(self.tensors)

    def consensus_by_kind(self) -> dict[str, Consensus]:
        """The same by kind, in the order in which the kinds first appear."""
        groups = self._grouped(lambda tensor: tensor.kind)
        return {kind: self._consensus(tensors) for kind, tensors in groups.items()}

    def _grouped(self, key: Callable[[TensorOverlap], Key]) -> dict[Key, list[TensorOverlap]]:
        groups: dict[Key, list[TensorOverlap]] = {}
        for tensor in self.tensors:
            groups.setdefault(key(tensor), []).append(tensor)
        return groups

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

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        return dict(to_plain(self))

    # For readers of the JSON: two masks as they are, more of them pair by pair.

    def _plain_total(self) -> dict[str, Any] | None:
        return self.total().to_dict() if len(self.masks) == 2 else None

    def _plain_layers(self) -> dict[str, Any] | None:
        return self._pair_dict(0, 1)["by_layer"] if len(self.masks) == 2 else None

    def _plain_kinds(self) -> dict[str, Any] | None:
        return self._pair_dict(0, 1)["by_kind"] if len(self.masks) == 2 else None

    def _plain_layers_and_kinds(self) -> list[dict[str, Any]] | None:
        if len(self.masks) != 2:
            return None
        return [
            {"layer": layer, "kind": kind, **shared.to_dict()}
            for (layer, kind), shared in self.by_layer_kind().items()
        ]

    def _plain_pairs(self) -> list[dict[str, Any]] | None:
        if len(self.masks) == 2:
            return None
        return [
            {"first": first, "second": second, **self._pair_dict(first, second)}
            for first, second in self.pairs
        ]

    def _plain_consensus(self) -> dict[str, Any] | None:
        if len(self.masks) == 2:
            return None
        by_kind = self.consensus_by_kind()
        return {
            "total": self.consensus().to_dict(),
            "by_kind": {kind: consensus.to_dict() for kind, consensus in by_kind.items()},
        }

    def _pair_dict(self, first: int, second: int) -> dict[str, Any]:
        by_layer, by_kind = self.by_layer(first, second), self.by_kind(first, second)
        return {
            "total": self.total(first, second).to_dict(),
            "by_layer": {_layer_key(layer): of.to_dict() for layer, of in by_layer.items()},
            "by_kind": {kind: of.to_dict() for kind, of in by_kind.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Overlap:
        """The inverse of `to_dict`; what is derived is derived again.

        Raises:
            ResultFormatError: The data is no overlap, of another version, or damaged.
        """
        return from_plain(
            cls,
            data,
            what="overlap",
            format=FORMAT,
            version=FORMAT_VERSION,
            command="trimtab mask overlap",
        )

    def problems(self) -> Iterator[str]:
        """What no masks can share."""
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


def _layer_key(layer: int | None) -> str:
    return "outside" if layer is None else str(layer)
