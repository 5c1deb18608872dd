"""How many elements are selected by exactly so many of several masks, beside what chance gives.

Under every null the masks are drawn apart, and an element of a stratum is in a mask with the
probability of the mask's density there. So the number of masks that have an element is a sum of
independent truth values (Poisson-binomial), and expected counts are sums over the strata.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.masks.overlap.shared import Null
from trimtab.words import one_line

__all__ = ["Consensus", "Counted"]


@dataclass(frozen=True, eq=False)
class Counted:
    """Several masks, counted in each of some strata that do not overlap.

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
        # Where a mask has nothing, or the stratum a single element, chance has no say.
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
