"""The text that `trimtab mask info` prints: what a mask selects, by kind, and how it was made."""

from __future__ import annotations

import shutil

from trimtab.elements.counts import percent
from trimtab.masks.header import PackedMask
from trimtab.masks.mask import summarise
from trimtab.report.mask_steps import steps_lines
from trimtab.report.table import aligned
from trimtab.report.wording import kinds_in_order, plural, printable

__all__ = ["render_mask", "selected_text", "share_text"]


def render_mask(mask: PackedMask, *, console_width: int | None = None, styled: bool = False) -> str:
    """Draw a mask as text.

    Args:
        mask: The mask.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold, for a terminal that shows it.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    opening = f"{selected_text(mask)} in {plural(len(mask), 'tensor')}"
    lines = [
        f"\x1b[1m{opening}\x1b[0m" if styled else opening,
        f"digest {mask.digest}",
        "",
        *_kinds(mask, width, styled=styled),
    ]
    if steps := steps_lines(mask.provenance):
        lines += ["", "How it was made:", *steps]
    return "\n".join(lines)


def selected_text(mask: PackedMask) -> str:
    """How much is selected: `1,834 of 10,592 elements (17.31 %)`."""
    return share_text(mask.num_selected(), mask.num_elements())


def share_text(num_selected: int, num_elements: int) -> str:
    """How much some elements are of others, in the words of `selected_text`."""
    share = f" ({percent(num_selected, num_elements)})" if num_elements else ""
    return f"{num_selected:,} of {num_elements:,} elements{share}"


def _kinds(mask: PackedMask, width: int, *, styled: bool) -> list[str]:
    summary = summarise(mask)
    columns: dict[str, list[str]] = {}
    by_kind = {kind: summary["by_kind"][kind] for kind in kinds_in_order(summary["by_kind"])}
    for kind, group in [*by_kind.items(), ("all", summary["total"])]:
        cells = {
            "kind": printable(kind),
            "tensors": f"{group['num_tensors']:,}",
            "elements": f"{group['num_elements']:,}",
            "selected": f"{group['num_selected']:,}",
            "density": percent(group["num_selected"], group["num_elements"]),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    lines = aligned(columns, width)
    if styled:
        lines[0], lines[-1] = f"\x1b[2m{lines[0]}\x1b[0m", f"\x1b[1m{lines[-1]}\x1b[0m"
    return lines
