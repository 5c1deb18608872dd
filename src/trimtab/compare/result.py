"""The result of a comparison: integer counts per tensor, and what is derived from them.

A `Comparison` is complete in itself: tables and reports are drawn from it (or from its JSON,
years later) without opening a checkpoint again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.record import CheckpointRecord, check_format
from trimtab.elements.counts import ChangeCounts
from trimtab.errors import ResultFormatError
from trimtab.words import one_line

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "CheckpointRecord",
    "Comparison",
    "Coverage",
    "Profile",
    "TensorChange",
]

FORMAT = "trimtab.comparison"
FORMAT_VERSION = 1
"""History: 1, the first."""

COVERAGE_LISTS = ("tied", "missing", "extra", "shape_mismatch", "renamed", "folded")
"""Lists of tensors that need a word, in the order in which reports show them."""

ANALYSES = ("precision", "rank", "geometry")
"""Optional sections of a comparison, each filled by the module of its name."""

Key = TypeVar("Key", bound=Hashable)


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

    num_base: int
    num_tuned: int
    num_compared: int
    tied: tuple[Mapping[str, Any], ...] = ()
    missing: tuple[Mapping[str, Any], ...] = ()
    extra: tuple[Mapping[str, Any], ...] = ()
    shape_mismatch: tuple[Mapping[str, Any], ...] = ()
    renamed: tuple[Mapping[str, Any], ...] = ()
    folded: tuple[Mapping[str, Any], ...] = ()

    __repr__ = one_line

    @property
    def is_complete(self) -> bool:
        """Whether every stored element of both checkpoints was compared."""
        return self.num_base == self.num_tuned == self.num_compared

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with the share of base and of tuned that was compared."""
        return {
            "num_base": self.num_base,
            "num_tuned": self.num_tuned,
            "num_compared": self.num_compared,
            "fraction_of_base": self.num_compared / self.num_base if self.num_base else None,
            "fraction_of_tuned": self.num_compared / self.num_tuned if self.num_tuned else None,
            **{name: [dict(row) for row in getattr(self, name)] for name in COVERAGE_LISTS},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coverage:
        """The inverse of `to_dict`."""
        return cls(
            num_base=data["num_base"],
            num_tuned=data["num_tuned"],
            num_compared=data["num_compared"],
            **{name: tuple(data[name]) for name in COVERAGE_LISTS},
        )


@dataclass(frozen=True, eq=False)
class Profile:
    """How the changed elements of a tensor fall on its rows, or on its columns.

    Rows and columns are those of the 2-D view `[prod(shape[:-1]), shape[-1]]`; changed means that
    the bits differ.

    Attributes:
        num: Rows.
        num_touched: Rows with at least one changed element.
        max_changed: Changed elements in the row that has most of them.
        changed: Changed elements of every row, int64 `[num]`; None unless profiles were asked for.
    """

    num: int
    num_touched: int
    max_changed: int
    changed: NDArray[np.int64] | None = None

    __repr__ = one_line

    @classmethod
    def of(cls, changed: NDArray[np.int64], *, keep: bool) -> Profile:
        """Summarise the counts of all rows, and keep them if asked to."""
        return cls(
            num=len(changed),
            num_touched=int(np.count_nonzero(changed)),
            max_changed=int(changed.max(initial=0)),
            changed=changed if keep else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = {
            "num": self.num,
            "num_touched": self.num_touched,
            "max_changed": self.max_changed,
        }
        if self.changed is not None:
            data["changed"] = self.changed.tolist()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Profile:
        """The inverse of `to_dict`."""
        changed = data.get("changed")
        return cls(
            num=data["num"],
            num_touched=data["num_touched"],
            max_changed=data["max_changed"],
            changed=None if changed is None else np.asarray(changed, dtype=np.int64),
        )


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
        return one_line(self, f"{self.name}: {self.counts.told()}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "layer": self.layer,
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "base_dtype": self.base_dtype,
            "tuned_dtype": self.tuned_dtype,
            "base_hash": self.base_hash,
            "tuned_hash": self.tuned_hash,
            **self.counts.to_dict(),
            "rows": self.rows.to_dict(),
            "columns": self.columns.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TensorChange:
        """The inverse of `to_dict`."""
        return cls(
            name=data["name"],
            layer=data["layer"],
            kind=data["kind"],
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            base_dtype=data["base_dtype"],
            tuned_dtype=data["tuned_dtype"],
            base_hash=data["base_hash"],
            tuned_hash=data["tuned_hash"],
            counts=ChangeCounts.from_dict(data),
            rows=Profile.from_dict(data["rows"]),
            columns=Profile.from_dict(data["columns"]),
        )


@dataclass(frozen=True, eq=False)
class Comparison:
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

    base: CheckpointRecord
    tuned: CheckpointRecord
    coverage: Coverage
    tensors: tuple[TensorChange, ...]
    criterion: str = "bits"
    conversion: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    analyses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{self.base.id} → {self.tuned.id}: {self.total.told(self.criterion)}"
            + ("" if self.coverage.is_complete else ", coverage INCOMPLETE"),
        )

    @property
    def total(self) -> ChangeCounts:
        """Counts of the whole model."""
        return sum((tensor.counts for tensor in self.tensors), ChangeCounts())

    @property
    def sparsity(self) -> float | None:
        """Update sparsity of the whole model under `criterion`, weighted by elements."""
        return self.total.sparsity(self.criterion) if self.tensors else None

    def by_layer(self) -> dict[int | None, ChangeCounts]:
        """Counts by layer index, ascending; None for tensors outside the layers comes last."""
        groups = self._grouped(lambda tensor: tensor.layer)
        return dict(sorted(groups.items(), key=lambda item: _layer_order(item[0])))

    def by_kind(self) -> dict[str, ChangeCounts]:
        """Counts by kind, in the order in which the kinds first appear."""
        return self._grouped(lambda tensor: tensor.kind)

    def by_layer_kind(self) -> dict[tuple[int | None, str], ChangeCounts]:
        """Counts by layer and kind, ordered by layer."""
        groups = self._grouped(lambda tensor: (tensor.layer, tensor.kind))
        return dict(sorted(groups.items(), key=lambda item: _layer_order(item[0][0])))

    def unweighted_mean_sparsity(
        self, criterion: str, tensors: Iterable[TensorChange] | None = None
    ) -> float | None:
        """Mean of the tensors' sparsities, a norm counting as much as a matrix.

        The published script averages so (papers that quote it should be compared with this
        column); every other figure in trimtab is weighted by elements.
        """
        values = [
            value
            for tensor in (self.tensors if tensors is None else tensors)
            if (value := tensor.counts.sparsity(criterion)) is not None
        ]
        return sum(values) / len(values) if values else None

    def _grouped(self, key: Callable[[TensorChange], Key]) -> dict[Key, ChangeCounts]:
        groups: dict[Key, ChangeCounts] = {}
        for tensor in self.tensors:
            group = key(tensor)
            groups[group] = groups.get(group, ChangeCounts()) + tensor.counts
        return groups

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, in the format of the docs page "Formats"."""
        members: dict[tuple[str, Hashable], list[TensorChange]] = defaultdict(list)
        for tensor in self.tensors:
            members["layer", tensor.layer].append(tensor)
            members["kind", tensor.kind].append(tensor)
            members["both", (tensor.layer, tensor.kind)].append(tensor)

        def group(axis: str, key: Hashable, counts: ChangeCounts) -> dict[str, Any]:
            tensors = members[axis, key]
            return {
                "num_tensors": len(tensors),
                **counts.to_dict(),
                "unweighted_mean_sparsity": {
                    name: self.unweighted_mean_sparsity(name, tensors)
                    for name in counts.num_changed
                },
            }

        total = self.total
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "criterion": self.criterion,
            "conversion": self.conversion,
            "provenance": {
                **self.provenance,
                "base": self.base.to_dict(),
                "tuned": self.tuned.to_dict(),
            },
            "coverage": self.coverage.to_dict(),
            "total": {
                "num_tensors": len(self.tensors),
                **total.to_dict(),
                "unweighted_mean_sparsity": {
                    name: self.unweighted_mean_sparsity(name) for name in total.num_changed
                },
            },
            "by_layer": {
                _layer_key(layer): group("layer", layer, counts)
                for layer, counts in self.by_layer().items()
            },
            "by_kind": {
                kind: group("kind", kind, counts) for kind, counts in self.by_kind().items()
            },
            "by_layer_kind": [
                {"layer": layer, "kind": kind, **group("both", (layer, kind), counts)}
                for (layer, kind), counts in self.by_layer_kind().items()
            ],
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            **self.analyses,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_dict`.

        Raises:
            ResultFormatError: The data is not a comparison, of another version, or damaged.
        """
        check_format(data, FORMAT, FORMAT_VERSION, what="comparison", command="trimtab compare")
        try:
            provenance = dict(data["provenance"])
            return cls(
                base=CheckpointRecord(**provenance.pop("base")),
                tuned=CheckpointRecord(**provenance.pop("tuned")),
                coverage=Coverage.from_dict(data["coverage"]),
                tensors=tuple(TensorChange.from_dict(row) for row in data["tensors"]),
                criterion=data["criterion"],
                conversion=data["conversion"],
                provenance=provenance,
                analyses={name: data[name] for name in ANALYSES if name in data},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ResultFormatError(f"damaged comparison: {error!r} while reading it") from error

    def to_dataframe(self) -> pd.DataFrame:
        """One row per tensor: name, layer, kind, shape, dtype, elements, changed by criterion.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from trimtab.extras import require

        frame = require("pandas", "pip install pandas").DataFrame
        rows: pd.DataFrame = frame(
            [
                {
                    "name": tensor.name,
                    "layer": tensor.layer,
                    "kind": tensor.kind,
                    "shape": tensor.shape,
                    "dtype": tensor.dtype,
                    "num_elements": tensor.counts.num_elements,
                    **{
                        f"num_changed[{key}]": count
                        for key, count in tensor.counts.num_changed.items()
                    },
                    "update_l2": tensor.counts.update_l2,
                    "update_max_abs": tensor.counts.update_max_abs,
                }
                for tensor in self.tensors
            ]
        )
        return rows


def _layer_order(layer: int | None) -> tuple[bool, int]:
    return layer is None, layer or 0


def _layer_key(layer: int | None) -> str:
    return "outside" if layer is None else str(layer)
