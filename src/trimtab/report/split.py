"""The report of a split of masks into a common core and own parts."""

from __future__ import annotations

from pathlib import Path

from trimtab.elements.counts import percent
from trimtab.masks.split import Part, Split
from trimtab.report import document as doc
from trimtab.report.chance import NO_BASE
from trimtab.report.records import masks_provenance, settings_table
from trimtab.report.wording import count, magnitude, printable, share, shown
from trimtab.words import plural

_MEANING = (
    "The share of the core is that of the smallest mask. By chance: the mean for random, "
    "independent masks with the same number of elements in each tensor."
)
_MATCHED = "Matched: also the same number in each tensor × exponent of the base's weights."


def split_document(split: Split) -> doc.Document:
    """The document of a split."""
    names = _names(split)
    first, *others = names
    warnings = _warnings(split)
    base = "no base" if split.base is None else printable(split.base.id)
    masks = ", ".join(
        f"{name} ({percent(mask.num_selected, split.num_elements)})"
        for name, mask in zip(names, split.masks, strict=True)
    )
    opening = (
        f"{plural(len(split.masks), 'mask')} of {plural(split.num_elements, 'element')}: {masks}"
    )
    return doc.Document(
        title=f"What {', '.join(names)} share",
        heading="What do the masks share?",
        subtitle=(first, ", ".join(others)),
        headlines=(opening,),
        heroes=[_hero(split)],
        warnings=warnings,
        coverage=f"complete: all {plural(split.num_elements, 'element')} of the masks were split",
        prints_coverage=False,
        paragraphs=() if split.base else (NO_BASE,),
        sections=[
            _parts(split, names),
            masks_provenance(
                dict(zip(names, split.masks, strict=True)),
                split.base,
                settings_table("Split", split.provenance),
            ),
        ],
        source=f"masks {', '.join(names)} · magnitudes of {base}",
        date=split.provenance.get("date", ""),
    )


def _names(split: Split) -> list[str]:
    """Name of each mask: its file name, or its number."""
    return [
        f"mask {number}" if mask.id is None else printable(Path(mask.id).name)
        for number, mask in enumerate(split.masks, 1)
    ]


def _warnings(split: Split) -> list[str]:
    """A warning if the masks are known to be made against different bases."""
    if not split.base_differs:
        return []
    return [
        "The masks say that they were made against different bases, in "
        f"{plural(len(split.base_differs), 'tensor')}: elements of one place were set against each "
        "other, whatever their weights were."
    ]


def _parts(split: Split, names: list[str]) -> doc.Section:
    matched = (
        doc.Column[Part]("matched", lambda part: shown(part.matched_chance, ",.0f"), drop=2),
        doc.Column[Part]("matched lift", lambda part: magnitude(part.matched_lift)),
    )
    parts = doc.table(
        "Core and own parts",
        [
            (("core" if part.mask is None else f"own of {names[part.mask]}",), part)
            for part in split.parts
        ],
        (
            doc.Column("selected", lambda part: count(part.num_selected)),
            doc.Column("of the mask", lambda part: share(part.num_selected, split.whole(part))),
            doc.Column("by chance", lambda part: shown(part.chance, ",.0f"), drop=1),
            doc.Column("lift", lambda part: magnitude(part.lift)),
            *(() if split.base is None else matched),
            doc.Column("file", lambda part: printable(part.file), "code", only="page"),
        ),
        keys=("part",),
        is_folded=False,
        note=_MEANING if split.base is None else f"{_MEANING} {_MATCHED}",
        brief="",
    )
    return doc.Section("The parts", blocks=(parts,))


def _hero(split: Split) -> doc.Hero:
    """How much of the smallest mask all of them select."""
    core, whole = split.core, split.whole(split.core)
    if not whole:
        return doc.Hero("", "–", "a mask selects nothing", 0.0, "nothing to share")
    lift, null = core.lift, "per-tensor"
    if split.base is not None:
        lift, null = core.matched_lift, "magnitude-matched"
    return doc.Hero(
        "",
        percent(core.num_selected, whole),
        f"of {whole:,} weights of the smallest mask are in all {len(split.masks)}",
        core.num_selected / whole,
        f"{core.num_selected:,} in the core; {magnitude(lift)} × chance ({null})",
    )
