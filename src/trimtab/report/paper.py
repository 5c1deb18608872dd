"""The report of a paper's result: which claims hold, and the figures behind them.

`claims_document` and `plan_document` are printed by `trimtab paper show` and `run`. All take plain
data, since `to_dict` derives the figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import Any

from trimtab.report import document as doc
from trimtab.report.charts import Marks, marks_of
from trimtab.report.paper_charts import forest, learned_beside_unchanged
from trimtab.report.wording import NONE, Shown, printable
from trimtab.results.result import Result
from trimtab.words import are, plural

Data = Mapping[str, Any]

_MOST_NAMES = 12
_TRIED = ("holds", "does not hold", "not settled")
"""Verdicts of claims that were tested."""

_CONTROL = "control"
_LOOKS = {_TRIED[0]: "0", _TRIED[1]: "1", _TRIED[2]: "3", _CONTROL: "ink"}
"""Verdict of a figure, or `control` -> its symbol in the legend."""

_COLOURS = {
    verdict: "var(--soft)" if look == "ink" else f"var(--arm-{look})"
    for verdict, look in _LOOKS.items()
}
_UNITS = {
    "share": ("Shares, in percent", "%"),
    "points": ("Differences, in points", "points"),
    "factor": ("Ratios", ""),
}
"""Unit of a figure -> title of its chart, and unit of the axis."""

_SIGNS = {"share": " %", "points": " points", "factor": ""}
"""Unit of a figure -> its suffix; all but factors are stored as shares of 1."""

_RANGES = {"share": (0.0, 1.0), "points": (-1.0, 1.0)}
"""Unit -> range of its figures."""


def figure_text(value: float | None, interval: Sequence[float] | None, unit: str) -> Shown:
    """A mean with its interval: `8.1 % [7.2, 9.0]`; a dash for None."""
    if value is None:
        return NONE
    write = "{:.3f}".format if unit == "factor" else _percent
    text = f"{write(value)}{_SIGNS[unit]}"
    if interval is not None:
        text += f" [{', '.join(map(write, _possible(interval, value, unit)))}]"
    return Shown(text, value)


def _possible(interval: Sequence[float], value: float, unit: str) -> tuple[float, float]:
    """An interval cut at the range of its unit, unless the mean itself is outside the range."""
    low, high = interval
    least, most = _RANGES.get(unit, (-inf, inf))
    return (max(least, low), min(most, high)) if least <= value <= most else (low, high)


def _percent(share: float) -> str:
    """A share, or a difference of shares, in percent; 0 and 100 only if exact."""
    text = f"{100 * share:.2f}"
    if text == "100.00" and share < 1:
        return ">99.99"
    if text in ("0.00", "-0.00") and share:
        return "<0.01" if share > 0 else ">-0.01"
    return text


def measured_text(trial: Data) -> Shown:
    """The figure of a trial."""
    return figure_text(trial["value"], trial["interval"], trial["unit"])


def seeds_text(trial: Data) -> Shown:
    """Number of seeds of a figure, and of runs that are missing."""
    missing = len(trial["missing"])
    more = f" ({plural(missing, 'run')} to come)" if missing else ""
    return Shown(f"{trial['n']}{more}", trial["n"])


def bound_text(trial: Data) -> str:
    """The required bound of a trial, and whether it is a premise; empty for a control."""
    (kind, bound), *_ = trial["bound"].items() or [("", 0.0)]
    scale = 1 if trial["unit"] == "factor" else 100
    shown = f"{bound * scale:g}{_SIGNS[trial['unit']]}"
    requirement = {
        "": "",
        "above": f"above {shown}",
        "below": f"below {shown}",
        "within": f"within ± {shown}",
        "equals": f"{shown}, as printed",
    }[kind]
    return f"{requirement}{', a premise' if trial['premise'] else ''}"


def _trial_text(trial: Data) -> str:
    """What is measured, the figure, the number of seeds, and the required bound."""
    requirement = f", asked for: {bound_text(trial)}" if trial["bound"] else ""
    return f"{trial['about']}: {measured_text(trial)}, n = {seeds_text(trial)}{requirement}"


def expected_text(claim: Data) -> str:
    """The figures of the paper, as printed there."""
    figures = "; ".join(f"{label} {figure}" for label, figure in claim["expected"].items())
    return f"{figures} {claim['unit']}".rstrip() if figures else NONE


def verdicts_text(verdicts: Mapping[str, int]) -> str:
    """Number of claims by verdict: `2 hold, 1 does not hold and 4 are not settled`."""
    parts = [f"{num} {_agreeing(verdict, num)}" for verdict, num in verdicts.items() if num]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _agreeing(verdict: str, num: int) -> str:
    """A verdict on a number of claims, as the end of a sentence."""
    match verdict.split():
        case ["holds"]:
            return "holds" if num == 1 else "hold"
        case ["does", *rest]:
            return " ".join(["does" if num == 1 else "do", *rest])
        case words:
            return " ".join([are(num), *words])


def _place(claim: Data) -> str:
    return f"{claim['source']}, {claim['place']}" if claim["source"] else str(claim["place"])


def paper_document(result: Result) -> doc.Document:
    """The document of a paper's result."""
    data = result.to_dict()
    paper, scale, claims = data["paper"], data["scale"], data["claims"]
    cells = scale["cells"].values()
    number: str = paper["arxiv"]
    papers = f"arXiv {number}" if number[:1].isdigit() else f"{number} papers"
    verdicts = f"{plural(len(claims), 'claim')}: {verdicts_text(data['verdicts'])}."
    return doc.Document(
        title=f"Which claims hold: {paper['title']}",
        heading=paper["title"],
        subtitle=(f"{papers} ({paper['status']})", f"our runs, scale {scale['name']}"),
        headlines=[f"{paper['title']} ({papers}, {paper['status']})", verdicts],
        summary=[
            f"Scale {scale['name']}, {sum(cells)} of {len(cells)} runs finished. Figures are means "
            "over seeds with 95 % intervals: t-intervals, of overlaps a jackknife, cut where no "
            "share can be. Differences are paired by seed."
        ],
        heroes=[_hero(data["verdicts"])],
        sections=[_claims(claims), _frontiers(claims), _figures(claims)],
        source=f"{papers} · scale {scale['name']}",
        date=data["provenance"].get("date", ""),
        coverage=f"{sum(cells)} of {len(cells)} planned runs",
        prints_coverage=False,
        warnings=[printable(f"{name} failed: {why}") for name, why in scale["failed"].items()],
    )


