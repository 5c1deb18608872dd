"""How far two tunings of one base agree, inside a mask and outside it: counts that add up.

FULL is the base after training every element, SUB after training those of a mask. Where a mask
holds all that FULL changed, the two agree outside it by construction, since neither moves there;
so a figure over all elements flatters, and the two regions are never mixed before they are shown.
BASE is set against FULL in the same way, to say what doing nothing would score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.criteria import Criterion, parse_criterion
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.scan import Scanner, Tally

__all__ = ["REGIONS", "Agreement", "AgreementTally", "Region", "SplitAgreement"]

Region = Literal["inside", "outside", "all"]

REGIONS: tuple[Region, ...] = ("inside", "outside", "all")

_SUMS = (
    "difference_sum_squares",
    "full_update_sum_squares",
    "sub_update_sum_squares",
    "update_dot",
)
_LARGEST = ("difference_max_abs", "full_update_max_abs")


@dataclass(frozen=True)
class Agreement:
    """How SUB agrees with FULL on some elements. Add two with `+`.

    Sums are of finite numbers, accumulated in fp64; infinite where they overflow.

    Attributes:
        num_elements: Elements compared.
        num_sub_equal: Criterion key -> elements in which SUB is unchanged from FULL.
        num_base_equal: Criterion key -> elements in which BASE is unchanged from FULL.
        num_sub_moved: Elements whose bits differ between BASE and SUB.
        num_nonfinite: Elements in which one of the three differences is NaN or infinite; they are
            left out of what follows.
        difference_sum_squares: Sum of (SUB - FULL)².
        full_update_sum_squares: Sum of (FULL - BASE)².
        sub_update_sum_squares: Sum of (SUB - BASE)².
        update_dot: Sum of (SUB - BASE) · (FULL - BASE).
        difference_max_abs: Largest |SUB - FULL|.
        full_update_max_abs: Largest |FULL - BASE|.
    """

    num_elements: int = 0
    num_sub_equal: Mapping[str, int] = field(default_factory=dict)
    num_base_equal: Mapping[str, int] = field(default_factory=dict)
    num_sub_moved: int = 0
    num_nonfinite: int = 0
    difference_sum_squares: float = 0.0
    full_update_sum_squares: float = 0.0
    sub_update_sum_squares: float = 0.0
    update_dot: float = 0.0
    difference_max_abs: float = 0.0
    full_update_max_abs: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        """Both sets of elements together."""
        return Agreement(
            num_elements=self.num_elements + other.num_elements,
            num_sub_equal=_added(self.num_sub_equal, other.num_sub_equal),
            num_base_equal=_added(self.num_base_equal, other.num_base_equal),
            num_sub_moved=self.num_sub_moved + other.num_sub_moved,
            num_nonfinite=self.num_nonfinite + other.num_nonfinite,
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
            **{name: max(getattr(self, name), getattr(other, name)) for name in _LARGEST},
        )

    @property
    def num_full_moved(self) -> int:
        """Elements whose bits differ between BASE and FULL."""
        return self.num_elements - self.num_base_equal.get("bits", self.num_elements)

    @property
    def relative_l2(self) -> float | None:
        """‖SUB - FULL‖ / ‖FULL - BASE‖, which is 1 for doing nothing; None where FULL stayed."""
        return _ratio(sqrt(self.difference_sum_squares), sqrt(self.full_update_sum_squares))

    @property
    def cosine(self) -> float | None:
        """Cosine of the angle between the two updates; None where one of them is zero."""
        # The root of a square is exact, so two equal updates have a cosine of exactly 1.
        norms = sqrt(self.full_update_sum_squares * self.sub_update_sum_squares)
        cosine = _ratio(self.update_dot, norms)
        return None if cosine is None else min(1.0, max(-1.0, cosine))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the counts, the sums, and the ratios derived from them."""
        return {
            "num_elements": self.num_elements,
            "num_sub_equal": dict(self.num_sub_equal),
            "num_base_equal": dict(self.num_base_equal),
            "num_sub_moved": self.num_sub_moved,
            "num_full_moved": self.num_full_moved,
            "num_nonfinite": self.num_nonfinite,
            "relative_l2": self.relative_l2,
            "cosine": self.cosine,
            **{name: _for_json(getattr(self, name)) for name in (*_LARGEST, *_SUMS)},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Agreement:
        """The inverse of `to_dict`; what is derived is computed again, not read.

        Raises:
            KeyError: A key is missing.
            TypeError: A value is of another type.
            ValueError: A value cannot be; a criterion is none.
        """
        num_elements = _count(data["num_elements"], inf)
        dot = data["update_dot"]
        return cls(
            num_elements=num_elements,
            **{
                name: {
                    parse_criterion(key).key: _count(count, num_elements)
                    for key, count in data[name].items()
                }
                for name in ("num_sub_equal", "num_base_equal")
            },
            **{name: _count(data[name], num_elements) for name in ("num_sub_moved", "num_nonfinite")},
            **{name: _size(data[name]) for name in (*_LARGEST, *_SUMS) if name != "update_dot"},
            update_dot=_size(abs(dot)) * (1 if dot >= 0 else -1) if dot is not None else inf,
        )
