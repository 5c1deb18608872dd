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

BY_MAGNITUDE = ", as many of each magnitude"

KINDS = ("q_proj", "o_proj", "up_proj", "down_proj", "norm", "embed")


def predictions(report: Report | None) -> None:
    """Every prediction, and beside it what guesses would hit."""
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
    """What the table says, in sentences whose figures are its own."""
    if report is None:
        return
    lines = []
    of = {row["name"]: row for row in report["rows"]}
    from_base = [row for row in report["rows"] if not row["needs"] and row["is_ranked"]]
    if from_base:
        best = max(from_base, key=lambda row: row["recall"])
        lifts = sorted(row["lifts"]["magnitude-matched"] for row in from_base)
        lines.append(
            f"Of the kinds that know the base alone, `{best['name']}` hits most: "
            f"{_share(best['recall'])}. Their lifts over random masks with as many weights of each "
            f"magnitude are {lift_text(lifts[0])} to {lift_text(lifts[-1])}: 1 is what magnitude "
            "alone gives."
        )
    if REACH in of:
        row = of[REACH]
        lines.append(
            f"What 20 steps of Adam at the run's LR, 1e-5, can change at all is "
            f"{_share(row['num_predicted'] / row['num_elements'])} of the weights, and "
            f"{_share(row['recall'])} of what was changed is in it."
        )
    by_data = [row for row in report["rows"] if row["needs"] == "the questions"]
    if by_data:
        each = ", ".join(
            f"{lift_text(row['lifts']['magnitude-matched'])} (`{row['name']}`)" for row in by_data
        )
        best = max(by_data, key=lambda row: row["recall"])
        lines.append(
            "The lifts of the gradients of the base on the questions, over random masks with as "
            f"many weights of each magnitude, are {each}: what is above 1 they know beyond "
            f"magnitude. By themselves they hit {_share(best['recall'])} at most "
            f"(`{best['name']}`)."
        )
    told = [row for row in report["rows"] if row["name"].endswith(BY_MAGNITUDE)]
    if told:
        best = max(told, key=lambda row: row["recall"])
        lines.append(
            "Told how many weights of each magnitude move in each tensor, the best of them is "
            f"`{best['name'].removesuffix(BY_MAGNITUDE)}` with {_share(best['recall'])}."
        )
    for row in report["rows"]:
        if row["needs"] == "those steps" and not row["is_ranked"]:
            lines.append(
                f"What was moved early ({row['name']}) is {_share(row['recall'])} of what is "
                f"changed in the end, and {_share(row['precision'])} of it stays changed: "
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
                f"{smallest} × those of as many of the smallest weights."
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
    """What TRUE is, and what was measured with what."""
    if report is None:
        return
    true = report["true"]
    print(
        f"TRUE: {true['what']}; {true['num_selected']:,} of {true['num_elements']:,} weights "
        f"({percent(true['num_selected'], true['num_elements'])}), which is the precision and the "
        "AP of any guess."
    )
    told = [row["provenance"] for row in report["rows"]]
    machines = sorted(
        {
            f"{of['date'][:10]}, trimtab {of['trimtab_version']}, {of['processor']}, "
            f"{of['processors']} processors"
            for of in told
        }
    )
    loads = sorted(of["load_before"] for of in told)
    print(f"\n{'; '.join(machines)}; load before: {loads[0]:.1f} to {loads[-1]:.1f}.")


def _share(share: float | None) -> str:
    return "–" if share is None else percent(share, 1.0, 1)