def _hero(verdicts: Mapping[str, int]) -> doc.Hero:
    held, refuted, unsettled = (verdicts[verdict] for verdict in _TRIED)
    num_tried = held + refuted + unsettled
    return doc.Hero(
        "",
        f"{held} of {num_tried}",
        f"claims that we could try {'holds' if held == 1 else 'hold'} in our runs; {refuted} "
        f"{'does' if refuted == 1 else 'do'} not, and {unsettled} {are(unsettled)} not settled",
        held / max(1, num_tried),
        "hold",
    )


_CLAIM = (
    doc.Column[Data]("theirs", expected_text, "prose"),
    doc.Column[Data](
        "ours",
        lambda claim: "; ".join(_trial_text(t) for t in claim["trials"] if t["bound"]) or NONE,
        "prose",
    ),
    doc.Column[Data]("verdict", lambda claim: claim["verdict"], "word"),
    doc.Column[Data](
        "to know",
        lambda claim: " ".join(filter(None, (claim["why"] and f"{claim['why']}.", claim["note"]))),
        "prose",
    ),
)


def _claims(claims: Sequence[Data]) -> doc.Section:
    """A row for each claim: tested claims first, the others folded by reason."""
    by_verdict: dict[str, list[Data]] = {}
    for claim in claims:
        title = "" if claim["verdict"] in _TRIED else claim["verdict"]
        by_verdict.setdefault(title, []).append(claim)
    tried = by_verdict.pop("", [])
    blocks: list[doc.Table | doc.Lines] = [
        _paragraph(claim) for claim in claims if not claim["why"]
    ]
    blocks += _untestable(claims)
    if tried:
        blocks.append(_claims_table("Tried: their figures and ours", tried, is_folded=False))
    for verdict, others in by_verdict.items():
        title = f"{verdict[0].upper()}{verdict[1:]}: {len(others)}"
        blocks.append(_claims_table(title, others, is_folded=True))
    return doc.Section(
        "Claims",
        (
            "A claim holds where the whole interval is on its side of the bound, and does not "
            "where all of it is on the other; one with the bound in it, or of one seed, settles "
            "nothing.",
        ),
        tuple(blocks),
    )


def _claims_table(title: str, claims: Sequence[Data], *, is_folded: bool) -> doc.Table:
    rows = [((f"{claim['claim']} ({_place(claim)})",), claim) for claim in claims]
    return doc.table(title, rows, _CLAIM, keys=(("claim", "prose"),), is_folded=is_folded)


def _paragraph(claim: Data) -> doc.Lines:
    """A claim with every figure behind it, for a terminal."""
    lines = [
        claim["claim"],
        f"theirs: {expected_text(claim)}",
        *(f"ours: {_trial_text(trial)}" for trial in claim["trials"]),
        *([claim["note"]] if claim["note"] else []),
    ]
    title = f"{claim['id']} ({_place(claim)}): {claim['verdict'].upper()}"
    return doc.Lines(printable(title), tuple(map(printable, lines)), is_wrapped=True)


