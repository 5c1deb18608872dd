"""How parts of masks are put into words, the same in the terminal and in the HTML report."""

from __future__ import annotations

from pathlib import Path

from trimtab.elements.counts import percent
from trimtab.masks.split import Split
from trimtab.report.wording import magnitude, plural, printable

__all__ = ["other_base_sentence", "part_rows", "parts_note", "split_names"]

_MEANING = (
    "The share of the core is that of the smallest mask. By chance: the mean for random, "
    "independent masks with as many elements in each tensor."
)
_MATCHED = "Matched: the same with as many of each tensor × exponent of the base's weights."


def split_names(split: Split) -> list[str]:
    """What to call each mask: its file, without the folders, or its number."""
    return [
        f"mask {number}" if mask.id is None else printable(Path(mask.id).name)
        for number, mask in enumerate(split.masks, 1)
    ]


def part_rows(split: Split) -> list[dict[str, str]]:
    """A row for each part, as finished text by heading."""
    names = split_names(split)
    rows = []
    for part in split.parts:
        row = {
            "part": "core" if part.mask is None else f"own of {names[part.mask]}",
            "selected": f"{part.num_selected:,}",
            "of the mask": percent(part.num_selected, split.whole(part)),
            "by chance": f"{part.chance:,.0f}",
            "lift": magnitude(part.lift),
        }
        if part.matched_chance is not None:
            row["matched"] = f"{part.matched_chance:,.0f}"
            row["matched lift"] = magnitude(part.matched_lift)
        rows.append(row)
    return rows


def parts_note(split: Split) -> str:
    """How to read the rows."""
    return _MEANING if split.base is None else f"{_MEANING} {_MATCHED}"


def other_base_sentence(split: Split) -> str | None:
    """A warning where the masks were made against different bases; None where none is known."""
    if not split.base_differs:
        return None
    return (
        "The masks say that they were made against different bases, in "
        f"{plural(len(split.base_differs), 'tensor')}: elements of one place were set against each "
        "other, whatever their weights were."
    )
