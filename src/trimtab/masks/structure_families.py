"""Units of a family over all layers, and their statistics.

Also whether two masks favour the same units, and whether the rows or columns of a matrix differ
more
than by chance (stripes).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from trimtab.masks import structure_result as result
from trimtab.masks.structure_units import FAMILIES, Membership, PartCounts, Units, stacked
from trimtab.results import urn
from trimtab.results.statistics import discoveries, entropy, gini, spearman

MOST_LISTED = 8192
"""Families of up to this many units are listed whole."""

NUM_FURTHEST = 25
"""Units listed at either end of a family that has more."""

CURVE_POINTS = 160

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class VersusChance:
    """Counts of units, or of the lines of a matrix, and their distribution by chance.

    Attributes:
        counts: Selected elements of each.
        chance: Moments of each count by chance.
    """

    counts: Counts
    chance: urn.Moments

    @cached_property
    def z(self) -> Floats:
        """Standard deviations by which each is above its expectation; NaN where it cannot vary."""
        return urn.z_scores(self.counts, self.chance)

    @cached_property
    def p(self) -> Floats:
        """Two-sided probability of each; NaN where it cannot vary."""
        return urn.probabilities(self.counts, self.chance)

    @cached_property
    def q(self) -> Floats:
        """Benjamini-Hochberg q-values over all that can vary; NaN for others."""
        return discoveries(self.p)

    def significant(self, sign: int) -> NDArray[np.bool_]:
        """Which have significantly more than expected (1), or fewer (-1)."""
        is_far: NDArray[np.bool_] = np.nan_to_num(self.q, nan=1.0) <= result.FALSE_DISCOVERY_RATE
        return is_far & (sign * self.z > 0)

    @property
    def dispersion(self) -> float | None:
        """Mean of z²: 1 without clustering; None if nothing can vary."""
        z = self.z[~np.isnan(self.z)]
        return float(np.mean(z**2)) if len(z) else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of count / expected, weighted by expected², less chance's."""
        counts, chance = self.counts, self.chance
        free = chance.variance > 0
        scale = float(np.sum(chance.mean[free] ** 2))
        if not scale:
            return None
        apart = float(np.sum((counts[free] - chance.mean[free]) ** 2 - chance.variance[free]))
        return sqrt(max(0.0, apart) / scale)

    def test(self) -> result.Test:
        """The units of a family against one null."""
        return result.Test(
            num_tested=int(np.count_nonzero(~np.isnan(self.z))),
            num_up=int(np.count_nonzero(self.significant(1))),
            num_down=int(np.count_nonzero(self.significant(-1))),
            overdispersion=self.dispersion,
            spread=self.spread,
        )


@dataclass(frozen=True, eq=False)
class MaskUnits:
    """Units of one mask.

    Attributes:
        mask: Counts of the mask.
        control: Counts of its random control; their chance differs only in fused tensors.
        matched: Counts of the mask under the null that is matched by exponent; None without base.
    """

    mask: VersusChance
    control: VersusChance
    matched: VersusChance | None

    @classmethod
    def of(cls, units: Units, index: int) -> MaskUnits:
        """Those of the mask at an index."""
        at_control = len(units.selected) // 2 + index
        mask, control = (
            VersusChance(units.selected[at], units.null.of_set(at)) for at in (index, at_control)
        )
        if units.matched is None:
            return cls(mask, control, None)
        return cls(mask, control, VersusChance(mask.counts, units.matched.of_set(index)))

    @property
    def from_magnitude(self) -> float | None:
        """Expected mean of z² of a mask that is random given its counts by exponent."""
        if self.matched is None:
            return None
        null, matched = self.mask.chance, self.matched.chance
        free = null.variance > 0
        if not free.any():
            return None
        apart = (matched.mean[free] - null.mean[free]) ** 2 + matched.variance[free]
        return float(np.mean(apart / null.variance[free]))


