"""The page of masks that were split into a common core and own parts."""

from __future__ import annotations

from trimtab.elements.counts import percent
from trimtab.masks.split import Split
from trimtab.report.blocks import Column, Section, table
from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.shared import NO_BASE
from trimtab.report.split_wording import other_base_sentence, part_rows, parts_note, split_names
from trimtab.report.wording import magnitude, of_all, plural, printable

__all__ = ["split_page"]


def split_page(split: Split) -> Page:
    """What is told of a split.

    Args:
        split: The result; nothing else is read.
    """
    names = split_names(split)
    first, *others = names
    warning = other_base_sentence(split)
    against = "no base" if split.base is None else printable(split.base.id)
    return Page(
        title=f"What {', '.join(names)} share",
        heading="What do the masks share?",
        subtitle=(first, ", ".join(others)),
        heroes=[_hero(split)],
        warnings=[warning] if warning else [],
        coverage=f"complete: all {plural(split.num_elements, 'element')} of the masks were split",
        paragraphs=() if split.base else (NO_BASE,),
        sections=[_parts(split), _provenance(split)],
        source=f"masks {', '.join(names)} · magnitudes of {against}",
        date=split.provenance.get("date", ""),
    )


def _hero(split: Split) -> Hero:
    """How much of the smallest mask all of them select."""
    core, whole = split.core, split.whole(split.core)
    if not whole:
        return Hero("", "–", "a mask selects nothing", 0.0, "nothing to share")
    lift, null = core.lift, "per-tensor"
    if split.base is not None:
        lift, null = core.matched_lift, "magnitude-matched"
    return Hero(
        "",
        percent(core.num_selected, whole),
        f"of {whole:,} weights of the smallest mask are in all {len(split.masks)}",
        core.num_selected / whole,
        f"{core.num_selected:,} in the core; {magnitude(lift)} × chance ({null})",
    )


def _parts(split: Split) -> Section:
    rows = [
        row | {"file": printable(part.file)}
        for row, part in zip(part_rows(split), split.parts, strict=True)
    ]
    columns: list[Column] = [
        (title, "text" if title == "part" else "code" if title == "file" else "number")
        for title in rows[0]
    ]
    cells = [tuple(row.values()) for row in rows]
    note = parts_note(split)
    return Section(
        "The parts",
        blocks=(table("Core and own parts", columns, cells, is_folded=False, note=note),),
    )


def _provenance(split: Split) -> Section:
    """The masks and how they were made, the base, and how they were split."""
    names = split_names(split)
    masks = table(
        "Masks",
        [("file", "code"), ("selected", "text"), ("digest", "code")],
        [
            (
                name if mask.id is None else printable(mask.id),
                f"{of_all(mask.num_selected, mask.num_elements)} weights selected",
                printable(mask.digest),
            )
            for name, mask in zip(names, split.masks, strict=True)
        ],
        is_folded=False,
    )
    made = [
        settings_table(f"How {name} was made", mask.provenance, is_folded=True)
        for name, mask in zip(names, split.masks, strict=True)
    ]
    base = [] if split.base is None else [checkpoints_table({"base": split.base}, "Base")]
    run = settings_table("Split", split.provenance, is_folded=False)
    return Section("Provenance", blocks=(masks, *made, *base, run))
