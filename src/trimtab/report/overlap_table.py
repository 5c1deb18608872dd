"""The text that `trimtab mask overlap` prints: what is shared, and beside it what chance gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from trimtab.masks.overlap_chance import Null, Shared
from trimtab.masks.overlap_result import Overlap
from trimtab.report.overlap_wording import (
    NO_BASE,
    common_sentence,
    count_text,
    letters,
    lift_sentence,
    lift_text,
    mask_names,
    null_cells,
    null_note,
    other_base_sentence,
    overlap_coverage_sentence,
    ratio_text,
    selected,
    shared_sentence,
    short_name,
)
from trimtab.report.table import aligned, told, wrapped
from trimtab.report.wording import kinds_in_order, printable

__all__ = ["render_overlap_table"]


def render_overlap_table(
    overlap: Overlap, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw an overlap as text.

    Args:
        overlap: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    parts = [_opening(overlap, width, styled=styled)]
    if len(overlap.masks) == 2:
        parts += [_nulls(overlap, width, styled=styled), _kinds(overlap, width, styled=styled)]
    else:
        parts += [_series(overlap, width)] if overlap.is_series else _matrices(overlap, width)
        parts.append(_consensus(overlap, width))
    return "\n\n".join(part for part in parts if part)


def _opening(overlap: Overlap, width: int, *, styled: bool) -> str:
    rows = zip(letters(overlap), mask_names(overlap), selected(overlap), strict=True)
    lines = [f"{letter}  {name}: {told}" for letter, name, told in rows]
    if overlap.base is not None:
        lines.append(f"base  {printable(overlap.base.id)}")
    lines.append("")
    sentences: list[tuple[str | None, str]] = []
    if len(overlap.masks) == 2:
        shared = overlap.total()
        sentences.append((shared_sentence(shared, "A", "B"), "1"))
        lifts = {null: against.lift for null, against in shared.nulls.items()}
        sentences.append((lift_sentence(lifts), ""))
    else:
        sentences.append((common_sentence(overlap), "1"))
    sentences.append((other_base_sentence(overlap), "1;33"))
    sentences.append((NO_BASE if overlap.base is None else None, "33"))
    colour = "" if overlap.coverage.is_complete else "1;33"
    sentences.append((f"Coverage {overlap_coverage_sentence(overlap)}.", colour))
    return "\n".join([*lines, *told(sentences, width, styled=styled)])


def _nulls(overlap: Overlap, width: int, *, styled: bool) -> str:
    shared = overlap.total()
    columns = {
        "": ["measured"],
        "shared": [f"{shared.intersection:,}"],
        "o1": [ratio_text(shared.o1)],
        "o2": [ratio_text(shared.o2)],
        "Jaccard": [ratio_text(shared.jaccard)],
        **{title: [""] for title in ("lift", "z", "p", "most o1", "most o2")},
    }
    for null, against in shared.nulls.items():
        for column, cell in zip(columns.values(), null_cells(null, against), strict=True):
            column.append(cell)
    lines = aligned(columns, width)
    return "\n".join([*lines, *wrapped(null_note([lines[0]]), width, "2", styled=styled)])


def _kinds(overlap: Overlap, width: int, *, styled: bool) -> str:
    by_kind = overlap.by_kind()
    rows = {printable(kind): by_kind[kind] for kind in kinds_in_order(by_kind)}
    shares: Mapping[str, Shared] = {**rows, "all": overlap.total()}
    columns = {
        "kind": list(shares),
        "elements": [f"{shared.num_elements:,}" for shared in shares.values()],
        "in A": [f"{shared.num_first:,}" for shared in shares.values()],
        "in B": [f"{shared.num_second:,}" for shared in shares.values()],
        "shared": [f"{shared.intersection:,}" for shared in shares.values()],
        "o1": [ratio_text(shared.o1) for shared in shares.values()],
        "o2": [ratio_text(shared.o2) for shared in shares.values()],
        **_lifts(overlap, shares.values()),
    }
    lines = aligned(columns, width)
    if styled:
        lines[-1] = f"\x1b[1m{lines[-1]}\x1b[0m"
    return "\n".join(
        [*wrapped("By kind, with the lift over each null", width, "", styled=False), *lines]
    )


def _lifts(overlap: Overlap, shares: Iterable[Shared]) -> dict[str, list[str]]:
    """A column for the lift over each null."""
    found = [shared.nulls for shared in shares]
    return {
        short_name(null): [lift_text(nulls[null].lift) for nulls in found] for null in overlap.nulls
    }


def _series(overlap: Overlap, width: int) -> str:
    names, last = letters(overlap), len(overlap.masks) - 1
    shares = [overlap.total(place, last) for place in range(last)]
    columns = {
        "mask": names[:last],
        "selected": [f"{shared.num_first:,}" for shared in shares],
        f"of it in {names[last]}": [ratio_text(shared.o1) for shared in shares],
        f"of {names[last]} in it": [ratio_text(shared.o2) for shared in shares],
        "Jaccard": [ratio_text(shared.jaccard) for shared in shares],
        **_lifts(overlap, shares),
    }
    title = f"Each mask against the last, {names[last]}, with the lift over each null"
    return "\n".join([*wrapped(title, width, "", styled=False), *aligned(columns, width)])


def _matrices(overlap: Overlap, width: int) -> list[str]:
    totals = {pair: overlap.total(*pair) for pair in overlap.pairs}

    def of(row: int, column: int) -> Shared:
        return totals[min(row, column), max(row, column)]

    def share(row: int, column: int) -> str:
        return ratio_text(of(row, column).o1 if row < column else of(row, column).o2)

    def lift(null: Null, row: int, column: int) -> str:
        return lift_text(of(row, column).nulls[null].lift)

    matrices: dict[str, Callable[[int, int], str]] = {
        "Share of the mask of the row that is in that of the column": share,
        "Jaccard": lambda row, column: ratio_text(of(row, column).jaccard),
        **{f"Lift over the {null} null": partial(lift, null) for null in overlap.nulls},
    }
    names = letters(overlap)
    texts = []
    for title, cell in matrices.items():
        columns = {"": names} | {
            name: ["" if row == column else cell(row, column) for row in range(len(names))]
            for column, name in enumerate(names)
        }
        texts.append(
            "\n".join([*wrapped(title, width, "", styled=False), *aligned(columns, width)])
        )
    return texts


def _consensus(overlap: Overlap, width: int) -> str:
    consensus = overlap.consensus()
    columns = {
        "in so many masks": [str(count) for count in range(len(consensus.num_by_count))],
        "weights": [f"{num:,}" for num in consensus.num_by_count],
        **{
            short_name(null): [count_text(num) for num in consensus.expected_by_count(null)]
            for null in overlap.nulls
        },
    }
    title = "Weights in exactly so many masks, and how many each null expects"
    return "\n".join([*wrapped(title, width, "", styled=False), *aligned(columns, width)])
