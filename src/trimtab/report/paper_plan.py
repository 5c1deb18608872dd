"""The text of `trimtab paper show`, and what `trimtab paper run` prints before it trains."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping
from typing import Any

from trimtab.report.wording import plural

__all__ = ["render_claims", "render_paper_plan"]

MOST_NAMES = 12


def render_paper_plan(plan: Mapping[str, Any]) -> str:
    """Draw the plan of a paper's runs as text.

    Args:
        plan: Its plain data.
    """
    cells = plan["cells"]
    missing = [name for name, is_done in cells.items() if not is_done]
    seeds = ", ".join(map(str, plan["seeds"]))
    lines = [
        f"{plan['paper']} at scale {plan['scale']}: {plural(plan['num_claims'], 'claim')}, "
        f"{plural(len(cells), 'run')} (seeds {seeds}), {len(cells) - len(missing)} finished.",
    ]
    if missing:
        lines.append(
            f"To train: {plural(len(missing), 'run')}, about {_duration(plan['minutes'])} on one "
            "CPU core, each kept as soon as it is finished:"
        )
        lines += [f"  {name}" for name in missing[:MOST_NAMES]]
        if len(missing) > MOST_NAMES:
            lines.append(f"  … and {len(missing) - MOST_NAMES} more")
    if plan["public"]:
        lines.append(f"Published checkpoints to compare: {', '.join(plan['public'])}.")
    return "\n".join(lines)


def render_claims(paper: Mapping[str, Any], *, console_width: int | None = None) -> str:
    """Draw what a paper claims, and how it is tried, as text.

    Args:
        paper: Its plain data.
        console_width: Characters in a line; None asks the terminal.
    """
    width = console_width or shutil.get_terminal_size().columns
    lines = [f"{paper['title']}", f"arXiv {paper['arxiv']}, {paper['status']}"]
    for claim in paper["claims"]:
        lines += ["", f"{claim['id']}  ({claim['place']})"]
        lines += _indented(claim["claim"], width)
        figures = "; ".join(f"{label} {of}" for label, of in claim["expected"].items())
        if figures:
            lines += _indented(f"Theirs: {figures} {claim['unit']}".rstrip(), width)
        for trial in claim["trials"]:
            lines += _indented(f"Tried at {', '.join(trial['scales'])}: {trial['about']}", width)
        if claim["untestable"]:
            lines += _indented(f"Not testable here: {claim['untestable']}", width)
    if paper["public"]:
        lines += ["", "Published checkpoints, to be named in --checkpoints MAP.toml:"]
        lines += [
            f"  {pair['id']}  {pair['base']} → {pair['tuned']} ({pair['place']})"
            for pair in paper["public"]
        ]
    return "\n".join(lines)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="  ")


def _duration(minutes: float) -> str:
    if minutes < 90:
        return plural(max(1, round(minutes)), "minute")
    return f"{minutes / 60:.1f} hours"
