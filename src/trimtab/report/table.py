"""The text that `trimtab compare` prints: plain characters, as wide as the terminal or less.

No box drawing and no colour unless asked for, so that a pipe, a log file and a narrow window get
the same words. Columns that do not fit are left out from the least important on; a figure is
never cut or wrapped.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from trimtab.compare.result import Comparison, TensorChange
from trimtab.elements.counts import ChangeCounts, percent
from trimtab.elements.criteria import parse_criterion
from trimtab.report.arms import Arm
from trimtab.report.causes import random_walk_text
from trimtab.report.wording import (
    coverage_sentence,
    endpoints,
    headline,
    magnitude,
    printable,
    sparsity_text,
)

__all__ = ["render_table"]

_GAP = "  "
_OPTIONAL = (
    *("p of fewer", "p of more", "chance of fewer", "chance of more"),  # of shared units
    *("of control", "Gini", "z² by magnitude alone", "columns control", "rows control"),
    *("most o1", "most o2", "p", "in A", "in B"),  # of an overlap
    *("in mask", "norm", "correct, mask − it", "correct"),  # of a robustness probe
    "largest difference",  # of an identity check
    *("outside/all", "outside/ever", "Jaccard", "cancelled"),  # of a trajectory
    *("tensors", "mean of tensors", "changed", "predicted", "elements"),
    *("seconds", "loss tokens", "trained"),  # of a demo
    *("cosine", "relative L2"),  # of an identity check
    "optimizer",  # of a demo
)
"""Columns that give way in a narrow window, the first one first."""


def render_table(
    comparison: Comparison, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw a comparison as text.

    Args:
        comparison: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    arm = Arm("", comparison)
    parts = [
        _opening(arm, width, styled=styled),
        _kinds(arm, width, styled=styled),
        _sweep(arm, width),
    ]
    return "\n\n".join(part for part in parts if part)


def _opening(arm: Arm, width: int, *, styled: bool) -> str:
    comparison = arm.comparison
    base, tuned = endpoints(comparison)
    figure, words = headline(arm.total, arm.criterion)
    lines = [
        f"base   {base}",
        f"tuned  {tuned}",
        "",
        *wrapped(f"{figure} {words} (criterion: {arm.criterion})", width, "1", styled=styled),
    ]
    if comparison.conversion is not None:
        note = f"Converted before comparing: {printable(comparison.conversion)}."
        lines += wrapped(note, width, "33", styled=styled)
    if arm.total.num_elements:
        lines += wrapped(
            f"Update: L2 {magnitude(arm.total.update_l2)}, largest "
            f"{magnitude(arm.total.update_max_abs)}, {arm.total.num_increased:,} elements up, "
            f"{arm.total.num_decreased:,} down.",
            width,
            "",
            styled=styled,
        )
    colour = "" if comparison.coverage.is_complete else "1;33"
    sentence = f"Coverage {coverage_sentence(comparison.coverage)}."
    lines += wrapped(sentence, width, colour, styled=styled)
    return "\n".join(lines)


def wrapped(text: str, width: int, style: str, *, styled: bool) -> list[str]:
    """Lines of a sentence, in the SGR style of that number if styled."""
    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    return [f"\x1b[{style}m{line}\x1b[0m" for line in lines] if styled and style else lines


def told(sentences: Iterable[tuple[str | None, str]], width: int, *, styled: bool) -> list[str]:
    """Lines of the sentences that there are, each in its own SGR style."""
    lines: list[str] = []
    for sentence, style in sentences:
        if sentence:
            lines += wrapped(sentence, width, style, styled=styled)
    return lines


def _kinds(arm: Arm, width: int, *, styled: bool) -> str:
    if not arm.by_kind:
        return ""
    predicts = random_walk_text(arm, None) is not None
    columns: dict[str, list[str]] = {}

    def add(kind: str | None, counts: ChangeCounts, tensors: Sequence[TensorChange]) -> None:
        mean = arm.comparison.unweighted_mean_sparsity(arm.criterion, tensors)
        cells = {
            "kind": "all" if kind is None else printable(kind),
            "tensors": f"{len(tensors):,}",
            "elements": f"{counts.num_elements:,}",
            "changed": f"{counts.num_changed.get(arm.criterion, 0):,}",
            "unchanged": sparsity_text(counts, arm.criterion),
        }
        if predicts:
            cells["predicted"] = random_walk_text(arm, kind) or "–"
        cells["mean of tensors"] = "–" if mean is None else percent(mean, 1)
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)

    for kind, counts in arm.by_kind.items():
        add(kind, counts, arm.tensors_by_kind[kind])
    add(None, arm.total, arm.comparison.tensors)
    lines = aligned(columns, width)
    notes = []
    if "mean of tensors" in lines[0]:
        notes.append("“unchanged” is weighted by elements, “mean of tensors” counts each alike.")
    if "predicted" in lines[0]:
        section = arm.comparison.analyses["precision"]
        notes.append(
            f"“predicted” is what a random walk of {section['steps']:,} steps of {section['lr']:g} "
            "would leave unchanged in the stored dtype."
        )
    if styled:
        lines[0], lines[-1] = f"\x1b[2m{lines[0]}\x1b[0m", f"\x1b[1m{lines[-1]}\x1b[0m"
    return "\n".join([*lines, *wrapped(" ".join(notes), width, "2", styled=styled)])


def aligned(columns: dict[str, list[str]], width: int) -> list[str]:
    """Lines of a table with its headings, the first column to the left; drops what cannot fit."""
    for leaving in (*_OPTIONAL, None):
        sizes = {title: max(map(len, (title, *cells))) for title, cells in columns.items()}
        if leaving is None or sum(sizes.values()) + len(_GAP) * (len(sizes) - 1) <= width:
            break
        columns = {title: cells for title, cells in columns.items() if title != leaving}
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return [
        _GAP.join(
            cell.rjust(size) if place else cell.ljust(size)
            for place, (cell, size) in enumerate(zip(row, sizes.values(), strict=True))
        ).rstrip()
        for row in rows
    ]


def _sweep(arm: Arm, width: int) -> str:
    """Sparsity under every tolerance: side by side where they fit, else one below the other."""
    shown = {
        ("0" if criterion.tolerance == 0 else key.partition("=")[2]): sparsity_text(arm.total, key)
        for key in arm.total.num_changed
        if (criterion := parse_criterion(key)).rule == "atol"
    }
    if not shown:
        return ""
    title = "Unchanged by absolute tolerance, |tuned − base| ≤"
    sizes = [max(len(key), len(value)) for key, value in shown.items()]
    if sum(sizes) + len(_GAP) * (len(sizes) - 1) > width:
        lines = [f"{key.ljust(8)}{_GAP}{value.rjust(8)}" for key, value in shown.items()]
        return "\n".join([*wrapped(title, width, "", styled=False), *lines])
    lines = [
        _GAP.join(text.rjust(size) for text, size in zip(row, sizes, strict=True))
        for row in (shown.keys(), shown.values())
    ]
    return "\n".join([*wrapped(title, width, "", styled=False), *lines])
