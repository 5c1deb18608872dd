"""What `trimtab sweep` prints: the plan before training, the cells and arms after it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report import document as doc
from trimtab.report.wording import count, printable, share, within
from trimtab.words import plural

NONE = "–"

TITLES = {
    "asked": "Asked for",
    "consequence": "Follows from it",
    "run file": "Not asked for: the run files differ in it",
}

MOST_NAMES = 40
LONGEST = 40


def sweep_document(sweep: Mapping[str, Any]) -> doc.Document:
    """The results of a sweep.

    Args:
        sweep: The table of its cells and arms, as plain data.
    """
    cells, arms = sweep["cells"], sweep["arms"]
    criteria = sorted({row["criterion"] for row in cells if row["criterion"]})
    measure = f"Unchanged by {', '.join(criteria)}, in the dtype that was saved" if criteria else ""
    blocks: list[doc.Table | doc.Lines] = [_table(measure, list(map(_cell, cells)))]
    if len(arms) < len(cells):
        confidence = f"{100 * sweep['confidence']:g} %"
        title = f"Over seeds: mean [{confidence} t-interval, of shares cut at 0 and 100 %]"
        blocks.append(_table(title, list(map(_arm, arms))))
    failed = [row for row in cells if row["error"]]
    if failed:
        lines = (f"{printable(_label(row, 'cell'))}: {printable(row['error'])}" for row in failed)
        blocks.append(doc.Lines(f"{plural(len(failed), 'cell')} failed", tuple(lines)))
    return doc.Document(sections=[doc.Section("", blocks=tuple(blocks))])


def _table(title: str, rows: Sequence[Mapping[str, str]]) -> doc.Table:
    """A table without the columns that are empty; the first column names the rows."""
    known = [name for name in rows[0] if {row[name] for row in rows} != {NONE}]
    columns = [
        doc.Column[Any](name, role="number" if index else "text", drop=int(name == "seconds"))
        for index, name in enumerate(known)
    ]
    return doc.plain_table(
        title, columns, [[row[name] for name in known] for row in rows], brief=title
    )


def _cell(row: Mapping[str, Any]) -> dict[str, str]:
    num = row["num_elements"]
    return {
        "cell": printable(_label(row, "cell")),
        "unchanged": NONE if num is None else share(num - row["num_changed"], num),
        "saved": row["saved_dtype"] or row["status"],
        "learning rate": f"{row['peak_learning_rate']:g}",
        "steps": count(row["num_steps"]),
        "loss": _number(row["loss_last"], ".4g"),
        "reward": _number(row["reward_last"], ".3f"),
        "right": (
            NONE if row["num_questions"] is None else f"{row['num_right']}/{row['num_questions']}"
        ),
        "seconds": _number(row["seconds_train"], ",.0f"),
    }


def _arm(arm: Mapping[str, Any]) -> dict[str, str]:
    return {
        "arm": printable(_label(arm, "arm")),
        "n": f"{arm['num_finished']}/{arm['num_cells']}",
        "unchanged": _mean(arm["sparsity"], is_share=True),
        "loss": _mean(arm["loss_last"]),
        "reward": _mean(arm["reward_last"]),
        "accuracy": _mean(arm["accuracy"], is_share=True),
    }


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _mean(known: Mapping[str, Any] | None, *, is_share: bool = False) -> str:
    """A mean with its interval; of shares in percent."""
    if known is None:
        return NONE
    mean = percent(known["mean"], 1) if is_share else f"{known['mean']:.4g}"
    if known["high"] is None:
        return mean
    if not is_share:
        return f"{mean} [{known['low']:.4g}, {known['high']:.4g}]"
    low, high = within(known, 0.0, 1.0) or (0.0, 1.0)
    return f"{mean} [{100 * low:.2f}, {100 * high:.2f}]"


def plan_document(plan: Mapping[str, Any]) -> doc.Document:
    """The plan of a sweep: its cells, and the settings in which they differ.

    Args:
        plan: Its plain data.
    """
    cells = plan["cells"]
    num_arms = len({cell["arm"] for cell in cells})
    num_finished = sum(cell["is_finished"] for cell in cells)
    opening = f"{plural(len(cells), 'cell')} in {plural(num_arms, 'arm')}"
    names = [
        f"  {printable(_label(cell, 'name'))}{'  (finished)' if cell['is_finished'] else ''}"
        for cell in cells[:MOST_NAMES]
    ]
    if len(cells) > MOST_NAMES:
        names.append(f"  … and {len(cells) - MOST_NAMES} more")
    finished = f", {num_finished} finished" if num_finished else ""
    blocks = [doc.Lines(f"{opening}{finished}.", tuple(names))]
    masks = {cell["name"]: cell.get("mask_name") for cell in cells}
    for why, title in TITLES.items():
        rows = [row for row in plan["differences"] if row["why"] == why]
        if rows:
            blocks.append(doc.Lines(title, tuple(_differences(rows, masks))))
    blocks.append(doc.Lines("Matched", tuple(_matched(plan["matched"]))))
    return doc.Document(sections=[doc.Section("", blocks=tuple(blocks))])


def _label(row: Mapping[str, Any], name: str) -> str:
    """Name for readers; tables of 0.1 have only `name`."""
    label: str = row.get("label") or row[name]
    return label


def _differences(rows: Sequence[Mapping[str, Any]], masks: Mapping[str, str | None]) -> list[str]:
    """One line per setting; settings of some algorithms only are counted.

    Args:
        rows: The settings.
        masks: Name of each cell -> name of its mask, which is shown in place of its digest.
    """
    shared = [row for row in rows if row["of"] or _num_cells(row) == len(masks)]
    lines = []
    width = max((len(row["setting"]) for row in shared), default=0)
    for row in shared:
        values = "; ".join(
            f"{_value(_named(row['setting'], known, masks))} "
            f"({plural(len(known['cells']), 'cell')})"
            for known in row["values"]
        )
        by = f"  [{', '.join(_key(key) for key in row['of'])}]" if row["of"] else ""
        lines.append(f"  {printable(row['setting']).ljust(width)}  {values}{by}")
    if only := len(rows) - len(shared):
        lines.append(f"  and {plural(only, 'setting')} that only some of the algorithms have")
    return lines


def _named(setting: str, known: Mapping[str, Any], masks: Mapping[str, str | None]) -> Any:
    """A value; of masks the names of those that have this digest."""
    if setting != "mask" or not isinstance(known["value"], str):
        return known["value"]
    names = dict.fromkeys(masks[cell] for cell in known["cells"])
    return " = ".join(name or known["value"] for name in names)


def _num_cells(difference: Mapping[str, Any]) -> int:
    return sum(len(known["cells"]) for known in difference["values"])


def _matched(matched: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Whether the cells have the same learning rate, steps and tokens."""
    texts: dict[str, tuple[str, Callable[[Any], str]]] = {
        "learning_rate": ("learning rate", _value),
        "steps": ("steps", _steps),
        "work_of_a_step": ("tokens per step", _tokens),
    }
    lines = []
    for key, (name, write) in texts.items():
        values = "; ".join(write(known["value"]) for known in matched[key]["values"])
        text = {
            "equal": f"{values} in every cell",
            "asked": f"as asked: {values}",
            "consequence": f"follows from {', '.join(map(_key, matched[key]['of']))}: {values}",
            "run file": f"DIFFERENT, and not asked for: {values}",
        }[matched[key]["why"]]
        lines.append(f"  {name.ljust(15)}  {text}")
    return lines


def _steps(steps: Mapping[str, Any]) -> str:
    return f"{steps['steps']:,}" if "steps" in steps else f"{steps['epochs']:g} epochs of the data"


def _tokens(step: Mapping[str, Any]) -> str:
    bound = "at most about" if step["is_bound"] else "about"
    return f"{bound} {step['tokens']:,} in {plural(step['sequences'], 'sequence')}"


def _key(key: str) -> str:
    return printable(key.removeprefix("factors."))


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = printable(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
