"""All units of a family, gathered from the tensors that have a part in them; their statistics.

Also whether two masks favour the same units, and whether the rows or the columns of one matrix
differ more than chance: stripes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from trimtab.masks.structure_result import (
    FALSE_DISCOVERY_RATE,
    AxisStructure,
    Common,
    Concentration,
    CurvePoint,
    Family,
    SharedUnits,
    TensorStructure,
    Test,
    Unit,
)
from trimtab.masks.structure_units import FAMILIES, Axis, PartCounts, Units
from trimtab.results.statistics import discoveries, entropy, gini, spearman
from trimtab.results.urn import (
    Moments,
    Strata,
    hypergeometric,
    no_moments,
    probabilities,
    tail,
    z_scores,
)

__all__ = [
    "AllUnits",
    "ExpertTensor",
    "Gathering",
    "family_of",
    "from_magnitude",
    "shared_units",
    "spread",
    "stripes_of",
]

MOST_LISTED = 8192
"""Units of a family up to which each of them is in the result."""

NUM_FURTHEST = 25
"""Units listed at either end of a family that has more."""

CURVE_POINTS = 160

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AllUnits:
    """The units of a family of one mask, layer after layer.

    Attributes:
        name: Of the family.
        layers: Of each unit; -1 for units of the whole model.
        indices: Number of each in its layer.
        elements: Of each.
        selected: By the mask.
        control: By its random control.
        null: What chance selects for the mask.
        control_null: What it selects for the control: another one only in fused tensors.
        matched: What it selects for the mask where exponents of the base count too, or None.
    """

    name: str
    layers: Counts
    indices: Counts
    elements: Counts
    selected: Counts
    control: Counts
    null: Moments
    control_null: Moments
    matched: Moments | None


@dataclass(frozen=True, eq=False)
class ExpertTensor:
    """A tensor that is of one expert as a whole.

    Under the null of tensors it could not but have what it has, so all experts of a layer and kind
    are one stratum, or one for each exponent.

    Attributes:
        layer: Of the expert.
        kind: Of the tensor.
        expert: Its number.
        num_elements: Of the tensor.
        selected: By each mask.
        exponents: Those of its base weights, ascending; empty without base.
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


class _Sum:
    """The units of a family in a layer, to which tensors are added."""

    def __init__(self, num_masks: int) -> None:
        self.elements = np.zeros(0, dtype=np.int64)
        self.selected = np.zeros((2 * num_masks, 0), dtype=np.int64)
        self.nulls = [no_moments(0)] * 2 * num_masks
        self.matched: list[Moments] | None = None

    def add(self, units: Units) -> None:
        """Add what a tensor has of them.

        One tensor can have more units than another: a head pads its vocabulary.
        """
        num = max(len(self.elements), len(units.elements))
        self.elements = _padded(self.elements, num) + _padded(units.elements, num)
        self.selected = _padded(self.selected, num) + _padded(units.selected, num)
        self.nulls = _plus(self.nulls, units.nulls, num)
        if units.matched is not None:
            before = self.matched or [no_moments(0)] * len(units.matched)
            self.matched = _plus(before, units.matched, num)


class Gathering:
    """The units of all families of some masks."""

    def __init__(self, num_masks: int, seed: int) -> None:
        self._num_masks = num_masks
        self._seed = seed
        self._sums: dict[tuple[str, int], _Sum] = {}
        self._experts: dict[tuple[int | None, str], list[ExpertTensor]] = {}

    def add(self, units: Units) -> None:
        """Add what a part of a tensor has of some units."""
        key = units.family, -1 if units.layer is None else units.layer
        self._sums.setdefault(key, _Sum(self._num_masks)).add(units)

    def add_expert(self, tensor: ExpertTensor) -> None:
        """Add a tensor that is of one expert."""
        self._experts.setdefault((tensor.layer, tensor.kind), []).append(tensor)

    def families(self) -> dict[str, list[AllUnits]]:
        """Family -> its units, for each mask. Those without units are left out."""
        generator = np.random.Generator(np.random.PCG64(self._seed))
        for tensors in self._experts.values():
            self.add(_pooled(tensors, self._num_masks, generator))
        self._experts.clear()
        found = {}
        for name in FAMILIES:
            layers = sorted(layer for family, layer in self._sums if family == name)
            if layers:
                sums = [self._sums[name, layer] for layer in layers]
                found[name] = [
                    _all_units(name, layers, sums, place, self._num_masks)
                    for place in range(self._num_masks)
                ]
        return found


def _all_units(
    name: str, layers: Sequence[int], sums: Sequence[_Sum], place: int, num_masks: int
) -> AllUnits:
    sizes = [len(of.elements) for of in sums]
    has_base = all(of.matched is not None for of in sums)
    return AllUnits(
        name=name,
        layers=np.repeat(np.array(layers, dtype=np.int64), sizes),
        indices=np.concatenate([np.arange(size, dtype=np.int64) for size in sizes]),
        elements=np.concatenate([of.elements for of in sums]),
        selected=np.concatenate([of.selected[place] for of in sums]),
        control=np.concatenate([of.selected[num_masks + place] for of in sums]),
        null=_joined(of.nulls[place] for of in sums),
        control_null=_joined(of.nulls[num_masks + place] for of in sums),
        matched=_joined(of.matched[place] for of in sums if of.matched) if has_base else None,
    )


