"""The page of the structure of masks."""

from __future__ import annotations

from trimtab.elements.counts import percent
from trimtab.masks.structure_result import Family, MaskStructure, Structure
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.structure import (
    clustering,
    in_order,
    layer_grids,
    not_counted,
    origins,
    sharing,
)
from trimtab.report.structure_matrices import one_matrix, stripes
from trimtab.report.structure_wording import (
    FAMILY_NAMES,
    NULLS,
    family_name,
    mask_labels,
    mask_sentence,
    opened,
)
from trimtab.report.wording import plural, printable

__all__ = ["structure_page"]

_MOST_HEROES = 3


def structure_page(structure: Structure) -> Page:
    """What is told of where masks live.

    Args:
        structure: The result; nothing else is read.
    """
    labels = mask_labels(structure)
    masks = list(zip(labels if len(labels) > 1 else [""], structure.masks, strict=True))
    base = "no base weights" if structure.base is None else f"base {printable(structure.base.id)}"
    families = structure.masks[0].families
    units = f"{sum(f.num_units for f in families):,} units of {plural(len(families), 'kind')}"
    gaps = len(structure.left_out)
    return Page(
        title=f"Where {', '.join(labels)} live",
        heading="Where the subnetwork lives",
        subtitle=(base, ", ".join(labels)),
        heroes=_heroes(masks),
        coverage=units + (f"; {plural(gaps, 'gap')} listed below" if gaps else ""),
        paragraphs=tuple(f"{mask_sentence(of)}." for of in structure.masks),
        sections=[
            clustering(masks),
            layer_grids(masks),
            in_order(masks),
            stripes(masks),
            one_matrix(masks),
            sharing(structure),
            not_counted(structure),
            origins(structure, masks),
        ],
        source=f"{base} · {', '.join(map(_named_share, labels, structure.masks))}",
        date=structure.provenance.get("date", ""),
    )


def _named_share(label: str, of: MaskStructure) -> str:
    """`grpo (8.94 %, control seed 0)`."""
    share = percent(of.mask.num_selected, of.mask.num_elements)
    return f"{label} ({share} selected, control seed {of.control_seed})"


def _heroes(masks: list[tuple[str, MaskStructure]]) -> list[Hero]:
    """Significant units: of several families of one mask, or of one family of several masks."""
    if len(masks) == 1:
        (_, of) = masks[0]
        chosen = [family for family in of.families if family.name in ("head", "neuron", "channel")]
        pairs = [("", family) for family in (chosen or of.families)[:_MOST_HEROES]]
    else:
        pairs = [(label, of.families[0]) for label, of in masks if of.families]
    return [_hero(label, family) for label, family in pairs] or [
        Hero("", "–", "no tensor belongs to a known unit", 0.0, "nothing to count")
    ]


def _hero(label: str, family: Family) -> Hero:
    null = "tensor" if family.matched is None else "magnitude"
    test = family.null if family.matched is None else family.matched
    num = test.num_up + test.num_down
    names = FAMILY_NAMES.get(family.name, printable(family.name))
    control = family.control.num_up + family.control.num_down
    return Hero(
        label=label or opened(family_name(family)),
        figure=f"{num:,}",
        words=(
            f"of {test.num_tested:,} {names} have more or fewer selected weights than chance with "
            f"{NULLS[null]}"
        ),
        filled=num / test.num_tested if test.num_tested else 0.0,
        under=f"{test.num_up:,} more, {test.num_down:,} fewer; random control: {control:,}",
    )
