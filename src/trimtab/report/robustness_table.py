"""The text that `trimtab robustness` prints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from trimtab.report.robustness_wording import (
    asked_text,
    beside_text,
    columns_of,
    mask_text,
    noise_text,
    notes_text,
)
from trimtab.report.table import aligned, wrapped
from trimtab.report.wording import printable

__all__ = ["render_robustness_table"]


def render_robustness_table(
    probe: Mapping[str, Any], *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw a robustness probe as text.

    Args:
        probe: Its plain data.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and dim, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    told = probe["provenance"]
    opening = [
        f"checkpoint  {printable(told['checkpoint']['id'])}",
        f"mask        {mask_text(probe)}",
        "",
        *wrapped(asked_text(probe), width, "", styled=styled),
    ]
    for arm in probe["arms"][1:]:
        opening += wrapped(beside_text(probe, arm), width, "1", styled=styled)
    parts = [opening]
    for noise in probe["settings"]["noises"]:
        lines = aligned(columns_of(probe, noise), width)
        if styled:
            lines[0] = f"\x1b[2m{lines[0]}\x1b[0m"
        title = f"{printable(noise)}: {noise_text(noise)}"
        parts.append([*wrapped(title, width, "1", styled=styled), *lines])
    parts.append(wrapped(notes_text(probe), width, "2", styled=styled))
    return "\n\n".join("\n".join(lines) for lines in parts)
