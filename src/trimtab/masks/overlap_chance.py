"""What two masks share in one scope, or several agree on, and what they would by chance.

A number of shared elements means little by itself, so it is always shown with its expectation under
a null model. There are three, each of which preserves more of the masks than the one before:

- `independent`: how many elements each mask selects in the whole scope. One urn, the baseline of
  arXiv 2505.11711 (section 5 and appendix E).
- `per-tensor`: how many it selects in each tensor.
- `magnitude-matched`: how many it selects in each tensor among the base weights of each binary
  exponent. Low precision lets only small weights move by a small step, so two runs with one step
  size share small weights, whatever they learned.

Given those counts, every choice of elements is equally likely, and the masks are independent. Mean
and variance of the shared number are exact; see `trimtab.results.urn`. An element of a stratum is
in
a mask with the probability of the mask's density there, so the number of masks that contain it is a
sum of independent Bernoulli variables (Poisson-binomial), and expected counts of elements in
exactly
k masks are sums over the strata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import AnalysisError
from trimtab.results.urn import Strata, Tail, tail
from trimtab.words import one_line

Null: TypeAlias = Literal["independent", "per-tensor", "magnitude-matched"]

INDEPENDENT: Null = "independent"
PER_TENSOR: Null = "per-tensor"
MAGNITUDE: Null = "magnitude-matched"

NULLS: tuple[Null, ...] = (INDEPENDENT, PER_TENSOR, MAGNITUDE)
"""From the weakest to the strictest."""


class Ratios(NamedTuple):
    """A number of shared elements as shares; None where the denominator is 0.

    Attributes:
        o1: Of the first mask.
        o2: Of the second mask.
        jaccard: Of the elements that either selects.
    """

    o1: float | None
    o2: float | None
    jaccard: float | None


@dataclass(frozen=True)
class AgainstNull:
    """What two masks share, compared with one null model.

    Attributes:
        num_shared: Elements that both select.
        expected: Mean of that number under the null.
        deviation: Its standard deviation under the null.
        most: Most elements that masks with these counts can share.
        chance: The mean as shares; for Jaccard that of the mean number, not the mean of Jaccard.
        ceiling: The most as shares.
        probability: Tail probability of the number.
    """

    num_shared: int
    expected: float
    deviation: float
    most: int
    chance: Ratios
    ceiling: Ratios
    probability: Tail

    __repr__ = one_line

    @property
    def lift(self) -> float | None:
        """Shared / expected, which is also o1 and o2 over their chance; None if 0 are expected."""
        return self.num_shared / self.expected if self.expected else None

    @property
    def z(self) -> float | None:
        """Deviations above the mean; None if the number cannot vary under the null."""
        excess = self.num_shared - self.expected
        return excess / self.deviation if self.deviation else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "expected": self.expected,
            "deviation": self.deviation,
            "chance": self.chance._asdict(),
            "lift": self.lift,
            "ceiling": self.ceiling._asdict(),
            "z": self.z,
            "p": 10**self.probability.log10_p,
            "log10_p": self.probability.log10_p,
            "p_method": self.probability.method,
        }


@dataclass(frozen=True, eq=False)
class Shared:
    """What two masks share in one scope.

    Attributes:
        num_elements: Elements of the scope.
        num_first: Those that the first mask selects.
        num_second: Those that the second mask selects.
        intersection: Those that both select.
        finer: The counts in the strata of each null but `independent`, of those that are known.
    """

    num_elements: int
    num_first: int
    num_second: int
    intersection: int
    finer: Mapping[Null, Strata] = field(default_factory=dict)

    __repr__ = one_line

    def __post_init__(self) -> None:
        n, a, b, shared = self.num_elements, self.num_first, self.num_second, self.intersection
        if not (0 <= a <= n and 0 <= b <= n and max(0, a + b - n) <= shared <= min(a, b)):
            raise AnalysisError(
                f"two masks of {a} and {b} of {n} elements cannot share {shared}: expected "
                f"{max(0, a + b - n)} to {min(a, b)}"
            )

    @property
    def o1(self) -> float | None:
        """Share of the first mask that is in the second; None if it is empty."""
        return self.ratios.o1

    @property
    def o2(self) -> float | None:
        """Share of the second mask that is in the first; None if it is empty."""
        return self.ratios.o2

    @property
    def jaccard(self) -> float | None:
        """Shared elements over those that either selects; None if both are empty."""
        return self.ratios.jaccard

    @cached_property
    def ratios(self) -> Ratios:
        """The intersection as shares."""
        return self._ratios(self.intersection)

    @cached_property
    def nulls(self) -> dict[Null, AgainstNull]:
        """Each null that is known, in the order of `NULLS`."""
        urn = one_urn(self.num_elements, self.num_first, self.num_second)
        strata = {INDEPENDENT: urn, **self.finer}
        return {null: self._against(strata[null]) for null in NULLS if null in strata}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; figures at the top level are those of the independent null."""
        nulls = {null: against.to_dict() for null, against in self.nulls.items()}
        return {
            "num_elements": self.num_elements,
            "num_first": self.num_first,
            "num_second": self.num_second,
            "intersection": self.intersection,
            **self.ratios._asdict(),
            **nulls[INDEPENDENT],
            "nulls": nulls,
        }

    def _against(self, strata: Strata) -> AgainstNull:
        expected = strata.expected
        return AgainstNull(
            num_shared=self.intersection,
            expected=expected,
            deviation=sqrt(strata.variance),
            most=strata.most,
            chance=self._ratios(expected),
            ceiling=self._ratios(strata.most),
            probability=tail(strata, self.intersection),
        )

    def _ratios(self, num_shared: float) -> Ratios:
        either = self.num_first + self.num_second - num_shared
        wholes = self.num_first, self.num_second, either
        return Ratios(*(num_shared / whole if whole else None for whole in wholes))


