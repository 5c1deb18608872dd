"""The text that `trimtab sweep` prints before it trains: the cells, and how they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.report.wording import plural, printable

__all__ = ["render_plan"]

TITLES = {
    "asked": "Asked for",
    "consequence": "Follows from it",
    "run file": "Not asked for: the run files differ in it",
}

MOST_NAMES = 40
LONGEST = 40


def render_plan(plan: Mapping[str, Any]) -> str:
    """Draw a plan as text.

    Args:
        plan: Its plain data.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    cells = plan["cells"]
    num_arms = len({cell["arm"] for cell in cells})
    num_finished = sum(cell["is_finished"] for cell in cells)
    opening = f"{plural(len(cells), 'cell')} in {plural(num_arms, 'arm')}"
    parts = [[f"{opening}, {num_finished} finished." if num_finished else f"{opening}."]]
    parts[0] += [
        f"  {printable(cell['name'])}{'  (finished)' if cell['is_finished'] else ''}"
        for cell in cells[:MOST_NAMES]
    ]
    if len(cells) > MOST_NAMES:
        parts[0].append(f"  … and {len(cells) - MOST_NAMES} more")
    for why, title in TITLES.items():
        found = [of for of in plan["differences"] if of["why"] == why]
        parts += [_differences(title, found, len(cells))] if found else []
    parts.append(_matched(plan["matched"]))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _differences(title: str, found: Sequence[Mapping[str, Any]], num_cells: int) -> list[str]:
    """One line for each setting; those that nobody asked for and not all have are counted."""
    shared = [of for of in found if of["of"] or _num_cells(of) == num_cells]
    lines = [title]
    width = max((len(of["setting"]) for of in shared), default=0)
    for of in shared:
        values = "; ".join(
            f"{_value(known['value'])} ({plural(len(known['cells']), 'cell')})"
            for known in of["values"]
        )
        by = f"  [{', '.join(_key(key) for key in of['of'])}]" if of["of"] else ""
        lines.append(f"  {printable(of['setting']).ljust(width)}  {values}{by}")
    if only := len(found) - len(shared):
        lines.append(f"  and {plural(only, 'setting')} that only some of the algorithms have")
    return lines


def _num_cells(difference: Mapping[str, Any]) -> int:
    return sum(len(known["cells"]) for known in difference["values"])


def _matched(matched: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the cells take the same learning rate, steps and tokens."""
    texts: dict[str, tuple[str, Callable[[Any], str]]] = {
        "learning_rate": ("learning rate", _value),
        "steps": ("steps", _steps),
        "work_of_a_step": ("tokens per step", _tokens),
    }
    lines = ["Matched"]
    for key, (name, text) in texts.items():
        values = "; ".join(text(known["value"]) for known in matched[key]["values"])
        said = {
            "equal": f"{values} in every cell",
            "asked": f"as asked: {values}",
            "consequence": f"follows from {', '.join(map(_key, matched[key]['of']))}: {values}",
            "run file": f"DIFFERENT, and not asked for: {values}",
        }[matched[key]["why"]]
        lines.append(f"  {name.ljust(15)}  {said}")
    return lines


def _steps(steps: Mapping[str, Any]) -> str:
    return f"{steps['steps']:,}" if "steps" in steps else f"{steps['epochs']:g} epochs of the data"


def _tokens(work: Mapping[str, Any]) -> str:
    how = "at most about" if work["is_bound"] else "about"
    return f"{how} {work['tokens']:,} in {plural(work['sequences'], 'sequence')}"


def _key(key: str) -> str:
    return printable(key.removeprefix("factors."))


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = printable(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
