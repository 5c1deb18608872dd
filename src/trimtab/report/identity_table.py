"""The text that `trimtab identity` prints: inside the mask first, the rest beside it."""

from __future__ import annotations

import shutil

from trimtab.elements.three_way import REGIONS, Agreement
from trimtab.masks.identity.result import Identity
from trimtab.report.arms import kinds_in_order
from trimtab.report.identity_wording import (
    base_share,
    cosine_text,
    inside_headline,
    mask_text,
    origins,
    outside_sentence,
    short_criteria,
    stray_sentence,
    sub_share,
    three_coverage_sentence,
)
from trimtab.report.table import aligned, told, wrapped
from trimtab.report.wording import magnitude, printable

__all__ = ["render_identity_table"]

_NOTES = {
    "SUB = FULL": "“SUB = FULL” is bit equality.",
    "relative L2": "“relative L2” is ‖SUB − FULL‖ / ‖FULL − BASE‖, 1 for doing nothing.",
    "cosine": "“cosine” is that of the updates SUB − BASE and FULL − BASE.",
    "largest difference": "“largest difference” is |SUB − FULL|.",
}


def render_identity_table(
    identity: Identity, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw an identity check as text.

    Args:
        identity: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    parts = [_opening(identity, width, styled=styled), _regions(identity, width, styled=styled)]
    if identity.total.inside.num_elements:
        parts += [_kinds(identity, width, styled=styled), _criteria(identity, width)]
    return "\n\n".join(parts)


def _opening(identity: Identity, width: int, *, styled: bool) -> str:
    figure, words = inside_headline(identity)
    lines = [f"{side.ljust(4)}  {name}" for side, name in origins(identity).items()]
    lines += [f"mask  {mask_text(identity)}", ""]
    sentences = [(f"{figure} {words}.", "1"), (stray_sentence(identity), "1;33")]
    sentences.append((outside_sentence(identity), ""))
    if identity.conversion is not None:
        sentences.append((f"Compared: {printable(identity.conversion)}.", "33"))
    colour = "" if identity.coverage.is_complete else "1;33"
    sentences.append((f"Coverage {three_coverage_sentence(identity.coverage)}.", colour))
    return "\n".join([*lines, *told(sentences, width, styled=styled)])


def _regions(identity: Identity, width: int, *, styled: bool) -> str:
    total = identity.total
    lines = _agreements("region", {name: total.region(name) for name in REGIONS}, width)
    note = " ".join(text for column, text in _NOTES.items() if column in lines[0])
    return "\n".join(
        [*_with_total(lines, styled=styled), *wrapped(note, width, "2", styled=styled)]
    )


def _kinds(identity: Identity, width: int, *, styled: bool) -> str:
    groups = identity.by_kind()
    rows = {printable(kind): groups[kind].inside for kind in kinds_in_order(groups)}
    lines = _agreements("kind", {**rows, "all": identity.total.inside}, width)
    return "\n".join(["Inside the mask, by kind", *_with_total(lines, styled=styled)])


def _agreements(title: str, rows: dict[str, Agreement], width: int) -> list[str]:
    columns = {
        title: list(rows),
        "elements": [f"{row.num_elements:,}" for row in rows.values()],
        "SUB = FULL": [sub_share(row) for row in rows.values()],
        "BASE = FULL": [base_share(row) for row in rows.values()],
        "relative L2": [magnitude(row.relative_l2) for row in rows.values()],
        "cosine": [cosine_text(row.cosine) for row in rows.values()],
        "largest difference": [magnitude(row.difference_max_abs) for row in rows.values()],
    }
    return aligned(columns, width)


def _with_total(lines: list[str], *, styled: bool) -> list[str]:
    if styled:
        return [f"\x1b[2m{lines[0]}\x1b[0m", *lines[1:-1], f"\x1b[1m{lines[-1]}\x1b[0m"]
    return lines


def _criteria(identity: Identity, width: int) -> str:
    inside = identity.total.inside
    keys = short_criteria(inside)
    columns = {
        "criterion": keys,
        "SUB = FULL": [sub_share(inside, key) for key in keys],
        "BASE = FULL": [base_share(inside, key) for key in keys],
    }
    title = wrapped("Inside the mask, under every criterion", width, "", styled=False)
    return "\n".join([*title, *aligned(columns, width)])
