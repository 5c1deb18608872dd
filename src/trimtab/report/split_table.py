"""The text that `trimtab mask share` prints: the parts of several masks next to chance."""

from __future__ import annotations

import shutil

from trimtab.elements.counts import percent
from trimtab.masks.split import Split
from trimtab.report.split_wording import (
    other_base_sentence,
    part_rows,
    parts_note,
    split_names,
)
from trimtab.report.table import aligned, told
from trimtab.words import plural

__all__ = ["render_split"]


def render_split(split: Split, *, console_width: int | None = None, styled: bool = False) -> str:
    """Draw the parts as text.

    Args:
        split: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    masks = ", ".join(
        f"{name} ({percent(mask.num_selected, split.num_elements)})"
        for name, mask in zip(split_names(split), split.masks, strict=True)
    )
    opening = (
        f"{plural(len(split.masks), 'mask')} of {plural(split.num_elements, 'element')}: {masks}"
    )
    rows = part_rows(split)
    columns = {title: [row[title] for row in rows] for title in rows[0]}
    return "\n".join(
        [
            *told([(opening, "1"), (other_base_sentence(split), "1;33")], width, styled=styled),
            "",
            *aligned(columns, width),
            "",
            *told([(parts_note(split), "2")], width, styled=styled),
        ]
    )
