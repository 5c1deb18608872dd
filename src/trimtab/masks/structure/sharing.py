"""Whether two masks favour the same units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from trimtab.masks.overlap.hypergeometric import Strata, tail
from trimtab.masks.structure.chance import (
    Moments,
    discoveries,
    probabilities,
    spearman,
    z_scores,
)
from trimtab.masks.structure.families import AllUnits
from trimtab.masks.structure.result import FALSE_DISCOVERY_RATE, Common, SharedUnits

__all__ = ["shared_units"]


def shared_units(families: Mapping[str, Sequence[AllUnits]]) -> tuple[SharedUnits, ...]:
    """Set each mask beside each other one, family by family."""
    return tuple(
        _shared(name, first, second, units)
        for name, units in families.items()
        for first, second in combinations(range(len(units)), 2)
    )


def _shared(name: str, first: int, second: int, units: Sequence[AllUnits]) -> SharedUnits:
    pair = (units[first], units[second])
    z = [z_scores(of.selected, of.null) for of in pair]
    control_z = [z_scores(of.control, of.control_null) for of in pair]
    both = ~np.isnan(z[0]) & ~np.isnan(z[1])
    common = list(_common("tensor", [(of.selected, of.null) for of in pair]))
    matched_spearman = None
    matched = [(of.selected, of.matched) for of in pair if of.matched is not None]
    if len(matched) == 2:
        common += _common("magnitude", matched)
        matched_spearman = _correlation([z_scores(*of) for of in matched])
    return SharedUnits(
        first=first,
        second=second,
        family=name,
        num_units=int(both.sum()),
        spearman=_correlation(z),
        control_spearman=_correlation(control_z),
        matched_spearman=matched_spearman,
        common=tuple(common),
    )


def _correlation(z: Sequence[NDArray[np.float64]]) -> float | None:
    both = ~np.isnan(z[0]) & ~np.isnan(z[1])
    return spearman(z[0][both], z[1][both]) if both.any() else None


def _common(null: str, counted: Sequence[tuple[NDArray[np.int64], Moments]]) -> Iterator[Common]:
    z = [z_scores(*of) for of in counted]
    both = ~np.isnan(z[0]) & ~np.isnan(z[1])
    q = [np.nan_to_num(discoveries(probabilities(*of)), nan=1.0) for of in counted]
    num = int(both.sum())
    for direction, sign in (("up", 1), ("down", -1)):
        sets = [
            both & (of_q <= FALSE_DISCOVERY_RATE) & (sign * of_z > 0)
            for of_q, of_z in zip(q, z, strict=True)
        ]
        sizes = [int(of.sum()) for of in sets]
        shared = int((sets[0] & sets[1]).sum())
        strata = Strata(*(np.array([count]) for count in (num, *sizes)))
        yield Common(
            null=null,
            direction=direction,
            num_first=sizes[0],
            num_second=sizes[1],
            num_common=shared,
            chance=strata.expected,
            log10_p=tail(strata, shared).log10_p,
        )
