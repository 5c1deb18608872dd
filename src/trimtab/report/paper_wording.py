"""How the figures of papers are put into words, in the table and on the page alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from trimtab.words import are, plural

__all__ = [
    "bound_text",
    "expected_text",
    "figure_text",
    "measured_text",
    "ours_text",
    "possible",
    "seeds_text",
    "trial_text",
    "tried_text",
    "verdicts_text",
]

NONE = "–"
SIGNS = {"share": " %", "points": " points", "factor": ""}
"""Unit of a figure -> what stands behind it; all but factors are kept as shares of 1."""

RANGES = {"share": (0.0, 1.0), "points": (-1.0, 1.0)}
"""Unit -> what its figures can be."""


def figure_text(value: float | None, interval: Any, unit: str) -> str:
    """A mean with its interval: `8.1 % [7.2, 9.0]`; a dash for none."""
    if value is None:
        return NONE
    shown = _factor if unit == "factor" else _percent
    sign = SIGNS[unit]
    text = f"{shown(value)}{sign}"
    if interval is None:
        return text
    return f"{text} [{', '.join(map(shown, possible(interval, value, unit)))}]"


def possible(interval: Sequence[float], value: float, unit: str) -> tuple[float, float]:
    """An interval cut where no share, and no difference of shares, can be.

    A mean that is beyond them itself is of no share, whatever its unit says, and is left alone.
    """
    least, most = RANGES.get(unit, (-inf, inf))
    ends = interval[0], interval[1]
    return (max(least, ends[0]), min(most, ends[1])) if least <= value <= most else ends


def verdicts_text(verdicts: Mapping[str, int]) -> str:
    """How many claims have each verdict: `2 hold, 1 does not hold and 4 are not settled`."""
    told = [f"{num} {_said(verdict, num)}" for verdict, num in verdicts.items() if num]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def tried_text(refuted: int, open_: int) -> str:
    """What became of the claims that do not hold: `3 do not, and 1 is not settled`."""
    return f"{refuted} {'does' if refuted == 1 else 'do'} not, and {open_} {are(open_)} not settled"


def _said(verdict: str, num: int) -> str:
    """A verdict as a sentence on so many claims says it."""
    match verdict.split():
        case ["holds"]:
            return "holds" if num == 1 else "hold"
        case ["does", *rest]:
            return " ".join(["does" if num == 1 else "do", *rest])
        case words:
            return " ".join([are(num), *words])


def measured_text(trial: Mapping[str, Any]) -> str:
    """The figure of a trial."""
    return figure_text(trial["value"], trial["interval"], trial["unit"])


def trial_text(trial: Mapping[str, Any]) -> str:
    """What is measured, the figure, of how many seeds, and what is asked of it, if anything is."""
    asked = f", asked for: {bound_text(trial)}" if trial["bound"] else ""
    return f"{trial['about']}: {measured_text(trial)}, n = {seeds_text(trial)}{asked}"


def _percent(share: float) -> str:
    """A share, or a difference of shares, in percent; 0 and 100 only where that is exactly so."""
    text = f"{100 * share:.2f}"
    if text == "100.00" and share < 1:
        return ">99.99"
    if text in ("0.00", "-0.00") and share:
        return "<0.01" if share > 0 else ">-0.01"
    return text


def _factor(value: float) -> str:
    return f"{value:.3f}"


def expected_text(claim: Mapping[str, Any]) -> str:
    """What a paper says, as it is printed there."""
    figures = "; ".join(f"{label} {of}" for label, of in claim["expected"].items())
    return f"{figures} {claim['unit']}".rstrip() if figures else NONE


def bound_text(trial: Mapping[str, Any]) -> str:
    """What a trial asks of its figure, and whether that is a premise; empty for a control."""
    (kind, bound), *_ = trial["bound"].items() or [("", 0.0)]
    scale = 1 if trial["unit"] == "factor" else 100
    shown = f"{bound * scale:g}{SIGNS[trial['unit']]}"
    premise = ", a premise" if trial["premise"] else ""
    asked = {
        "": "",
        "above": f"above {shown}",
        "below": f"below {shown}",
        "within": f"within ± {shown}",
        "equals": f"{shown}, as printed",
    }[kind]
    return f"{asked}{premise}"


def seeds_text(trial: Mapping[str, Any]) -> str:
    """How many seeds a figure is of, and whether there will be more."""
    missing = len(trial["missing"])
    return f"{trial['n']} ({plural(missing, 'run')} to come)" if missing else str(trial["n"])


def ours_text(claim: Mapping[str, Any]) -> str:
    """Every figure that decides a claim, with what is asked of it."""
    return "; ".join(trial_text(trial) for trial in claim["trials"] if trial["bound"]) or NONE