@dataclass(frozen=True, eq=False)
class FamilyUnits:
    """The units of a family, layer after layer.

    Attributes:
        name: Name of the family.
        layers: Layer of each unit; -1 for units of the whole model.
        indices: Index of each in its layer.
        elements: Elements of each.
        masks: What each mask selects of them.
    """

    name: str
    layers: Counts
    indices: Counts
    elements: Counts
    masks: tuple[MaskUnits, ...]


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """A tensor that belongs to one expert entirely.

    Under the per-tensor null its count cannot vary, so all experts of a layer and kind form one
    stratum,
    or one for each exponent.

    Attributes:
        layer: Layer of the expert.
        kind: Kind of the tensor.
        expert: Index of the expert.
        num_elements: Elements of the tensor.
        selected: Elements that each mask selects.
        exponents: Exponents of its base weights, ascending; empty without base.
        sizes: Elements of each of these exponents.
        selected_sizes: How many of them each mask selects, `[masks, exponents]`.
    """

    layer: int | None
    kind: str
    expert: int
    num_elements: int
    selected: Counts
    exponents: Counts
    sizes: Counts
    selected_sizes: Counts


class Gathering:
    """The units of all families of some masks."""

    def __init__(self, num_masks: int, seed: int) -> None:
        self._num_masks = num_masks
        self._seed = seed
        self._units: dict[tuple[str, int], Units] = {}
        self._experts: dict[tuple[int | None, str], list[ExpertTensor]] = {}

    def add(self, family: str, layer: int | None, units: Units) -> None:
        """Add the units of a family that a part of a tensor has."""
        key = family, -1 if layer is None else layer
        self._units[key] = self._units[key] + units if key in self._units else units

    def add_expert(self, tensor: ExpertTensor) -> None:
        """Add a tensor of one expert."""
        self._experts.setdefault((tensor.layer, tensor.kind), []).append(tensor)

    def families(self) -> list[FamilyUnits]:
        """The families that have units."""
        generator = np.random.Generator(np.random.PCG64(self._seed))
        for (layer, _), tensors in self._experts.items():
            self.add("expert", layer, _pooled(tensors, self._num_masks, generator))
        self._experts.clear()
        families = []
        for name in FAMILIES:
            layers = sorted(layer for family, layer in self._units if family == name)
            if layers:
                each = [self._units[name, layer] for layer in layers]
                sizes = [len(units.elements) for units in each]
                units = Units.joined(each)
                families.append(
                    FamilyUnits(
                        name=name,
                        layers=np.repeat(np.array(layers, dtype=np.int64), sizes),
                        indices=np.concatenate([np.arange(num, dtype=np.int64) for num in sizes]),
                        elements=units.elements,
                        masks=tuple(MaskUnits.of(units, at) for at in range(self._num_masks)),
                    )
                )
        return families


def _pooled(
    tensors: Sequence[ExpertTensor], num_masks: int, generator: np.random.Generator
) -> Units:
    """The experts of a layer, from their tensors of one kind."""
    num = 1 + max(tensor.expert for tensor in tensors)
    at = [tensor.expert for tensor in tensors]
    elements = np.zeros(num, dtype=np.int64)
    elements[at] = [tensor.num_elements for tensor in tensors]
    selected = np.zeros((2 * num_masks, num), dtype=np.int64)
    selected[:num_masks, at] = np.stack([tensor.selected for tensor in tensors], axis=1)
    totals = selected[:num_masks].sum(axis=1)
    for index, total in enumerate(totals.tolist()):
        selected[num_masks + index] = spread_at_random(elements, total, generator)
    size = np.array([elements.sum()])
    null = stacked(
        [urn.hypergeometric(elements[:, None], size, total[None]) for total in totals] * 2
    )
    matched = None
    if any(len(tensor.exponents) for tensor in tensors):
        num_bins = 1 + max(int(tensor.exponents.max(initial=0)) for tensor in tensors)
        of_expert = np.zeros((num, num_bins), dtype=np.int64)
        drawn = np.zeros((num_masks, num_bins), dtype=np.int64)
        for tensor in tensors:
            of_expert[tensor.expert, tensor.exponents] += tensor.sizes
            drawn[:, tensor.exponents] += tensor.selected_sizes
        sizes = of_expert.sum(axis=0)
        matched = stacked([urn.hypergeometric(of_expert, sizes, row) for row in drawn])
    return Units(elements, selected, null, matched)


