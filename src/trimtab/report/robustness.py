"""Sections of the page on what noise in a mask does, and what it does elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.report.blocks import Figure, Key, Section, Table, table
from trimtab.report.records import checkpoints_table, settings_table
from trimtab.report.robustness_charts import divergence_by_level
from trimtab.report.robustness_wording import ARMS, columns_of, noise_text, notes_text
from trimtab.report.wording import printable
from trimtab.results.records import CheckpointRecord

__all__ = ["noises", "robustness_provenance"]

Data = Mapping[str, Any]

_WORDS = ("level", "noise in")


def noises(probe: Data) -> Section:
    """A figure and a table for each kind of noise."""
    figures = tuple(_figure(probe, noise) for noise in probe["settings"]["noises"])
    return Section("Noise", (notes_text(probe),), figures)


def _figure(probe: Data, noise: str) -> Figure:
    mask, *others = (ARMS.get(arm, printable(arm)) for arm in probe["arms"])
    names = [*others, mask]  # so that each set has the colour of its headline
    columns = columns_of(probe, noise)
    rows: list[dict[str, Any]] = []
    summaries = [told for told in probe["summaries"] if told["noise"] == noise]
    cells = [(summary, told) for summary in summaries for told in summary["arms"]]
    for place, (summary, told) in enumerate(cells):
        if told["kl"]["least"] > 0:  # a logarithm has no place for what rounding took
            rows.append(
                {
                    "arm": ARMS.get(told["arm"], printable(told["arm"])),
                    "level": summary["level"],
                    "kl": told["kl"]["mean"],
                    "least": told["kl"]["least"],
                    "most": told["kl"]["most"],
                    "tip_0": columns["noise in"][place],
                    "tip_1": f"{summary['level']:g}",
                    "tip_2": columns["KL"][place],
                    "tip_3": columns["correct"][place] if "correct" in columns else "–",
                }
            )
    return Figure(
        f"{printable(noise)}: {noise_text(noise)}",
        divergence_by_level(rows, names),
        "Higher is more fragile. Points are means over seeds, whiskers go from the least to the "
        "most of them. Both axes are logarithmic.",
        _table(columns),
        (
            *(Key(f"dot-{place}", name) for place, name in enumerate(names)),
            Key("whisker", "least to most of the seeds"),
        ),
    )


def _table(columns: Mapping[str, list[str]]) -> Table:
    return table(
        "The same in figures",
        [(name, "text" if name in _WORDS else "number") for name in columns],
        list(zip(*columns.values(), strict=True)),
    )


def robustness_provenance(probe: Data) -> Section:
    """Ids, hashes and how the probe was run."""
    told = dict(probe["provenance"])
    records = {name: CheckpointRecord(**told.pop(name)) for name in ("checkpoint", "base")}
    mask = {key: value for key, value in told.pop("mask").items() if key != "provenance"}
    blocks = [
        checkpoints_table(records),
        settings_table("Mask", mask, is_folded=False),
        settings_table("Probe", {**probe["settings"], **told}, is_folded=False),
        settings_table("Text", probe["text"], is_folded=False),
    ]
    if probe["questions"] is not None:
        blocks.append(settings_table("Questions", probe["questions"], is_folded=False))
    return Section("Provenance", blocks=tuple(blocks))
