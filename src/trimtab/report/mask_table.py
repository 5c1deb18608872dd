"""The text that `trimtab mask info` prints: what a mask selects, by kind, and how it was made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from trimtab.elements.counts import percent
from trimtab.masks import Mask
from trimtab.masks.summary import summarise
from trimtab.report.arms import kinds_in_order
from trimtab.report.table import aligned
from trimtab.report.wording import plural, printable

__all__ = ["gaps_text", "render_mask", "selected_text"]

_GAPS = {
    "missing": "only in base",
    "extra": "only in tuned",
    "shape_mismatch": "of another shape",
}


def render_mask(mask: Mask, *, console_width: int | None = None, styled: bool = False) -> str:
    """Draw a mask as text.

    Args:
        mask: The mask.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold, for a terminal that shows it.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    opening = f"{selected_text(mask)} in {plural(len(mask), 'tensor')}"
    lines = [
        f"\x1b[1m{opening}\x1b[0m" if styled else opening,
        f"digest {mask.digest}",
        "",
        *_kinds(mask, width, styled=styled),
    ]
    if steps := mask.provenance.get("steps"):
        lines += ["", "How it was made:", *(f"- {_step(step)}" for step in steps)]
    return "\n".join(lines)


def selected_text(mask: Mask) -> str:
    """How much is selected: `1,834 of 10,592 elements (17.31 %)`."""
    num_selected, num_elements = mask.num_selected(), mask.num_elements()
    share = f" ({percent(num_selected, num_elements)})" if num_elements else ""
    return f"{num_selected:,} of {num_elements:,} elements{share}"


def gaps_text(step: Mapping[str, Any]) -> str:
    """Which tensors an extraction could not compare, in words; empty if it compared all."""
    rows = {where: step.get(name) for name, where in _GAPS.items()}
    return ", ".join(
        f"{plural(len(found), 'tensor')} {where}"
        for where, found in rows.items()
        if isinstance(found, list) and found
    )


def _kinds(mask: Mask, width: int, *, styled: bool) -> list[str]:
    summary = summarise(mask)
    columns: dict[str, list[str]] = {}
    by_kind = {kind: summary["by_kind"][kind] for kind in kinds_in_order(summary["by_kind"])}
    for kind, group in [*by_kind.items(), ("all", summary["total"])]:
        cells = {
            "kind": printable(kind),
            "tensors": f"{group['num_tensors']:,}",
            "elements": f"{group['num_elements']:,}",
            "selected": f"{group['num_selected']:,}",
            "density": percent(group["num_selected"], group["num_elements"]),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    lines = aligned(columns, width)
    if styled:
        lines[0], lines[-1] = f"\x1b[2m{lines[0]}\x1b[0m", f"\x1b[1m{lines[-1]}\x1b[0m"
    return lines


def _step(step: Mapping[str, Any]) -> str:
    """One step in words; steps come from files, so any of their values can be anything."""
    name = step.get("step")
    if name == "extract":
        text = (
            f"extract: changed from {_checkpoint(step.get('base'))} to "
            f"{_checkpoint(step.get('tuned'))} (criterion: {step.get('criterion')})"
        )
        if gaps := gaps_text(step):
            text += f"; not compared in full: {gaps}"
    elif name == "random":
        text = f"random: as many in each tensor as {step.get('of')}, seed {step.get('seed')}"
    elif name == "complement":
        text = f"complement: what {step.get('of')} does not select"
    elif name == "moved":
        text = f"moved: what {_phase(step)} changed (criterion: {step.get('criterion')})"
        if isinstance(looks := step.get("looks"), list):
            text += "".join(f"; {_look(look)}" for look in looks)
        text += _peak(step.get("peak_memory"))
    elif name == "largest gradients":
        text = f"largest gradients: where those of {_phase(step)} sum up to most, in magnitude"
        text += _peak(step.get("peak_memory"))
    else:
        text = ", ".join(f"{key} {_brief(value)}" for key, value in step.items())
    return printable(text)


def _phase(step: Mapping[str, Any]) -> str:
    """The part of a run in which it looked for its mask."""
    return f"{step.get('after_steps')} steps of {step.get('algorithm')} from {step.get('base')}"


def _look(look: Any) -> str:
    """What had moved at some step of a run."""
    if not isinstance(look, Mapping):
        return _brief(look)
    num_moved, share_new = look.get("num_moved"), look.get("share_new")
    moved = f"{num_moved:,}" if isinstance(num_moved, int) else _brief(num_moved)
    new = ""
    if isinstance(share_new, float) and 0.0 <= share_new <= 1.0:
        new = f", {percent(share_new, 1.0)} of them new"
    return f"after step {_brief(look.get('after_steps'))}: {moved} elements{new}"


def _peak(memory: Any) -> str:
    """The memory that looking for a mask took."""
    if not isinstance(memory, Mapping) or not isinstance(memory.get("num_bytes"), int):
        return ""
    return f"; peak {memory['num_bytes'] // 10**6:,} MB of {_brief(memory.get('of'))}"


def _brief(value: Any) -> str:
    """A value of a step; the file and `--json` have what is too long for a line."""
    return "…" if isinstance(value, Mapping | list) else str(value)


def _checkpoint(record: Any) -> str:
    if not isinstance(record, Mapping):
        return str(record)
    revision = record.get("revision")
    return f"{record.get('id')}" if revision is None else f"{record.get('id')}@{revision}"
