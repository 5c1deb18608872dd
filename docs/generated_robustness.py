"""Tables of `docs/robustness.md`, drawn from results of `trimtab robustness` on the demo's model.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generated import rows

from trimtab.report.records import mask_text
from trimtab.report.robustness import ARMS, columns, noise_text, rows_of, verdict
from trimtab.report.wording import of_all
from trimtab.results.records import MaskRecord

__all__ = ["answer", "measured", "tables"]

Report = Mapping[str, Any]

WORDS = {"more": "more fragile", "less": "less fragile", "open": "no difference shown"}


def answer(report: Report | None) -> None:
    """For every noise, level and set: how much more fragile the mask is."""
    if report is None:
        return
    others = [arm for arm in report["probes"][0]["arms"] if arm != "mask"]
    rows(
        ["noise", "level", *(f"KL, mask ÷ {ARMS[arm]}" for arm in others)],
        (
            [f"`{summary['noise']}`", f"{summary['level']:g}", *_ratios(summary, others)]
            for summary in _summaries(report)
        ),
    )


def _summaries(report: Report) -> Iterator[Mapping[str, Any]]:
    for probe in report["probes"]:
        yield from probe["summaries"]


def _ratios(summary: Mapping[str, Any], others: list[str]) -> Iterator[str]:
    for arm in summary["arms"]:
        if arm["arm"] in others:
            ratio = arm["mask_beside_it"]["kl_ratio"]
            ends = f"{ratio['low']:.3g}, {ratio['high']:.3g}"
            yield f"{ratio['mean']:.3g} [{ends}]: {WORDS[verdict(arm)]}"


def tables(report: Report | None) -> None:
    """The effect of each noise on each set."""
    if report is None:
        return
    for noise in dict.fromkeys(summary["noise"] for summary in _summaries(report)):
        shown = columns(has_questions=True)
        print(f"**`{noise}`**: {noise_text(noise)}.\n")
        rows(
            ["level", "noise in", *(column.heading for column in shown)],
            (
                [*names, *(column.cell(arm) for column in shown)]
                for names, arm in rows_of(list(_summaries(report)), noise)
            ),
        )
        print()


def measured(report: Report | None) -> None:
    """How the probes were run."""
    if report is None:
        return
    first = report["probes"][0]
    info, questions, text = first["provenance"], first["questions"], first["text"]
    sizes = {arm["num_chosen"] for summary in _summaries(report) for arm in summary["arms"]}
    seeds = dict.fromkeys(
        f"{len(probe['settings']['seeds'])} for `{'`, `'.join(probe['settings']['noises'])}`"
        for probe in report["probes"]
    )
    mask = MaskRecord(**info["mask"])
    print(
        f"{mask_text(mask)}; every set has {' or '.join(f'{size:,}' for size in sorted(sizes))} "
        f"weights. {of_all(first['num_correct'], questions['num_questions'])} held-out sums are "
        f"right without noise. KL on {text['num_tokens']} tokens of {text['source']}. Seeds: "
        f"{', '.join(seeds)}. "
        f"{first['settings']['dtype']}, {info['date'][:10]}, trimtab {info['trimtab_version']}, "
        f"torch {info['versions']['torch']}, {info['device']['num_threads']} thread of a CPU. The "
        "commands:\n"
    )
    print("```console")
    for probe in report["probes"]:
        print(f"$ {probe['provenance']['command']}")
    print("```")