def _untestable(claims: Sequence[Data]) -> Iterator[doc.Lines]:
    """A paragraph for each reason why claims cannot be tested, with their ids."""
    for why in dict.fromkeys(claim["why"] for claim in claims if claim["why"]):
        ids = ", ".join(claim["id"] for claim in claims if claim["why"] == why)
        title = printable(f"Not testable here: {why}")
        yield doc.Lines(title, (printable(ids),), is_wrapped=True)


_Measured = tuple[Data, Data]
"""A claim, and one of its trials that has a figure."""


def _figures(claims: Sequence[Data]) -> doc.Section | None:
    """A chart for each unit with every measured figure, including controls."""
    measured = [
        (claim, trial)
        for claim in claims
        for trial in claim["trials"]
        if trial["value"] is not None
    ]
    figures = tuple(
        _figure(unit, trials)
        for unit in _UNITS
        if (trials := [pair for pair in measured if pair[1]["unit"] == unit])
    )
    return doc.Section("Figures", (), figures) if figures else None


_TRIAL = (
    doc.Column[Data]("mean [95 % interval]", measured_text, "text"),
    doc.Column[Data]("n", seeds_text, "text"),
    doc.Column[Data]("asked for", lambda trial: bound_text(trial) or _CONTROL, "text"),
)


def _figure(unit: str, trials: Sequence[_Measured]) -> doc.Figure:
    title, axis = _UNITS[unit]
    shown: dict[str, _Measured] = {}
    for claim, trial in trials:  # one row per figure, preferably the trial with a bound
        about = trial["about"]
        if about not in shown or (trial["bound"] and not shown[about][1]["bound"]):
            shown[about] = claim, trial
    marks = [mark for pair in shown.values() for mark in _marks(*pair, axis)]
    is_log = unit == "factor" and all(min(_ends(trial)) > 0 for _, trial in trials)
    tips = ("figure", "", "value", "seeds", "verdict")
    return doc.Figure(
        title,
        lambda: forest(Marks(marks, tips), list(shown), _COLOURS, title=axis, is_log=is_log),
        "Dots are means over seeds, with their 95 % t-intervals (of overlaps a jackknife), cut "
        "where no share can be. A tick is the bound that the whole interval must be beyond; two "
        "ticks are bounds that it must be between. Rings are the paper's figures, of other models.",
        doc.table(
            f"{title}, controls too",
            [((claim["id"], trial["about"]), trial) for claim, trial in trials],
            _TRIAL,
            keys=(("claim", "code"), "figure"),
        ),
        (
            *(doc.Key(f"dot-{look}", verdict) for verdict, look in _LOOKS.items()),
            doc.Key("whisker", "95 % interval"),
            doc.Key("tick", "asked for"),
            doc.Key("ring-ink", "theirs"),
        ),
    )


def _marks(claim: Data, trial: Data, axis: str) -> Iterator[dict[str, Any]]:
    """The dot of a figure, the ticks of its bound, and the rings of the paper's figures."""
    scale = 1 if trial["unit"] == "factor" else 100
    verdict = trial["verdict"] or _CONTROL
    low, high = _ends(trial)

    def mark(kind: str, value: float, *texts: str, **more: Any) -> dict[str, Any]:
        tips = {f"tip_{index}": text for index, text in enumerate((trial["about"], *texts))}
        return {"name": trial["about"], "kind": kind, "value": value, **more, **tips}

    ends = {"low": scale * low, "high": scale * high}
    texts = ("ours", measured_text(trial), seeds_text(trial), verdict)
    yield mark("ours", scale * trial["value"], *texts, **ends, arm=verdict)
    for kind, bound in trial["bound"].items():
        for sign in (-1, 1) if kind == "within" else (1,) if kind != "digits" else ():
            yield mark("asked", scale * sign * bound, "asked for", bound_text(trial), NONE, NONE)
    if trial is claim["trials"][0] and axis and claim["unit"] == axis:
        for label, value in claim["expected"].items():
            if isinstance(value, int | float):
                yield mark("theirs", value, label, f"{value:g} {claim['unit']}", NONE, NONE)


def _ends(trial: Data) -> tuple[float, float]:
    """Ends of the interval of a figure, as drawn."""
    value: float = trial["value"]
    if trial["interval"] is None:
        return value, value
    return _possible(trial["interval"], value, trial["unit"])


