"""The text that `trimtab mask share` prints: the parts of several masks next to chance."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from trimtab.elements.counts import percent
from trimtab.masks.common_core import Split
from trimtab.report.table import aligned, wrapped
from trimtab.report.wording import magnitude, printable

__all__ = ["render_split"]

_MEANING = (
    "The share of the core is that of the smallest mask. By chance: the mean for random, "
    "independent masks with as many elements in each tensor."
)
_MATCHED = "Matched: the same with as many of each tensor × exponent of the base's weights."


def render_split(split: Split, ids: Sequence[str], *, console_width: int | None = None) -> str:
    """Draw the parts as text.

    Args:
        split: The result.
        ids: What to call each mask.
        console_width: Characters in a line; None asks the terminal.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    columns: dict[str, list[str]] = {}
    for part in split.parts:
        whole = min(split.num_selected) if part.mask is None else split.num_selected[part.mask]
        cells = {
            "part": "core" if part.mask is None else f"own of {printable(ids[part.mask])}",
            "selected": f"{part.num_selected:,}",
            "of the mask": percent(part.num_selected, whole),
            "by chance": f"{part.chance:,.0f}",
            "lift": magnitude(part.lift),
        }
        if part.matched_chance is not None:
            cells["matched"] = f"{part.matched_chance:,.0f}"
            cells["matched lift"] = magnitude(part.matched_lift)
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    masks = ", ".join(
        f"{printable(id)} ({percent(num_selected, split.num_elements)})"
        for id, num_selected in zip(ids, split.num_selected, strict=True)
    )
    opening = f"{len(ids)} masks of {split.num_elements:,} elements: {masks}"
    is_matched = any(part.matched_chance is not None for part in split.parts)
    meaning = f"{_MEANING} {_MATCHED}" if is_matched else _MEANING
    return "\n".join(
        [
            *wrapped(opening, width, "", styled=False),
            "",
            *aligned(columns, width),
            "",
            *wrapped(meaning, width, "", styled=False),
        ]
    )
