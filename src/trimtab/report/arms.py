"""A comparison as the report draws it: named, rolled up once, its kinds in reading order.

A mixture-of-experts checkpoint has tens of thousands of tensors; the report walks through them
once per roll-up and shows kinds, layers and the largest movers, never every tensor.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

from trimtab.elements.counts import ChangeCounts
from trimtab.measure.compare_result import Comparison, TensorChange
from trimtab.report.wording import kinds_in_order

__all__ = ["Arm"]


@dataclass(frozen=True, eq=False)
class Arm:
    """One comparison of a report; a report of two runs of the same base has two arms.

    Attributes:
        label: What the run is called (`grpo`); empty where a report has a single arm.
        comparison: Its result.
    """

    label: str
    comparison: Comparison

    @property
    def criterion(self) -> str:
        """Key of the criterion of the headlines."""
        return self.comparison.criterion

    @cached_property
    def by_layer_kind(self) -> dict[tuple[int | None, str], ChangeCounts]:
        """Counts by layer and kind, ordered by layer."""
        return self.comparison.by_layer_kind()

    @cached_property
    def by_kind(self) -> dict[str, ChangeCounts]:
        """Counts by kind, in reading order."""
        counts: defaultdict[str, ChangeCounts] = defaultdict(ChangeCounts)
        for (_, kind), group in self.by_layer_kind.items():
            counts[kind] += group
        return {kind: counts[kind] for kind in kinds_in_order(counts)}

    @cached_property
    def by_layer(self) -> dict[int | None, ChangeCounts]:
        """Counts by layer, ascending; None for tensors outside the layers comes last."""
        counts: defaultdict[int | None, ChangeCounts] = defaultdict(ChangeCounts)
        for (layer, _), group in self.by_layer_kind.items():
            counts[layer] += group
        return dict(counts)

    @cached_property
    def total(self) -> ChangeCounts:
        """Counts of the whole model."""
        return sum(self.by_kind.values(), ChangeCounts())

    @cached_property
    def tensors_by_kind(self) -> dict[str, list[TensorChange]]:
        """The tensors of each kind, in reading order."""
        groups: defaultdict[str, list[TensorChange]] = defaultdict(list)
        for tensor in self.comparison.tensors:
            groups[tensor.kind].append(tensor)
        return {kind: groups[kind] for kind in kinds_in_order(groups)}
