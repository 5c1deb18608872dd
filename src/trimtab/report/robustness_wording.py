"""How a robustness probe is put into words and columns, the same in the terminal and on the page.

It is drawn from the plain data of the JSON file (docs page "Formats"), with its intervals as they
stand there.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from trimtab.elements.counts import percent
from trimtab.report.wording import magnitude, of_all, plural, printable, within

__all__ = [
    "ARMS",
    "NOISES",
    "asked_text",
    "beside_text",
    "columns_of",
    "mask_text",
    "noise_text",
    "notes_text",
    "verdict",
    "verdict_counts",
]

Data = Mapping[str, Any]

ARMS: Mapping[str, str] = {
    "mask": "the mask",
    "outside": "outside it",
    "random": "at random",
    "magnitude": "magnitude-matched",
}
"""Set of weights -> what it is called."""

NOISES: Mapping[str, str] = {
    "gaussian": "Gaussian noise, its norm relative to that of the weights it hits",
    "gaussian-absolute": "Gaussian noise, relative to the root mean square of the whole tensor",
    "sign": "signs flipped in a share of the weights",
    "bitflip": "one bit of the mantissa flipped in a share of the weights",
}


def mask_text(probe: Data) -> str:
    """What the mask selects, and of what."""
    mask = probe["provenance"]["mask"]
    name = "a mask" if mask["id"] is None else printable(mask["id"])
    return f"{name}: {of_all(mask['num_selected'], mask['num_elements'])} weights selected"


def asked_text(probe: Data) -> str:
    """What was measured, on what, how often."""
    text, questions = probe["text"], probe["questions"]
    seeds = plural(len(probe["settings"]["seeds"]), "seed")
    parts = []
    if questions is not None:
        num = questions["num_questions"]
        parts.append(
            f"{printable(str(questions['source']))}: {plural(num, 'question')}, "
            f"{of_all(probe['num_correct'], num)} right before any noise."
        )
    parts.append(
        f"KL from the unperturbed model on {plural(text['num_tokens'], 'token')} of "
        f"{printable(text['source'])}. {seeds}, computed in {probe['settings']['dtype']}."
    )
    return " ".join(parts)


def noise_text(noise: str) -> str:
    """What a kind of noise is."""
    return NOISES.get(noise, printable(noise))


def verdict(arm: Data) -> str:
    """Whether the mask is more fragile than a set: by the interval of the ratio of divergences."""
    ratio = None if arm["mask_beside_it"] is None else arm["mask_beside_it"]["kl_ratio"]
    if ratio is None or ratio["low"] is None:
        return "open"
    if ratio["low"] > 1:
        return "more"
    return "less" if ratio["high"] < 1 else "open"


def verdict_counts(probe: Data, arm: str) -> dict[str, int]:
    """In how many conditions the mask is more or less fragile than a set, or neither is shown."""
    counts = dict.fromkeys(("more", "less", "open"), 0)
    for summary in probe["summaries"]:
        for told in summary["arms"]:
            if told["arm"] == arm:
                counts[verdict(told)] += 1
    return counts


def beside_text(probe: Data, arm: str) -> str:
    """The mask beside one set, over all conditions, as a sentence."""
    counts = verdict_counts(probe, arm)
    return (
        f"Beside as many weights {_BESIDE[arm]}, noise in the mask moves the model more in "
        f"{counts['more']}, less in {counts['less']} of {plural(sum(counts.values()), 'condition')}"
        f"{'; ' + str(counts['open']) + ' open' if counts['open'] else ''}."
    )


_BESIDE = {
    "outside": "outside it",
    "random": "at random",
    "magnitude": "of the same magnitudes",
}


def columns_of(probe: Data, noise: str) -> dict[str, list[str]]:
    """The table of one kind of noise: heading -> cells, one for each level and set."""
    columns: dict[str, list[str]] = {}
    for summary in probe["summaries"]:
        if summary["noise"] != noise:
            continue
        for told in summary["arms"]:
            beside = told["mask_beside_it"]
            cells = {
                "level": f"{summary['level']:g}" if told["arm"] == probe["arms"][0] else "",
                "noise in": ARMS.get(told["arm"], printable(told["arm"])),
                "in mask": percent(told["share_in_mask"]["mean"], 1),
                "norm": "–"
                if told["relative_norm"] is None
                else magnitude(told["relative_norm"]["mean"]),
                "correct": _share(told["accuracy"]),
                "KL": _interval(told["kl"]),
                "mask ÷ it": "" if beside is None else _interval(beside["kl_ratio"]),
                "correct, mask − it": ""
                if beside is None
                else _points(beside["accuracy_difference"]),
            }
            for heading, cell in cells.items():
                columns.setdefault(heading, []).append(cell)
    if probe["questions"] is None:
        del columns["correct"], columns["correct, mask − it"]
    return columns


def notes_text(probe: Data) -> str:
    """How to read the tables."""
    confidence = f"{100 * probe['confidence']:g} %"
    points = (
        "“correct, mask − it” is the difference in points, seed by seed. "
        if probe["questions"] is not None
        else ""
    )
    return (
        "“norm” is the norm of the noise ÷ that of the weights it could hit, as stored. “mask ÷ "
        "it” is the KL of noise in the mask ÷ the KL of the same noise there (geometric mean): "
        f"above 1 the mask is more fragile. {points}In brackets: {confidence} t-intervals over "
        "seeds, cut where no figure can be, each with sets and noise of its own, of one condition "
        "at a time; the questions are the same."
    )


def _share(over: Data | None) -> str:
    if over is None:
        return "–"
    if over["low"] is None:
        return percent(over["mean"], 1)
    low, high = within(over["low"], over["high"], 0.0, 1.0)
    return f"{percent(over['mean'], 1)} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(over: Data | None) -> str:
    if over is None:
        return "–"
    if over["low"] is None:
        return f"{100 * over['mean']:+.1f}"
    low, high = within(over["low"], over["high"], -1.0, 1.0)
    return f"{100 * over['mean']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _interval(over: Data | None) -> str:
    """Of what is never negative, though its t-interval can be."""
    if over is None:
        return "–"
    if over["low"] is None:
        return magnitude(over["mean"])
    low, high = map(magnitude, within(over["low"], over["high"], 0.0, inf))
    return f"{magnitude(over['mean'])} [{low}, {high}]"
