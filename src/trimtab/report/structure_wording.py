"""How the structure of masks is put into words, the same in the terminal and in the HTML report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from pathlib import PurePath

from trimtab.elements.counts import percent
from trimtab.masks.structure_result import (
    FALSE_DISCOVERY_RATE,
    Family,
    LeftOut,
    MaskStructure,
    Structure,
    TensorStructure,
    Unit,
)
from trimtab.report.wording import kinds_in_order, magnitude, plural, printable

__all__ = [
    "FAMILY_NAMES",
    "NULLS",
    "Stripes",
    "correlation_text",
    "dispersion_text",
    "family_name",
    "left_out_text",
    "mask_labels",
    "mask_sentence",
    "opened",
    "p_text",
    "ratio_text",
    "shared_p_text",
    "spread_text",
    "stripes_by_kind",
    "tested_sentence",
    "unit_name",
    "unit_word",
    "z_text",
]

FAMILY_NAMES: Mapping[str, str] = {
    "head": "attention heads",
    "kv_group": "KV groups",
    "neuron": "MLP neurons",
    "channel": "residual channels",
    "token": "vocabulary rows",
    "expert": "experts",
}
"""Family -> what its units are called."""

_SINGULAR = {
    "head": "head",
    "kv_group": "KV group",
    "neuron": "neuron",
    "channel": "channel",
    "token": "row",
    "expert": "expert",
}

NULLS: Mapping[str, str] = {
    "tensor": "as many elements in each tensor",
    "magnitude": "as many elements in each tensor × exponent of the base weight",
}
"""Null -> what it keeps of the mask."""


def mask_labels(structure: Structure) -> list[str]:
    """What each mask is called: its file's name, with its place where two have the same."""
    names = [
        f"mask {place}" if of.mask.id is None else printable(PurePath(of.mask.id).stem)
        for place, of in enumerate(structure.masks, start=1)
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]


def mask_sentence(of: MaskStructure) -> str:
    """Which mask, how much it selects, and what stands beside it."""
    mask = of.mask
    name = "not from a file" if mask.id is None else printable(mask.id)
    share = percent(mask.num_selected, mask.num_elements)
    return (
        f"{name}: {mask.num_selected:,} of {mask.num_elements:,} weights selected ({share}); "
        f"random control of seed {of.control_seed}"
    )


def tested_sentence() -> str:
    """What significant means, and what a control looks like."""
    rate = f"{100 * FALSE_DISCOVERY_RATE:g} %"
    return (
        "“More” and “fewer” are units with significantly more or fewer selected elements than "
        f"chance, at a false discovery rate of {rate} (Benjamini–Hochberg over the units of a "
        "family). “Mean z²” is 1 where nothing clusters, as in the random control, and grows with "
        "the size of units; “spread” does not: it is how far units differ from their expectation "
        "beyond chance, one standard deviation."
    )


def family_name(family: Family) -> str:
    """What the units of a family are called."""
    return FAMILY_NAMES.get(family.name, printable(family.name))


def opened(text: str) -> str:
    """With a capital at its beginning, and the others as they are: `MLP neurons`."""
    return text[:1].upper() + text[1:]


def unit_word(family: str) -> str:
    """What one unit is called: `head`."""
    return _SINGULAR.get(family, printable(family))


def unit_name(family: str, unit: Unit) -> str:
    """`layer 3, head 5`."""
    layer = "" if unit.layer is None else f"layer {unit.layer}, "
    return f"{layer}{unit_word(family)} {unit.index}"


def ratio_text(num_selected: int, expected: float | None) -> str:
    """Selected / expected: `1.24 ×`."""
    if not expected:
        return "–"
    return f"{num_selected / expected:.2f} ×"


def z_text(z: float | None) -> str:
    """With its sign, to three digits."""
    if z is None:
        return "–"
    return f"{z:+.1f}" if abs(z) < 1000 else f"{z:+,.0f}"


def p_text(p: float | None) -> str:
    """A probability; one below fp64 as a bound."""
    if p is None:
        return "–"
    return "< 1e-300" if p < 1e-300 else magnitude(p)


def shared_p_text(log10_p: float) -> str:
    """A probability of which the logarithm is kept: `10^-2006`."""
    return f"10^{log10_p:.0f}" if log10_p < -4 else magnitude(10**log10_p)


def dispersion_text(value: float | None) -> str:
    """A mean of z²: to two decimals, a large one to whole numbers."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def correlation_text(value: float | None) -> str:
    """With its sign, to two decimals."""
    return "–" if value is None else f"{value:+.2f}"


def spread_text(value: float | None) -> str:
    """A spread as a percentage of the expectation."""
    return "–" if value is None else f"{100 * value:.1f} %"


class Stripes:
    """The matrices of a kind: means over them, each counting alike."""

    def __init__(self, tensors: Sequence[TensorStructure]) -> None:
        self.num_tensors = len(tensors)
        self._tensors = tensors

    def mean(self, axis: str, figure: str) -> float | None:
        """Mean of a figure of the rows or the columns; None where no matrix has it."""
        values = [getattr(getattr(tensor, axis), figure) for tensor in self._tensors]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def spread(self, axis: str, figure: str = "spread") -> float | None:
        """Root of the mean of squared spreads."""
        values = [getattr(getattr(tensor, axis), figure) for tensor in self._tensors]
        known = [value**2 for value in values if value is not None]
        return sqrt(sum(known) / len(known)) if known else None


def stripes_by_kind(tensors: Iterable[TensorStructure]) -> dict[str, Stripes]:
    """The matrices of each kind, in reading order."""
    groups: dict[str, list[TensorStructure]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.kind, []).append(tensor)
    return {kind: Stripes(groups[kind]) for kind in kinds_in_order(groups)}


def left_out_text(gap: LeftOut) -> str:
    """What belongs to no unit of a family, and why."""
    what = "any unit" if gap.family == "all" else FAMILY_NAMES.get(gap.family, gap.family)
    example = printable(gap.example)
    more = "" if gap.num_tensors == 1 else f" and {gap.num_tensors - 1:,} more"
    return (
        f"not counted in {what}: {example}{more} ({plural(gap.num_elements, 'element')}): "
        f"{printable(gap.reason)}"
    )
