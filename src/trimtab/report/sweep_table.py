"""The text that `trimtab sweep` prints when it is done: its cells, and its arms over seeds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report.table import aligned, wrapped
from trimtab.report.wording import plural, printable, within

__all__ = ["render_sweep_table"]

NONE = "–"


def render_sweep_table(
    table: Mapping[str, Any], *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw the table of a sweep as text.

    Args:
        table: Its plain data.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and dim, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    cells, arms = table["cells"], table["arms"]
    criteria = sorted({row["criterion"] for row in cells if row["criterion"]})
    measure = f"Unchanged by {', '.join(criteria)}, in the dtype that was saved" if criteria else ""
    parts = [[*wrapped(measure, width, "1", styled=styled), *aligned(_cell_columns(cells), width)]]
    if len(arms) < len(cells):
        confidence = f"{100 * table['confidence']:g} %"
        title = f"Over seeds: mean [{confidence} t-interval, of shares cut at 0 and 100 %]"
        parts.append(
            [*wrapped(title, width, "1", styled=styled), *aligned(_arm_columns(arms), width)]
        )
    failed = [row for row in cells if row["error"]]
    if failed:
        lines = [f"{printable(row['cell'])}: {printable(row['error'])}" for row in failed]
        parts.append([f"{plural(len(failed), 'cell')} failed", *lines])
    return "\n\n".join("\n".join(lines) for lines in parts)


def _cell_columns(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    columns = {
        "cell": [printable(row["cell"]) for row in cells],
        "unchanged": [_sparsity(row) for row in cells],
        "saved": [row["saved_dtype"] or row["status"] for row in cells],
        "learning rate": [f"{row['peak_learning_rate']:g}" for row in cells],
        "steps": [_number(row["num_steps"], ",") for row in cells],
        "loss": [_number(row["loss_last"], ".4g") for row in cells],
        "reward": [_number(row["reward_last"], ".3f") for row in cells],
        "right": [
            NONE if row["num_questions"] is None else f"{row['num_right']}/{row['num_questions']}"
            for row in cells
        ],
        "seconds": [_number(row["seconds_train"], ",.0f") for row in cells],
    }
    return {title: of for title, of in columns.items() if set(of) != {NONE}}


def _arm_columns(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    columns = {
        "arm": [printable(arm["arm"]) for arm in arms],
        "n": [f"{arm['num_finished']}/{arm['num_cells']}" for arm in arms],
        "unchanged": [_mean(arm["sparsity"], share=True) for arm in arms],
        "loss": [_mean(arm["loss_last"]) for arm in arms],
        "reward": [_mean(arm["reward_last"]) for arm in arms],
        "accuracy": [_mean(arm["accuracy"], share=True) for arm in arms],
    }
    return {title: of for title, of in columns.items() if set(of) != {NONE}}


def _sparsity(row: Mapping[str, Any]) -> str:
    if row["num_elements"] is None:
        return NONE
    return percent(row["num_elements"] - row["num_changed"], row["num_elements"])


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _mean(known: Mapping[str, Any] | None, *, share: bool = False) -> str:
    """A mean with its interval; of shares in percent."""
    if known is None:
        return NONE
    mean = percent(known["mean"], 1) if share else f"{known['mean']:.4g}"
    if known["high"] is None:
        return mean
    if not share:
        return f"{mean} [{known['low']:.4g}, {known['high']:.4g}]"
    low, high = within(known, 0.0, 1.0) or (0.0, 1.0)
    return f"{mean} [{100 * low:.2f}, {100 * high:.2f}]"
