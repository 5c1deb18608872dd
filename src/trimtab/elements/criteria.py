"""What "changed" means: the criteria, each a pure function on two arrays of bits.

The same update is 11 % dense by one criterion and 23 % by another (arXiv 2505.11711, Table 6), so
a count in trimtab always carries the key of its criterion:

==================  ==================================================================
key                 an element is unchanged when
==================  ==================================================================
`bits`              its stored bits are the same (+0.0 and -0.0 differ, a NaN can stay)
`value`             base == tuned as numbers (+0.0 equals -0.0, a NaN never stays)
`atol=1e-05`        base == tuned or |tuned - base| <= 1e-05  (2505.11711 sec. 2.2)
`strict_atol=1e-05` base == tuned or |tuned - base| <  1e-05  (2507.17107 sec. 2.2)
`rel=0.001`         base == tuned or |tuned - base| <= 0.001 · max(|base|, |tuned|)
                    (2511.08567 Def. 2.1)
==================  ==================================================================

Differences are taken in fp64, where the difference of two bf16, fp16 or fp8 numbers of similar
size is exact; the published scripts subtract in bf16, whose rounding moves the tolerance itself.
An infinite difference is a change under every criterion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CriterionError

ATOLS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)
"""The absolute tolerances of every comparison: those of 2505.11711 Table 6, and 0 and 1e-4."""


@dataclass(frozen=True)
class Criterion:
    """A rule for when an element counts as changed.

    Attributes:
        rule: Which comparison, see the module's table.
        tolerance: Absolute (`atol`, `strict_atol`) or relative (`rel`); 0 for the others.
    """

    rule: Literal["bits", "value", "atol", "strict_atol", "rel"]
    tolerance: float = 0.0

    @cached_property
    def key(self) -> str:
        """How results name this criterion, such as `atol=1e-05`."""
        if self.rule in ("bits", "value"):
            return self.rule
        short = f"{self.tolerance:g}"
        exact = short if float(short) == self.tolerance else repr(self.tolerance)
        return f"{self.rule}={exact}"

    def __str__(self) -> str:
        return self.key


DEFAULT_CRITERIA: tuple[Criterion, ...] = (
    Criterion("bits"),
    Criterion("value"),
    *(Criterion("atol", tolerance) for tolerance in ATOLS),
    *(Criterion("strict_atol", tolerance) for tolerance in ATOLS if tolerance > 0),
    Criterion("rel", 1e-3),
)
"""Counted in every comparison."""


def parse_criterion(text: str) -> Criterion:
    """Read a criterion as a person writes it: `bits`, `value`, `atol=1e-5`, `rel=1e-3`.

    Raises:
        CriterionError: The text is none of these, or the tolerance is not a finite number >= 0.
    """
    rule, _, number = text.strip().partition("=")
    if rule in ("bits", "value") and not number:
        return Criterion(rule)  # type: ignore[arg-type]
    if rule in ("atol", "strict_atol", "rel") and number:
        try:
            tolerance = float(number)
        except ValueError:
            raise CriterionError(f"criterion {text!r}: {number!r} is not a number") from None
        if not isfinite(tolerance) or tolerance < 0:
            raise CriterionError(f"criterion {text!r}: the tolerance must be finite and >= 0")
        if rule == "strict_atol" and tolerance == 0:
            raise CriterionError(f"criterion {text!r}: |difference| < 0 is never true; use atol=0")
        return Criterion(rule, tolerance)  # type: ignore[arg-type]
    raise CriterionError(
        f"unknown criterion {text!r}: expected bits, value, atol=T, strict_atol=T or rel=T"
    )


def with_defaults(extra: Iterable[Criterion]) -> tuple[Criterion, ...]:
    """The default criteria followed by those of `extra` that are not among them."""
    return tuple(dict.fromkeys((*DEFAULT_CRITERIA, *extra)))


def changed(base: Bits, tuned: Bits, dtype: DType, criterion: Criterion) -> NDArray[np.bool_]:
    """Mark the elements that changed under one criterion.

    This is the reference implementation; `trimtab.elements.scan` is the fast one.

    Args:
        base: Elements before training as unsigned integers. Any shape.
        tuned: Elements after training. Same shape and dtype as `base`.
        dtype: Dtype of the elements.
        criterion: The rule.

    Returns:
        Bool array, same shape; True where changed.
    """
    differ: NDArray[np.bool_] = base != tuned
    if criterion.rule == "bits":
        return differ
    nan = dtype.is_nan(base) | dtype.is_nan(tuned)
    if criterion.rule == "value" and not dtype.is_float:
        return differ | nan  # integers of 64 bits would lose bits in fp64
    before, after = dtype.decode(base), dtype.decode(tuned)
    equal = before == after
    if criterion.rule == "value":
        return ~equal
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(after - before)
        if criterion.rule == "rel":
            bound = criterion.tolerance * np.maximum(np.abs(before), np.abs(after))
        else:
            bound = np.full_like(distance, criterion.tolerance)
        near = distance < bound if criterion.rule == "strict_atol" else distance <= bound
    return ~(equal | (near & np.isfinite(distance)))


def is_criterion(key: str) -> bool:
    """Whether a text is the key of a criterion."""
    try:
        return parse_criterion(key).key == key
    except CriterionError:
        return False