def spread_at_random(sizes: Counts, num: int, generator: np.random.Generator) -> Counts:
    """Multivariate hypergeometric counts: elements drawn from the union of some sets.

    Each count starts as a binomial number; then elements, drawn in proportion to what is left of
    each set, are added or removed until the sum is right. (NumPy's own function ends at 10**9
    elements.)
    """
    total = int(sizes.sum())
    counts = generator.binomial(sizes, num / total if total else 0.0).astype(np.int64)
    while surplus := int(counts.sum()) - num:
        room = counts if surplus > 0 else sizes - counts
        drawn = generator.multinomial(min(abs(surplus), MOST_AT_ONCE), room / room.sum())
        step = np.minimum(drawn, room)
        counts = counts - step if surplus > 0 else counts + step
    return counts


MOST_AT_ONCE = 1 << 16
"""Elements moved before the proportions are updated."""


def family_of(units: FamilyUnits, index: int) -> result.Family:
    """The statistics of a family for the mask at an index."""
    of_mask = units.masks[index]
    mask, control, matched = of_mask.mask, of_mask.control, of_mask.matched
    return result.Family(
        name=units.name,
        num_units=len(units.elements),
        num_elements=int(units.elements.sum()),
        num_selected=int(mask.counts.sum()),
        null=mask.test(),
        control=control.test(),
        matched=None if matched is None else matched.test(),
        from_magnitude=of_mask.from_magnitude,
        concentration=result.Concentration(gini(mask.counts), entropy(mask.counts)),
        control_concentration=result.Concentration(gini(control.counts), entropy(control.counts)),
        curve=_curve(mask, control),
        units=_listed(units, of_mask),
    )


def _curve(mask: VersusChance, control: VersusChance) -> tuple[result.CurvePoint, ...]:
    """Units of mask and control, ordered by selected / expected."""
    masks, controls = _by_ratio(mask), _by_ratio(control)
    num = min(len(masks), len(controls))
    return tuple(
        result.CurvePoint(
            rank=rank + 1,
            num_selected=int(mask.counts[own]),
            expected=float(mask.chance.mean[own]),
            control_num_selected=int(control.counts[other]),
            control_expected=float(control.chance.mean[other]),
        )
        for rank in (_ranks(num).tolist() if num else ())
        for own, other in [(masks[rank], controls[rank])]
    )


def _by_ratio(units: VersusChance) -> Counts:
    """Units with a positive expectation, highest selected / expected first."""
    expected = units.chance.mean
    some = np.flatnonzero(expected > 0)
    ordered: Counts = some[np.argsort(-units.counts[some] / expected[some], kind="stable")]
    return ordered