def _frontiers(claims: Sequence[Data]) -> doc.Section | None:
    """Runs by sparsity and accuracy gained, for claims with both."""
    figures = tuple(figure for claim in claims if (figure := _frontier(claim)) is not None)
    return doc.Section("Sparsity and learning", (), figures) if figures else None


_RUN = (
    doc.Column[tuple[Data, Data]]("unchanged", lambda row: measured_text(row[0]), "text"),
    doc.Column[tuple[Data, Data]]("gained", lambda row: measured_text(row[1]), "text"),
    doc.Column[tuple[Data, Data]]("n", lambda row: seeds_text(row[0]), "text"),
)


_FRONTIER = ("sparsity", "gain")


def _frontier(claim: Data) -> doc.Figure | None:
    by_arm: dict[str, dict[str, Data]] = {}
    for trial in claim["trials"]:
        # A pair of published checkpoints has a sparsity and no arm.
        if trial["arms"] and trial["value"] is not None and trial["measure"] in _FRONTIER:
            by_arm.setdefault(trial["arms"][0], {})[trial["measure"]] = trial
    rows = [
        ((arm,), (figures["sparsity"], figures["gain"]))
        for arm, figures in by_arm.items()
        if len(figures) == 2
    ]
    if len(rows) < 2:
        return None
    marks = marks_of(
        rows,
        ("runs",),
        _RUN,
        lambda names, row: {
            "name": names[0],
            **_percents("unchanged", row[0]),
            **_percents("gained", row[1]),
        },
    )
    return doc.Figure(
        f"{claim['id']}: accuracy gained, weights unchanged",
        lambda: learned_beside_unchanged(marks),
        "Sparse and learned is to the upper right; sparse and nothing learned is to the lower "
        "right. Lines are 95 % t-intervals over seeds.",
        doc.table("Runs", rows, _RUN, keys=(("runs", "code"),)),
        (doc.Key("whisker", "95 % interval"),),
    )


def _percents(name: str, trial: Data) -> dict[str, float]:
    low, high = _ends(trial)
    values = {name: trial["value"], f"{name}_low": low, f"{name}_high": high}
    return {key: 100 * value for key, value in values.items()}


def claims_document(paper: Data) -> doc.Document:
    """The claims of a paper, and how they are tested.

    Args:
        paper: Its plain data.
    """
    blocks = [
        doc.Lines(
            f"{claim['id']}  ({claim['place']})",
            (
                claim["claim"],
                *([f"theirs: {expected_text(claim)}"] if claim["expected"] else []),
                *(
                    f"tried at {', '.join(trial['scales'])}: {trial['about']}"
                    for trial in claim["trials"]
                ),
                *([f"not testable here: {claim['untestable']}"] if claim["untestable"] else []),
            ),
            is_wrapped=True,
        )
        for claim in paper["claims"]
    ]
    if paper["public"]:
        pairs = (
            f"{pair['id']}  {pair['base']} → {pair['tuned']} ({pair['place']})"
            for pair in paper["public"]
        )
        title = "Published checkpoints, to be named in --checkpoints MAP.toml:"
        blocks.append(doc.Lines(title, tuple(pairs), is_wrapped=True))
    return doc.Document(
        headlines=[paper["title"]],
        summary=[f"arXiv {paper['arxiv']}, {paper['status']}"],
        sections=[doc.Section("Claims", blocks=tuple(blocks))],
    )


def plan_document(plan: Data) -> doc.Document:
    """The plan of a paper's runs.

    Args:
        plan: Its plain data.
    """
    cells = plan["cells"]
    missing = [name for name, is_done in cells.items() if not is_done]
    blocks = []
    if missing:
        names = missing[:_MOST_NAMES]
        if more := len(missing) - len(names):
            names.append(f"… and {more} more")
        title = (
            f"To train: {plural(len(missing), 'run')}, about {_duration(plan['minutes'])} on one "
            "CPU core, each kept as soon as it is finished:"
        )
        blocks.append(doc.Lines(title, tuple(names), is_wrapped=True))
    if plan["public"]:
        blocks.append(
            doc.Lines(f"Published checkpoints to compare: {', '.join(plan['public'])}.", ())
        )
    return doc.Document(
        headlines=[
            f"{plan['paper']} at scale {plan['scale']}: {plural(plan['num_claims'], 'claim')}, "
            f"{plural(len(cells), 'run')} (seeds {', '.join(map(str, plan['seeds']))}), "
            f"{len(cells) - len(missing)} finished."
        ],
        sections=[doc.Section("Plan", blocks=tuple(blocks))],
    )


def _duration(minutes: float) -> str:
    if minutes < 90:
        return plural(max(1, round(minutes)), "minute")
    return f"{minutes / 60:.1f} hours"
