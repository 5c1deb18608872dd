"""Sections of the page of a paper's result: its claims, and every figure behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trimtab.report.blocks import Column, Figure, Key, Section, Table, table
from trimtab.report.paper_charts import forest, learned_beside_unchanged
from trimtab.report.paper_wording import (
    bound_text,
    expected_text,
    measured_text,
    ours_text,
    possible,
    seeds_text,
)

__all__ = ["TRIED", "claims_section", "figures_section", "frontier_section"]

Data = Mapping[str, Any]

TRIED = ("holds", "does not hold", "not settled")
"""Verdicts of claims that something was measured for."""

_CONTROL = "control"
_LOOKS = {TRIED[0]: "0", TRIED[1]: "1", TRIED[2]: "3", _CONTROL: "ink"}
"""Verdict of a figure, or that it is a control -> its sign in the legend."""
_COLOURS = {
    verdict: "var(--soft)" if look == "ink" else f"var(--arm-{look})"
    for verdict, look in _LOOKS.items()
}
_UNITS = {
    "share": ("Shares, in percent", "%"),
    "points": ("Differences, in points", "points"),
    "factor": ("Ratios", ""),
}
"""Unit of a figure -> title of its chart, and unit of the axis. Claims in the same unit are of the
same thing; others write theirs out, as in "% of the most"."""


def claims_section(claims: Sequence[Data]) -> Section:
    """A row for each claim: what was tried in full view, the others folded by why not."""
    tried = [claim for claim in claims if claim["verdict"] in TRIED]
    others: dict[str, list[Data]] = {}
    for claim in claims:
        if claim["verdict"] not in TRIED:
            others.setdefault(claim["verdict"], []).append(claim)
    return Section(
        "Claims",
        (
            "A claim holds where the whole interval is on its side of the bound, and does not "
            "where all of it is on the other; one with the bound in it, or of one seed, settles "
            "nothing.",
        ),
        (
            *([_claims("Tried: their figures and ours", tried, is_folded=False)] if tried else []),
            *(
                _claims(f"{verdict[0].upper()}{verdict[1:]}: {len(of)}", of, is_folded=True)
                for verdict, of in others.items()
            ),
        ),
    )


def _claims(title: str, claims: Sequence[Data], *, is_folded: bool) -> Table:
    columns: list[Column] = [
        ("claim", "prose"),
        ("theirs", "prose"),
        ("ours", "prose"),
        ("verdict", "word"),
        ("to know", "prose"),
    ]
    rows = [
        (
            f"{claim['claim']} ({_place(claim)})",
            expected_text(claim),
            ours_text(claim),
            claim["verdict"],
            " ".join(filter(None, (claim["why"] and f"{claim['why']}.", claim["note"]))),
        )
        for claim in claims
    ]
    return table(title, columns, rows, is_folded=is_folded)


def _place(claim: Data) -> str:
    return f"{claim['source']}, {claim['place']}" if claim["source"] else str(claim["place"])


def figures_section(claims: Sequence[Data]) -> Section | None:
    """A chart for each unit with every figure of it that was measured, controls too."""
    figures = tuple(
        _figure(unit, of)
        for unit in ("share", "points", "factor")
        if (of := [(claim, trial) for claim, trial in _measured(claims) if trial["unit"] == unit])
    )
    return Section("Figures", (), figures) if figures else None


def _measured(claims: Iterable[Data]) -> Iterable[tuple[Data, Data]]:
    for claim in claims:
        for trial in claim["trials"]:
            if trial["value"] is not None:
                yield claim, trial


def _figure(unit: str, of: Sequence[tuple[Data, Data]]) -> Figure:
    title, axis = _UNITS[unit]
    scale = 1 if unit == "factor" else 100
    is_log = unit == "factor" and all(min(_ends(trial)) > 0 for _, trial in of)
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[Data, Data]] = {}
    for claim, trial in of:  # one row for a figure; where it is asked something, that is shown
        if trial["about"] not in shown or (
            trial["bound"] and not shown[trial["about"]][1]["bound"]
        ):
            shown[trial["about"]] = claim, trial
    for name, (claim, trial) in shown.items():
        low, high = _ends(trial)
        rows.append(
            {
                **_mark(name, "ours", scale * trial["value"]),
                "low": scale * low,
                "high": scale * high,
                "arm": trial["verdict"] or _CONTROL,
                **_tips(
                    name,
                    "ours",
                    measured_text(trial),
                    seeds_text(trial),
                    trial["verdict"] or _CONTROL,
                ),
            }
        )
        for bound in _bounds(trial):
            tips = _tips(name, "asked for", bound_text(trial), "–", "–")
            rows.append({**_mark(name, "asked", scale * bound), **tips})
        if trial is claim["trials"][0] and axis and claim["unit"] == axis:
            rows += [
                {
                    **_mark(name, "theirs", value),
                    **_tips(name, label, f"{value:g} {claim['unit']}", "–", "–"),
                }
                for label, value in claim["expected"].items()
                if isinstance(value, int | float)
            ]
    keys = [Key(f"dot-{look}", verdict) for verdict, look in _LOOKS.items()]
    return Figure(
        title,
        forest(rows, list(shown), _COLOURS, title=axis, is_log=is_log),
        "Dots are means over seeds, with their 95 % t-intervals (of overlaps a jackknife), cut "
        "where no share can be. A tick is the bound that the whole interval must be beyond; two "
        "ticks are bounds that it must be between. Rings are the paper's figures, of other models.",
        _every(title, of),
        (
            *keys,
            Key("whisker", "95 % interval"),
            Key("tick", "asked for"),
            Key("ring-ink", "theirs"),
        ),
    )


def _mark(name: str, kind: str, value: float) -> dict[str, Any]:
    return {"name": name, "kind": kind, "value": value}


def _tips(*texts: str) -> dict[str, str]:
    return {f"tip_{place}": text for place, text in enumerate(texts)}


def _ends(trial: Data) -> tuple[float, float]:
    """Of the interval of a figure, as it is drawn."""
    value: float = trial["value"]
    if trial["interval"] is None:
        return value, value
    return possible(trial["interval"], value, trial["unit"])


def _bounds(trial: Data) -> list[float]:
    """Where the bound lies on the axis: at a distance from 0 on both sides."""
    return [
        sign * value
        for kind, value in trial["bound"].items()
        if kind != "digits"
        for sign in ((-1, 1) if kind == "within" else (1,))
    ]


def _every(title: str, of: Sequence[tuple[Data, Data]]) -> Table:
    columns: list[Column] = [
        ("claim", "code"),
        ("figure", "text"),
        ("mean [95 % interval]", "text"),
        ("n", "text"),
        ("asked for", "text"),
    ]
    rows = [
        (
            claim["id"],
            trial["about"],
            measured_text(trial),
            seeds_text(trial),
            bound_text(trial) or _CONTROL,
        )
        for claim, trial in of
    ]
    return table(f"{title}, controls too", columns, rows)


def frontier_section(claims: Sequence[Data]) -> Section | None:
    """Runs by what they left unchanged and what they learned, of claims that ask for both."""
    figures = tuple(figure for claim in claims if (figure := _frontier(claim)) is not None)
    return Section("Sparsity and learning", (), figures) if figures else None


def _frontier(claim: Data) -> Figure | None:
    by_arm: dict[str, dict[str, Data]] = {}
    for trial in claim["trials"]:
        if trial["value"] is not None and trial["measure"] in ("sparsity", "gain"):
            by_arm.setdefault(trial["arms"][0], {})[trial["measure"]] = trial
    both = {arm: of for arm, of in by_arm.items() if len(of) == 2}
    if len(both) < 2:
        return None
    rows, cells = [], []
    for arm, of in both.items():
        sparsity, gain = of["sparsity"], of["gain"]
        cells.append((arm, measured_text(sparsity), measured_text(gain), seeds_text(sparsity)))
        rows.append(
            {
                "name": arm,
                **_percents("unchanged", sparsity),
                **_percents("gained", gain),
                **_tips(*cells[-1]),
            }
        )
    columns: list[Column] = [("runs", "code"), ("unchanged", "text"), ("gained", "text")]
    return Figure(
        f"{claim['id']}: accuracy gained, weights unchanged",
        learned_beside_unchanged(rows),
        "Sparse and learned is to the upper right; sparse and nothing learned is to the lower "
        "right. Lines are 95 % t-intervals over seeds.",
        table("Runs", [*columns, ("n", "text")], cells),
        (Key("whisker", "95 % interval"),),
    )


def _percents(name: str, trial: Data) -> dict[str, float]:
    low, high = _ends(trial)
    values = {name: trial["value"], f"{name}_low": low, f"{name}_high": high}
    return {key: 100 * value for key, value in values.items()}