def _ranks(num: int) -> NDArray[np.int64]:
    """Ranks from 0, evenly spaced and denser at both ends, where the curve is steep."""
    even = np.linspace(0, num - 1, CURVE_POINTS // 2)
    ends = np.geomspace(1, num, CURVE_POINTS // 4) - 1
    ranks = np.concatenate([even, ends, num - 1 - ends])
    return np.unique(ranks.round().astype(np.int64))


def _listed(units: FamilyUnits, of_mask: MaskUnits) -> tuple[result.Unit, ...]:
    mask, control, matched = of_mask.mask, of_mask.control, of_mask.matched
    order = np.arange(len(units.elements))
    if len(order) > MOST_LISTED:
        by_z = np.argsort(-mask.z, kind="stable")  # NaN comes last
        by_z = by_z[: np.count_nonzero(~np.isnan(mask.z))]
        order = np.unique(np.concatenate([by_z[:NUM_FURTHEST], by_z[-NUM_FURTHEST:]]))
        order = order[np.argsort(-mask.z[order], kind="stable")]

    def number(values: Floats | None, at: int) -> float | None:
        return None if values is None or np.isnan(values[at]) else float(values[at])

    return tuple(
        result.Unit(
            layer=None if units.layers[at] < 0 else int(units.layers[at]),
            index=int(units.indices[at]),
            num_elements=int(units.elements[at]),
            num_selected=int(mask.counts[at]),
            expected=float(mask.chance.mean[at]),
            z=number(mask.z, at),
            p=number(mask.p, at),
            q=number(mask.q, at),
            control_num_selected=int(control.counts[at]),
            control_z=number(control.z, at),
            matched_expected=number(matched.chance.mean if matched else None, at),
            matched_z=number(matched.z if matched else None, at),
            matched_p=number(matched.p if matched else None, at),
            matched_q=number(matched.q if matched else None, at),
        )
        for at in order.tolist()
    )


def shared_units(families: Iterable[FamilyUnits]) -> tuple[result.SharedUnits, ...]:
    """Compare each pair of masks, family by family."""
    return tuple(
        _shared(units.name, first, second, units.masks[first], units.masks[second])
        for units in families
        for first, second in combinations(range(len(units.masks)), 2)
    )


def _shared(
    name: str, first: int, second: int, one: MaskUnits, other: MaskUnits
) -> result.SharedUnits:
    masks = one.mask, other.mask
    common = list(_common("tensor", *masks))
    matched_spearman = None
    if one.matched is not None and other.matched is not None:
        common += _common("magnitude", one.matched, other.matched)
        matched_spearman = _correlation(one.matched, other.matched)
    return result.SharedUnits(
        first=first,
        second=second,
        family=name,
        num_units=int(_both_vary(*masks).sum()),
        spearman=_correlation(*masks),
        control_spearman=_correlation(one.control, other.control),
        matched_spearman=matched_spearman,
        common=tuple(common),
    )


def _both_vary(one: VersusChance, other: VersusChance) -> NDArray[np.bool_]:
    both: NDArray[np.bool_] = ~np.isnan(one.z) & ~np.isnan(other.z)
    return both


def _correlation(one: VersusChance, other: VersusChance) -> float | None:
    both = _both_vary(one, other)
    return spearman(one.z[both], other.z[both]) if both.any() else None


def _common(null: str, one: VersusChance, other: VersusChance) -> Iterator[result.Common]:
    both = _both_vary(one, other)
    for direction, sign in (("up", 1), ("down", -1)):
        sets = [both & units.significant(sign) for units in (one, other)]
        sizes = [int(members.sum()) for members in sets]
        num_common = int((sets[0] & sets[1]).sum())
        strata = urn.Strata(*(np.array([count]) for count in (int(both.sum()), *sizes)))
        yield result.Common(
            null=null,
            direction=direction,
            num_first=sizes[0],
            num_second=sizes[1],
            num_common=num_common,
            chance=strata.expected,
            log10_p=urn.tail(strata, num_common).log10_p,
        )


def stripes_of(
    name: str, shape: tuple[int, ...], counts: PartCounts, num_masks: int
) -> list[result.TensorStructure]:
    """How far the rows and the columns of a matrix, or of a part of it, differ, for each mask.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        counts: Of the part.
        num_masks: How many masks were counted.
    """
    part = counts.part
    rows = counts.units(Membership("", part.layer, "rows", 1, part.num_rows))
    columns = counts.units(Membership("", part.layer, "columns", 1, part.num_columns))
    return [
        result.TensorStructure(
            name=part.name_in(name),
            layer=part.layer,
            kind=part.kind,
            shape=part.shape_in(shape),
            num_selected=int(counts.selected[index]),
            rows=_axis(MaskUnits.of(rows, index)),
            columns=_axis(MaskUnits.of(columns, index)),
        )
        for index in range(num_masks)
    ]


def _axis(lines: MaskUnits) -> result.AxisStructure:
    return result.AxisStructure(
        num_lines=len(lines.mask.counts),
        dispersion=lines.mask.dispersion,
        spread=lines.mask.spread,
        control=lines.control.dispersion,
        matched=None if lines.matched is None else lines.matched.dispersion,
        matched_spread=None if lines.matched is None else lines.matched.spread,
        from_magnitude=lines.from_magnitude,
    )
