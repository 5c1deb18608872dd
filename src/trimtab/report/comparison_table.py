"""The text that `trimtab compare` prints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.elements.counts import ChangeCounts, percent
from trimtab.elements.criteria import parse_criterion
from trimtab.measure.compare_result import Comparison, TensorChange
from trimtab.report.arms import Arm
from trimtab.report.causes import random_walk_text
from trimtab.report.shape import RANKS, SHARES
from trimtab.report.table import GAP, aligned, wrapped
from trimtab.report.wording import (
    coverage_sentence,
    endpoints,
    headline,
    magnitude,
    plural,
    printable,
    sparsity_text,
)

__all__ = ["render_table"]


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
        _rank(comparison.analyses.get("rank"), width, styled=styled),
        _geometry(comparison.analyses.get("geometry"), width, styled=styled),
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
            f"{magnitude(arm.total.update_max_abs)}, "
            f"{plural(arm.total.num_increased, 'element')} up, {arm.total.num_decreased:,} down.",
            width,
            "",
            styled=styled,
        )
    colour = "" if comparison.coverage.is_complete else "1;33"
    sentence = f"Coverage {coverage_sentence(comparison.coverage)}."
    lines += wrapped(sentence, width, colour, styled=styled)
    return "\n".join(lines)


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
    if sum(sizes) + len(GAP) * (len(sizes) - 1) > width:
        lines = [f"{key.ljust(8)}{GAP}{value.rjust(8)}" for key, value in shown.items()]
        return "\n".join([*wrapped(title, width, "", styled=False), *lines])
    lines = [
        GAP.join(text.rjust(size) for text, size in zip(row, sizes, strict=True))
        for row in (shown.keys(), shown.values())
    ]
    return "\n".join([*wrapped(title, width, "", styled=False), *lines])


def _rank(section: Mapping[str, Any] | None, width: int, *, styled: bool) -> str:
    """Mean and least rank over the matrices, beside those of the control."""
    if section is None:
        return ""
    columns: dict[str, list[str]] = {"rank": []}
    for key, name in RANKS.items():
        summary = section["summary"].get(key)
        if summary is None or summary["mean"] is None:
            continue
        columns["rank"].append(name)
        for title, of in _OF_RANKS.items():
            columns.setdefault(title, []).append(percent(summary[of], 1))
    return _analysed(
        f"Rank of the update, share of the most, over {_matrices(section)}:",
        columns,
        "“shuffled” has the elements of the update in random order.",
        width,
        styled=styled,
    )


_OF_RANKS = {
    "mean": "mean",
    "shuffled, mean": "random_mean",
    "least": "min",
    "shuffled, least": "random_min",
}


def _geometry(section: Mapping[str, Any] | None, width: int, *, styled: bool) -> str:
    """Where in the matrices the update lies, each share beside its chance."""
    if section is None:
        return ""
    columns: dict[str, list[str]] = {}
    for key, name in SHARES.items():
        if (summary := section["summary"].get(key)) is None:
            continue
        cells = {
            "share of": name,
            "share": percent(summary["share"], 1),
            "chance": percent(summary["chance"], 1),
            "lift": f"{summary['lift']:.2f}",
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    return _analysed(
        f"Where the update lies, over {_matrices(section)}:",
        columns,
        "Small weights move more easily in a low-precision format: a lift on them is no sign of a "
        "preference by itself.",
        width,
        styled=styled,
    )


def _analysed(
    title: str, columns: dict[str, list[str]], note: str, width: int, *, styled: bool
) -> str:
    """A table with its title and note; a sentence for each row where the columns do not fit."""
    lines = wrapped(title, width, "", styled=styled)
    if not any(columns.values()):
        return "\n".join(lines)
    grid = aligned(columns, width)
    if max(map(len, grid)) > width:
        _, *titles = columns
        grid = []
        for name, *cells in zip(*columns.values(), strict=True):
            figures = (f"{of} {cell}" for of, cell in zip(titles, cells, strict=True))
            grid += wrapped(f"{name}: {', '.join(figures)}", width, "", styled=styled)
    return "\n".join([*lines, *grid, *wrapped(note, width, "2", styled=styled)])


def _matrices(section: Mapping[str, Any]) -> str:
    left_out = len(section["skipped"])
    analysed = plural(section["num_matrices"], "matrix", "matrices")
    return f"{analysed} ({plural(left_out, 'tensor')} left out)" if left_out else analysed
