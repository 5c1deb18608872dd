"""Tables of `docs/predict.md` drawn from the result of `benchmarks/predictions.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.elements.counts import percent
from trimtab.report.chance import lift_text

__all__ = ["by_kind", "measured", "predictions", "reading"]

Report = Mapping[str, Any]

REACH = "absorption, 20 steps of LR 1e-5"

BY_MAGNITUDE = ", matched by magnitude"

KINDS = ("q_proj", "o_proj", "up_proj", "down_proj", "norm", "embed")


def predictions(report: Report | None) -> None:
    """Every prediction, with its lifts over guesses."""
    if report is None:
        return
    rows(
        [
            "PRED",
            "recall",
            "precision",
            "AP",
            "lift: random",
            "per tensor",
            "magnitude",
            "smallest",
            "time, memory",
        ],
        (
            [
                row["name"],
                _share(row["recall"]),
                _share(row["precision"]),
                _share(row["average_precision"]) + ("" if row["is_ranked"] else " ¹"),
                *(
                    lift_text(row["lifts"][null])
                    for null in ("independent", "per-tensor", "magnitude-matched", "low-magnitude")
                ),
                f"{row['seconds']:.0f} s, {row['peak_mb']:.0f} MB" if "seconds" in row else "",
            ]
            for row in report["rows"]
        ),
    )


def reading(report: Report | None) -> None:
    """Sentences on the table, with its figures."""
    if report is None:
        return
    lines = []
    by_name = {row["name"]: row for row in report["rows"]}
    from_base = [row for row in report["rows"] if not row["needs"] and row["is_ranked"]]
    if from_base:
        best = max(from_base, key=lambda row: row["recall"])
        lifts = sorted(row["lifts"]["magnitude-matched"] for row in from_base)
        lines.append(
            f"Of the kinds that use only the base, `{best['name']}` hits most: "
            f"{_share(best['recall'])}. Their lifts over random masks of the same "
            f"magnitudes are {lift_text(lifts[0])} to {lift_text(lifts[-1])}: 1 is what magnitude "
            "alone gives."
        )
    if REACH in by_name:
        row = by_name[REACH]
        lines.append(
            f"20 steps of Adam at the run's LR, 1e-5, can change "
            f"{_share(row['num_predicted'] / row['num_elements'])} of the weights; these include "
            f"{_share(row['recall'])} of what was changed."
        )
    by_data = [row for row in report["rows"] if row["needs"] == "the questions"]
    if by_data:
        each = ", ".join(
            f"{lift_text(row['lifts']['magnitude-matched'])} (`{row['name']}`)" for row in by_data
        )
        best = max(by_data, key=lambda row: row["recall"])
        lines.append(
            "The lifts of the gradients of the base on the questions, over random masks of the "
            f"same magnitudes, are {each}: above 1 means information beyond "
            f"magnitude. Alone they hit at most {_share(best['recall'])} "
            f"(`{best['name']}`)."
        )
    matched_rows = [row for row in report["rows"] if row["name"].endswith(BY_MAGNITUDE)]
    if matched_rows:
        best = max(matched_rows, key=lambda row: row["recall"])
        lines.append(
            "Given the number of weights of each magnitude that move in each tensor, the best is "
            f"`{best['name'].removesuffix(BY_MAGNITUDE)}` with {_share(best['recall'])}."
        )
    for row in report["rows"]:
        if row["needs"] == "those steps" and not row["is_ranked"]:
            lines.append(
                f"What moved early ({row['name']}) is {_share(row['recall'])} of the final "
                f"changes, and {_share(row['precision'])} of it stays changed: "
                f"{lift_text(row['lifts']['magnitude-matched'])} × a random mask of its magnitudes."
            )
    for row in report["rows"]:
        if row["needs"] == "a whole training":
            random, matched, smallest = (
                lift_text(row["lifts"][null])
                for null in ("independent", "magnitude-matched", "low-magnitude")
            )
            lines.append(
                f"What another training changed ({row['name']}) has {random} × the hits of a "
                f"random mask of its size, {matched} × those of one of its magnitudes, and "
                f"{smallest} × those of the same number of the smallest weights."
            )
    print("\n".join(f"- {line}" for line in lines))


def by_kind(report: Report | None) -> None:
    """Recall of each prediction in some kinds."""
    if report is None:
        return
    rows(
        ["recall of", *(f"`{kind}`" for kind in KINDS)],
        (
            [row["name"], *(_share(row["recall_by_kind"][kind]) for kind in KINDS)]
            for row in report["rows"]
        ),
    )


def measured(report: Report | None) -> None:
    """What TRUE is, and how the table was measured."""
    if report is None:
        return
    true = report["true"]
    print(
        f"TRUE: {true['what']}; {true['num_selected']:,} of {true['num_elements']:,} weights "
        f"({percent(true['num_selected'], true['num_elements'])}), which is the precision and the "
        "AP of any guess."
    )
    records = [row["provenance"] for row in report["rows"]]
    machines = sorted(
        {
            f"{record['date'][:10]}, trimtab {record['trimtab_version']}, {record['processor']}, "
            f"{record['processors']} processors"
            for record in records
        }
    )
    loads = sorted(record["load_before"] for record in records)
    print(f"\n{'; '.join(machines)}; load before: {loads[0]:.1f} to {loads[-1]:.1f}.")


def _share(share: float | None) -> str:
    return "–" if share is None else percent(share, 1.0, 1)
