"""The text of `trimtab paper run`: claim, their number, ours, verdict."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.paper_wording import expected_text, trial_text, verdicts_text
from trimtab.report.table import wrapped
from trimtab.report.wording import plural, printable

__all__ = ["render_paper_table"]


def render_paper_table(
    result: Mapping[str, Any], *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw the result of a paper as text: a paragraph for each claim that can be tested here.

    Args:
        result: Its plain data.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and dim, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    paper, scale = result["paper"], result["scale"]
    cells = scale["cells"].values()
    title = f"{paper['title']} (arXiv {paper['arxiv']}, {paper['status']})"
    about = (
        f"Scale {scale['name']}, {sum(cells)} of {len(cells)} runs finished. Figures are means "
        "over seeds with 95 % intervals: t-intervals, of overlaps a jackknife, cut where no share "
        "can be. Differences are paired by seed."
    )
    parts = [[*wrapped(title, width, "1", styled=styled), *wrapped(about, width, "", styled=False)]]
    testable = [claim for claim in result["claims"] if not claim["why"]]
    parts += [_claim(claim, width, styled=styled) for claim in testable]
    parts += _untestable(result["claims"], width, styled=styled)
    claims = plural(len(result["claims"]), "claim")
    parts.append(
        wrapped(f"{claims}: {verdicts_text(result['verdicts'])}.", width, "", styled=False)
    )
    return "\n\n".join("\n".join(lines) for lines in parts)


def _claim(claim: Mapping[str, Any], width: int, *, styled: bool) -> list[str]:
    source = f"{claim['source']}, " if claim["source"] else ""
    heading = f"{claim['id']} ({source}{claim['place']}): {claim['verdict'].upper()}"
    lines = wrapped(printable(heading), width, "1", styled=styled)
    lines += _indented(claim["claim"], width)
    lines += _indented(f"theirs: {expected_text(claim)}", width)
    for trial in claim["trials"]:
        lines += _indented(printable(f"ours: {trial_text(trial)}"), width)
    if claim["note"]:
        lines += _indented(printable(claim["note"]), width)
    return lines


def _untestable(
    claims: Sequence[Mapping[str, Any]], width: int, *, styled: bool
) -> list[list[str]]:
    """A paragraph for each reason why claims cannot be tested, with their ids."""
    by_reason: dict[str, list[str]] = {}
    for claim in claims:
        if claim["why"]:
            by_reason.setdefault(claim["why"], []).append(claim["id"])
    return [
        [
            *wrapped(printable(f"Not testable here: {why}"), width, "1", styled=styled),
            *_indented(printable(", ".join(ids)), width),
        ]
        for why, ids in by_reason.items()
    ]


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False
    )