def _joined(moments: Iterable[Moments]) -> Moments:
    return Moments(*(np.concatenate(parts) for parts in zip(*moments, strict=True)))


def _padded(counts: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    width = [(0, 0)] * (counts.ndim - 1) + [(0, num - counts.shape[-1])]
    return np.pad(counts, width)


def _plus(one: Sequence[Moments], another: Sequence[Moments], num: int) -> list[Moments]:
    def padded(moments: Moments) -> Moments:
        return Moments(*(np.pad(values, (0, num - len(values))) for values in moments))

    return [padded(a).plus(padded(b)) for a, b in zip(one, another, strict=True)]


def _pooled(
    tensors: Sequence[ExpertTensor], num_masks: int, generator: np.random.Generator
) -> Units:
    """The experts of a layer, from the tensors of one kind that each of them has."""
    num = 1 + max(tensor.expert for tensor in tensors)
    at = [tensor.expert for tensor in tensors]
    elements = np.zeros(num, dtype=np.int64)
    elements[at] = [tensor.num_elements for tensor in tensors]
    selected = np.zeros((2 * num_masks, num), dtype=np.int64)
    selected[:num_masks, at] = np.stack([tensor.selected for tensor in tensors], axis=1)
    totals = selected[:num_masks].sum(axis=1)
    for place, total in enumerate(totals.tolist()):
        selected[num_masks + place] = spread_at_random(elements, total, generator)
    size = np.array([elements.sum()])
    nulls = [hypergeometric(elements[:, None], size, total[None]) for total in totals] * 2
    matched = None
    if any(len(tensor.exponents) for tensor in tensors):
        num_bins = 1 + max(int(tensor.exponents.max(initial=0)) for tensor in tensors)
        of_expert = np.zeros((num, num_bins), dtype=np.int64)
        drawn = np.zeros((num_masks, num_bins), dtype=np.int64)
        for tensor in tensors:
            of_expert[tensor.expert, tensor.exponents] += tensor.sizes
            drawn[:, tensor.exponents] += tensor.selected_sizes
        matched = [hypergeometric(of_expert, of_expert.sum(axis=0), row) for row in drawn]
    return Units("expert", tensors[0].layer, elements, selected, nulls, matched)


def spread_at_random(sizes: Counts, num: int, generator: np.random.Generator) -> Counts:
    """How many each of some sets gets when so many of all their elements are drawn.

    Each gets a binomial number; then single elements, drawn in proportion to what is left of each
    set, are added or taken away until the sum is right. (NumPy's own multivariate hypergeometric
    numbers end at 10**9 elements.)
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
"""Elements moved between two looks at what is left."""


def family_of(units: AllUnits) -> Family:
    """The statistics of a family of one mask."""
    z, p = z_scores(units.selected, units.null), probabilities(units.selected, units.null)
    control_z = z_scores(units.control, units.control_null)
    q = discoveries(p)
    columns: dict[str, Floats] = {"z": z, "p": p, "q": q, "control_z": control_z}
    matched = None
    if units.matched is not None:
        matched_z = z_scores(units.selected, units.matched)
        matched_p = probabilities(units.selected, units.matched)
        matched_q = discoveries(matched_p)
        columns |= {"matched_expected": units.matched.mean, "matched_z": matched_z}
        columns |= {"matched_p": matched_p, "matched_q": matched_q}
        matched = _test(units.selected, units.matched, matched_z, matched_q)
    control_q = discoveries(probabilities(units.control, units.control_null))
    return Family(
        name=units.name,
        num_units=len(z),
        num_elements=int(units.elements.sum()),
        num_selected=int(units.selected.sum()),
        null=_test(units.selected, units.null, z, q),
        control=_test(units.control, units.control_null, control_z, control_q),
        matched=matched,
        from_magnitude=from_magnitude(units.null, units.matched),
        concentration=Concentration(gini(units.selected), entropy(units.selected)),
        control_concentration=Concentration(gini(units.control), entropy(units.control)),
        curve=_curve(units),
        units=_listed(units, columns),
    )


def _test(counts: Counts, chance: Moments, z: Floats, q: Floats) -> Test:
    tested = ~np.isnan(z)
    significant = tested & (np.nan_to_num(q, nan=1.0) <= FALSE_DISCOVERY_RATE)
    return Test(
        num_tested=int(tested.sum()),
        num_up=int(np.count_nonzero(significant & (z > 0))),
        num_down=int(np.count_nonzero(significant & (z < 0))),
        overdispersion=float(np.mean(z[tested] ** 2)) if tested.any() else None,
        spread=spread(counts, chance),
    )


def spread(counts: Counts, chance: Moments) -> float | None:
    """Standard deviation of count / expected over units, weighted by expected², less chance's."""
    free = chance.variance > 0
    scale = float(np.sum(chance.mean[free] ** 2))
    if not scale:
        return None
    apart = float(np.sum((counts[free] - chance.mean[free]) ** 2 - chance.variance[free]))
    return sqrt(max(0.0, apart) / scale)


def from_magnitude(null: Moments, matched: Moments | None) -> float | None:
    """Mean of z² that a mask would have which is random but for its counts by exponent."""
    if matched is None:
        return None
    free = null.variance > 0
    if not free.any():
        return None
    apart = (matched.mean[free] - null.mean[free]) ** 2 + matched.variance[free]
    return float(np.mean(apart / null.variance[free]))


def _curve(units: AllUnits) -> tuple[CurvePoint, ...]:
    """Units of both in the order of selected / expected."""
    masks, controls = (
        _by_ratio(counts, chance.mean)
        for counts, chance in (
            (units.selected, units.null),
            (units.control, units.control_null),
        )
    )
    num = min(len(masks), len(controls))
    return tuple(
        CurvePoint(
            rank=rank + 1,
            num_selected=int(units.selected[own]),
            expected=float(units.null.mean[own]),
            control_num_selected=int(units.control[other]),
            control_expected=float(units.control_null.mean[other]),
        )
        for rank in (_ranks(num).tolist() if num else ())
        for own, other in [(masks[rank], controls[rank])]
    )


def _by_ratio(counts: Counts, expected: Floats) -> Counts:
    """Units of which any element is expected, highest selected / expected first."""
    some = np.flatnonzero(expected > 0)
    ordered: Counts = some[np.argsort(-counts[some] / expected[some], kind="stable")]
    return ordered


def _ranks(num: int) -> NDArray[np.int64]:
    """Places from 0, evenly taken and more at either end, where the curve is steep."""
    even = np.linspace(0, num - 1, CURVE_POINTS // 2)
    ends = np.geomspace(1, num, CURVE_POINTS // 4) - 1
    places = np.concatenate([even, ends, num - 1 - ends])
    return np.unique(places.round().astype(np.int64))


def _listed(units: AllUnits, columns: Mapping[str, Floats]) -> tuple[Unit, ...]:
    order = np.arange(len(units.elements))
    if len(order) > MOST_LISTED:
        z = columns["z"]
        by_z = np.argsort(-z, kind="stable")  # NaN comes last
        by_z = by_z[: np.count_nonzero(~np.isnan(z))]
        order = np.unique(np.concatenate([by_z[:NUM_FURTHEST], by_z[-NUM_FURTHEST:]]))
        order = order[np.argsort(-z[order], kind="stable")]

    def number(name: str, at: int) -> float | None:
        values = columns.get(name)
        return None if values is None or np.isnan(values[at]) else float(values[at])

    return tuple(
        Unit(
            layer=None if units.layers[at] < 0 else int(units.layers[at]),
            index=int(units.indices[at]),
            num_elements=int(units.elements[at]),
            num_selected=int(units.selected[at]),
            expected=float(units.null.mean[at]),
            z=number("z", at),
            p=number("p", at),
            q=number("q", at),
            control_num_selected=int(units.control[at]),
            control_z=number("control_z", at),
            matched_expected=number("matched_expected", at),
            matched_z=number("matched_z", at),
            matched_p=number("matched_p", at),
            matched_q=number("matched_q", at),
        )
        for at in order.tolist()
    )


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


def stripes_of(
    name: str, shape: tuple[int, ...], counts: PartCounts, place: int
) -> TensorStructure:
    """How far the rows and the columns of a matrix, or of a part of it, differ.

    Args:
        name: Of the tensor.
        shape: Of the tensor.
        counts: Of the part.
        place: Of the mask.
    """
    part = counts.part
    axes: tuple[Axis, Axis] = ("rows", "columns")
    rows, columns = (_axis(counts, axis, place) for axis in axes)
    return TensorStructure(
        name=part.name_in(name),
        layer=part.layer,
        kind=part.kind,
        shape=part.shape_in(shape),
        num_selected=int(counts.selected[place]),
        rows=rows,
        columns=columns,
    )


def _axis(counts: PartCounts, axis: Axis, place: int) -> AxisStructure:
    lines = counts.lines(axis)
    at_control = len(lines) // 2 + place
    length = np.full(lines.shape[1], counts.line_length(axis), dtype=np.int64)
    null = counts.null(length, place)
    matched = counts.matched(axis, place)
    return AxisStructure(
        num_lines=lines.shape[1],
        dispersion=_dispersion(lines[place], null),
        spread=spread(lines[place], null),
        control=_dispersion(lines[at_control], counts.null(length, at_control)),
        matched=None if matched is None else _dispersion(lines[place], matched),
        matched_spread=None if matched is None else spread(lines[place], matched),
        from_magnitude=from_magnitude(null, matched),
    )


def _dispersion(counts: NDArray[np.int64], chance: Moments) -> float | None:
    z = z_scores(counts, chance)
    z = z[~np.isnan(z)]
    return float(np.mean(z**2)) if len(z) else None
