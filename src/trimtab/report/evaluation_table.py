"""The text that `trimtab evaluate` prints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from trimtab.report.evaluation_wording import (
    Columns,
    accuracy_columns,
    asked_sentence,
    difference_columns,
    difference_note,
    forgetting_columns,
    forgetting_note,
    level_columns,
    level_note,
    suite_columns,
    task_text,
    text_sentence,
)
from trimtab.report.table import aligned, wrapped
from trimtab.report.wording import printable

__all__ = ["render_evaluation_table"]


def render_evaluation_table(
    evaluation: Mapping[str, Any], *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw an evaluation as text.

    Args:
        evaluation: Its plain data.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and dim, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    confidence = f"{100 * evaluation['confidence']:g} %"
    parts: list[list[str]] = []

    def add(title: str, columns: Columns, note: str = "") -> None:
        lines = aligned(columns, width)
        if styled:
            lines[0] = f"\x1b[2m{lines[0]}\x1b[0m"
        opening = wrapped(title, width, "1", styled=styled)
        parts.append([*opening, *lines, *wrapped(note, width, "2", styled=styled)])

    if evaluation["questions"] is not None:
        asked = wrapped(asked_sentence(evaluation), width, "", styled=styled)
        parts.append([*wrapped(task_text(evaluation), width, "", styled=styled), *asked])
        add(f"Held-out accuracy [{confidence} interval]", accuracy_columns(evaluation))
        if len(evaluation["models"]) > 1:
            add(
                f"Difference on the same questions [{confidence} interval]",
                difference_columns(evaluation),
                difference_note(evaluation),
            )
        if evaluation["by_level"] is not None:
            by = printable(evaluation["questions"]["by"])
            add(f"Accuracy by {by}", level_columns(evaluation), level_note())
    if evaluation["text"] is not None:
        add(
            f"Forgetting [{confidence} interval]: {text_sentence(evaluation)}",
            forgetting_columns(evaluation),
            forgetting_note(),
        )
    if evaluation["models"][0]["suites"] is not None:
        add(f"lm-evaluation-harness [{confidence} interval]", suite_columns(evaluation))
    return "\n\n".join("\n".join(lines) for lines in parts)