def one_urn(num_elements: int, num_first: int, num_second: int) -> Strata:
    """A single stratum."""
    counts = (np.array([num], dtype=np.int64) for num in (num_elements, num_first, num_second))
    return Strata(*counts)


@dataclass(frozen=True, eq=False)
class Counted:
    """Several masks, counted in each of some disjoint strata.

    Attributes:
        num_elements: int64 `[strata]`.
        num_selected: int64 `[strata, masks]`.
    """

    num_elements: NDArray[np.int64]
    num_selected: NDArray[np.int64]

    __repr__ = one_line

    @cached_property
    def densities(self) -> NDArray[np.float64]:
        """Selected / all elements, `[strata, masks]`; 0 where there are none."""
        sizes = np.maximum(self.num_elements, 1).astype(np.float64)
        return self.num_selected.astype(np.float64) / sizes[:, None]

    @cached_property
    def expected_by_count(self) -> NDArray[np.float64]:
        """Expected elements in exactly 0, 1, ... of the masks, `[masks + 1]`."""
        num_strata, num_masks = self.num_selected.shape
        chances = np.zeros((num_strata, num_masks + 1), dtype=np.float64)
        chances[:, 0] = 1.0
        for mask in range(num_masks):
            density = self.densities[:, mask, None]
            with_it = chances[:, :-1] * density
            chances *= 1.0 - density
            chances[:, 1:] += with_it
        expected: NDArray[np.float64] = self.num_elements.astype(np.float64) @ chances
        return expected

    @cached_property
    def common_variance(self) -> float:
        """Variance of the number of elements in all masks.

        Of the `n` elements of a stratum, any one is in all masks with the probability `∏ a / n`,
        and any two are with `∏ a(a - 1) / (n(n - 1))`.
        """
        n = self.num_elements.astype(np.float64)
        expected = n * np.prod(self.densities, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            # How much rarer a second element is than the first, as a logarithm.
            rarer = np.log1p(-1 / self.num_selected) - np.log1p(-1 / n)[:, None]
            excess = np.expm1(np.log1p(-1 / n) + rarer.sum(axis=1))
        variances = expected + expected**2 * excess
        # An empty mask or a stratum of one element has no variance.
        return float(variances[(expected > 0) & (n > 1)].clip(min=0).sum())


@dataclass(frozen=True, eq=False)
class Consensus:
    """What several masks agree on in one scope.

    Attributes:
        num_by_count: Elements that are in exactly 0, 1, ... of the masks.
        nulls: The masks counted in the strata of each null that is known.
    """

    num_by_count: tuple[int, ...]
    nulls: Mapping[Null, Counted]

    __repr__ = one_line

    @property
    def num_common(self) -> int:
        """Elements in all masks."""
        return self.num_by_count[-1]

    @property
    def num_any(self) -> int:
        """Elements in any mask."""
        return sum(self.num_by_count[1:])

    def expected_by_count(self, null: Null) -> tuple[float, ...]:
        """What a null expects of `num_by_count`."""
        return tuple(map(float, self.nulls[null].expected_by_count))

    def common_lift(self, null: Null) -> float | None:
        """Elements in all masks over their expectation; None if none are expected."""
        expected = self.expected_by_count(null)[-1]
        return self.num_common / expected if expected else None

    def common_z(self, null: Null) -> float | None:
        """Their distance from the expectation in deviations; None for a deviation of 0."""
        deviation = sqrt(self.nulls[null].common_variance)
        excess = self.num_common - self.expected_by_count(null)[-1]
        return excess / deviation if deviation else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        num_any = self.num_any
        return {
            "num_elements": sum(self.num_by_count),
            "num_by_count": list(self.num_by_count),
            "num_common": self.num_common,
            "num_any": num_any,
            "common_share": self.num_common / num_any if num_any else None,
            "nulls": {
                null: {
                    "expected_by_count": list(self.expected_by_count(null)),
                    "lift_by_count": [
                        num / expected if expected else None
                        for num, expected in zip(
                            self.num_by_count, self.expected_by_count(null), strict=True
                        )
                    ],
                    "common_expected": self.expected_by_count(null)[-1],
                    "common_deviation": sqrt(counted.common_variance),
                    "common_lift": self.common_lift(null),
                    "common_z": self.common_z(null),
                }
                for null, counted in self.nulls.items()
            },
        }
