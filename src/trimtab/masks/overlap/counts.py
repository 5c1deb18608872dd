"""What an overlap keeps of each tensor, and which tensors it speaks of: integers, checked.

Counts that contradict each other are refused when they are made: a result that was read from a
file is as sound as one that was just counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb, prod
from typing import Annotated, Any, ClassVar, TypedDict

from trimtab.results.schema import Count, Like
from trimtab.words import one_line

__all__ = ["COVERAGE_LISTS", "MagnitudeBins", "OverlapCoverage", "TensorOverlap", "pairs_of"]

COVERAGE_LISTS = ("not_compared", "other_base")
"""Lists of tensors that need a word, in the order in which reports show them."""


def pairs_of(num_masks: int) -> list[tuple[int, int]]:
    """Every two of some masks, in the order in which their counts are kept."""
    return list(combinations(range(num_masks), 2))


class NotCompared(TypedDict):
    """A tensor that not all masks have; None for those that lack it."""

    name: str
    shape: tuple[Count, ...]
    num_selected: tuple[Count | None, ...]


class BaseOfMask(TypedDict):
    """What a mask says that it was made against."""

    dtype: str
    digest: str


class OtherBase(TypedDict):
    """A tensor that the masks were made of against different bases."""

    name: str
    base: tuple[BaseOfMask | None, ...]


@dataclass(frozen=True)
class OverlapCoverage:
    """Which elements of the masks the counts speak of, and which they do not.

    Attributes:
        num_compared: Elements of the tensors that all masks have.
        not_compared: `{"name", "shape", "num_selected"}` of tensors that not all masks have; of
            each mask, the elements that it selects there, or None where it lacks the tensor.
        other_base: `{"name", "base"}` of tensors that were compared although masks were made
            against different bases; of each mask, the dtype and the digest that it says, or None.
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
