"""The report of where masks are dense: units compared with chance, matrices, and shared units.

There are two nulls: the same number of selected elements in each tensor, and, if the base was
given, in each tensor × exponent of the base weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

from trimtab.elements.counts import percent
from trimtab.masks.structure_result import (
    FALSE_DISCOVERY_RATE,
    Common,
    Family,
    LeftOut,
    SharedUnits,
    Structure,
    Test,
)
from trimtab.report import document as doc
from trimtab.report import structure_matrices as matrices
from trimtab.report import structure_units as units
from trimtab.report.records import mask_text, masks_provenance, settings_table
from trimtab.report.wording import Shown, count, magnitude, printable, shown
from trimtab.words import plural

_TESTED = (
    "“More” and “fewer” are units with significantly more or fewer selected elements than chance, "
    f"at a false discovery rate of {100 * FALSE_DISCOVERY_RATE:g} % (Benjamini–Hochberg over the "
    "units of a family). “Mean z²” is 1 where nothing clusters, as in the random control, and "
    "grows with the size of units; “spread” does not: it is how far units differ from their "
    "expectation beyond chance, one standard deviation."
)
_NO_GAP = "Every tensor's rows and columns belong to units."
_MOST_HEROES = 3


def shared_p_text(log10_p: float) -> Shown:
    """A probability, from its logarithm: `10^-2006`."""
    return Shown(f"10^{log10_p:.0f}" if log10_p < -4 else magnitude(10**log10_p), 10**log10_p)


def correlation_text(value: float | None) -> Shown:
    """With its sign, to two decimals."""
    return shown(value, "+.2f")


def _entropy(value: float | None) -> Shown:
    return shown(value, lambda v: "> 0.9999" if 0.99995 <= v < 1 else f"{v:.4f}")


def mask_labels(structure: Structure) -> list[str]:
    """Name of each mask: its file name, with its number if two have the same."""
    names = [
        f"mask {index}" if one.mask.id is None else printable(PurePath(one.mask.id).stem)
        for index, one in enumerate(structure.masks, start=1)
    ]
    if len(set(names)) == len(names):
        return names
    return [f"{name} ({index})" for index, name in enumerate(names, start=1)]


def structure_document(structure: Structure) -> doc.Document:
    """The document of a structure."""
    labels = mask_labels(structure)
    masks = list(zip(labels if len(labels) > 1 else [""], structure.masks, strict=True))
    weights = "none" if structure.base is None else printable(structure.base.id)
    base = "no base weights" if structure.base is None else f"base {weights}"
    heads = "no config" if structure.config is None else printable(structure.config)
    families = structure.masks[0].families
    num_units = sum(family.num_units for family in families)
    gaps = [f"{matrices.opened(_gap(gap))}." for gap in structure.left_out]
    coverage = f"{num_units:,} units of {plural(len(families), 'kind')}"
    sentences = [
        f"{mask_text(one.mask)}; random control of seed {one.control_seed}."
        for one in structure.masks
    ]
    shares = (
        f"{label} ({percent(one.mask.num_selected, one.mask.num_elements)} selected, control seed "
        f"{one.control_seed})"
        for label, one in zip(labels, structure.masks, strict=True)
    )
    run = {
        "head counts": structure.config or "no config",
        "seeds of controls": [one.control_seed for one in structure.masks],
        **structure.provenance,
    }
    return doc.Document(
        title=f"Where {', '.join(labels)} live",
        heading="Where the subnetwork lives",
        subtitle=(base, ", ".join(labels)),
        heroes=_heroes(masks),
        paragraphs=sentences,
        facts={"head counts": heads, "base weights": weights},
        headlines=sentences,
        summary=(_TESTED,),
        caveats=gaps,
        coverage=coverage + (f"; {plural(len(gaps), 'gap')} listed below" if gaps else ""),
        prints_coverage=False,
        sections=[
            _clustering(masks),
            units.layer_grids(masks),
            units.in_order(masks),
            matrices.stripes(masks),
            matrices.one_matrix(masks),
            _sharing(structure, labels),
            doc.Section("Coverage", tuple(gaps) or (_NO_GAP,)),
            masks_provenance(
                dict(zip(labels, (one.mask for one in structure.masks), strict=True)),
                structure.base,
                settings_table("Run", run),
            ),
        ],
        source=f"{base} · {', '.join(shares)}",
        date=structure.provenance.get("date", ""),
    )


def _gap(gap: LeftOut) -> str:
    """Tensors that belong to no unit of a family, and why."""
    what = "any unit" if gap.family == "all" else units.units_name(gap.family)
    more = "" if gap.num_tensors == 1 else f" and {gap.num_tensors - 1:,} more"
    return (
        f"not counted in {what}: {printable(gap.example)}{more} "
        f"({plural(gap.num_elements, 'element')}): {printable(gap.reason)}"
    )


def _heroes(masks: units.Labelled) -> list[doc.Hero]:
    """Significant units: of several families of one mask, or of one family of several masks."""
    if len(masks) == 1:
        families = masks[0][1].families
        chosen = [family for family in families if family.name in ("head", "neuron", "channel")]
        pairs = [
            (matrices.opened(units.units_name(f.name)), f)
            for f in (chosen or families)[:_MOST_HEROES]
        ]
    else:
        pairs = [(label, one.families[0]) for label, one in masks if one.families]
    return [_hero(label, family) for label, family in pairs] or [
        doc.Hero("", "–", "no tensor belongs to a known unit", 0.0, "nothing to count")
    ]


def _hero(label: str, family: Family) -> doc.Hero:
    null, test = ("magnitude", family.matched) if family.matched else ("tensor", family.null)
    num = test.num_up + test.num_down
    control = family.control.num_up + family.control.num_down
    return doc.Hero(
        label,
        f"{num:,}",
        f"of {test.num_tested:,} {units.units_name(family.name)} have more or fewer selected "
        f"weights than chance with {units.NULLS[null]}",
        num / test.num_tested if test.num_tested else 0.0,
        f"{test.num_up:,} more, {test.num_down:,} fewer; random control: {control:,}",
    )


_Tested = tuple[Family, Test]
"""A family, and its units against one of the nulls."""

_TEST = (
    doc.Column[_Tested]("units", lambda row: count(row[0].num_units)),
    doc.Column[_Tested]("more", lambda row: count(row[1].num_up)),
    doc.Column[_Tested]("fewer", lambda row: count(row[1].num_down)),
    doc.Column[_Tested]("mean z²", lambda row: matrices.dispersion_text(row[1].overdispersion)),
    doc.Column[_Tested]("spread", lambda row: matrices.spread_text(row[1].spread)),
)
_GINI = (
    "Gini is 0 and entropy 1 where all units have the same count. Those of the control are not "
    "quite so, since tensors differ in how much of them is selected."
)
_UNEVEN = (
    doc.Column[_Tested](
        "mean z² of control",
        lambda row: matrices.dispersion_text(row[0].control.overdispersion),
        drop=3,
    ),
    doc.Column[_Tested](
        "Gini", lambda row: magnitude(row[0].concentration.gini), drop=2, note=_GINI
    ),
    doc.Column[_Tested](
        "Gini of control", lambda row: magnitude(row[0].control_concentration.gini), drop=1
    ),
    doc.Column[_Tested]("entropy", lambda row: _entropy(row[0].concentration.entropy), only="page"),
    doc.Column[_Tested](
        "entropy of control",
        lambda row: _entropy(row[0].control_concentration.entropy),
        only="page",
    ),
)
_FROM_MAGNITUDE = doc.Column[_Tested](
    "z² by magnitude alone",
    lambda row: matrices.dispersion_text(row[0].from_magnitude),
    drop=1,
    note="“z² by magnitude alone” is the mean z² of the table above that a mask would have which "
    "is random but for the magnitudes of its weights.",
)


def _clustering(masks: units.Labelled) -> doc.Section:
    """Every family compared with both nulls and the random control."""
    families = [
        ((label, units.units_name(family.name)), family)
        for label, one in masks
        for family in one.families
    ]
    blocks = [
        _against("tensor", [(names, (f, f.null)) for names, f in families], (*_TEST, *_UNEVEN))
    ]
    if matched := [(names, (f, f.matched)) for names, f in families if f.matched]:
        blocks.append(
            _against(
                "magnitude",
                matched,
                (*_TEST, _FROM_MAGNITUDE),
                note="A weight changes only if a step is large beside it, so masks favour units of "
                "small weights. Here that is taken out: what is left is no matter of magnitude.",
            )
        )
    return doc.Section("Do units cluster?", (_TESTED,), tuple(blocks))


def _against(
    null: str,
    rows: Sequence[doc.Keyed[_Tested]],
    columns: Sequence[doc.Column[_Tested]],
    note: str = "",
) -> doc.Table:
    title = f"Against chance with {units.NULLS[null]}"
    brief = title if rows else None
    keys = ("mask", "family")
    return doc.table(title, rows, columns, keys=keys, is_folded=False, note=note, brief=brief)


_CORRELATIONS = (
    doc.Column[SharedUnits]("units", lambda shared: count(shared.num_units)),
    doc.Column[SharedUnits]("tensor", lambda shared: correlation_text(shared.spearman)),
    doc.Column[SharedUnits]("magnitude", lambda shared: correlation_text(shared.matched_spearman)),
    doc.Column[SharedUnits]("controls", lambda shared: correlation_text(shared.control_spearman)),
)
_COMMON = (
    doc.Column[Common]("null", lambda row: printable(row.null), "text"),
    doc.Column[Common]("", lambda row: "more" if row.direction == "up" else "fewer", "text"),
    doc.Column[Common]("first", lambda row: count(row.num_first), drop=2),
    doc.Column[Common]("second", lambda row: count(row.num_second), drop=1),
    doc.Column[Common]("both", lambda row: count(row.num_common)),
    doc.Column[Common]("chance", lambda row: shown(row.chance, ",.1f")),
    doc.Column[Common]("p", lambda row: shared_p_text(row.log10_p)),
)


def _sharing(structure: Structure, labels: Sequence[str]) -> doc.Section | None:
    """Whether masks prefer the same units; None for a single mask."""
    if not structure.shared:
        return None
    keys = ("family", "masks")
    rows = [
        (
            (units.units_name(shared.family), f"{labels[shared.first]}, {labels[shared.second]}"),
            shared,
        )
        for shared in structure.shared
    ]
    ranked = "Rank correlation of z over units"
    common = "Significant units that two masks have in common"
    strictest = [
        (names, row)
        for names, shared in rows
        for row in shared.common
        if row.null == shared.common[-1].null
    ]
    note = (
        "Chance is what two independent sets of these sizes would share, and p the two-sided "
        "probability of a number as far from it."
    )
    blocks = (
        doc.table(
            ranked,
            rows,
            _CORRELATIONS,
            keys=keys,
            is_folded=False,
            brief=ranked,
            note="Spearman's: 1 if both masks rank units alike, 0 if they know nothing of each "
            "other. Under “tensor” a unit of small weights is high in every mask; under "
            "“magnitude” that is taken out. “Controls” are the masks' random controls.",
        ),
        doc.table(
            common,
            [(names, row) for names, shared in rows for row in shared.common],
            _COMMON,
            keys=keys,
            is_folded=False,
            note=note,
        ),
        doc.table(common, strictest, _COMMON, keys=keys, note=note, brief=common, on_page=False),
    )
    return doc.Section("Do masks share units?", blocks=blocks)
