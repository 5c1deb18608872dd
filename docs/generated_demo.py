"""Tables of `docs/demo.md` drawn from the recorded result of `make demo`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.elements.counts import percent
from trimtab.report.demo_record import label_of
from trimtab.report.identity import cosine_text
from trimtab.report.wording import share_text

__all__ = ["accuracies", "demo", "masked_runs"]


def demo(result: Mapping[str, Any] | None) -> None:
    """The recorded result of `make demo`: accuracies, sparsity by kind, and runs in a mask."""
    if result is None:
        return
    accuracies(result)
    print()
    _unchanged(result)
    if result.get("identities"):
        print()
        masked_runs(result)


def accuracies(result: Mapping[str, Any] | None) -> None:
    """Accuracies of each run, of the base and of the most frequent answer."""
    if result is None:
        return
    before, majority = result["before"], result["majority_baseline"]

    def accuracy(part: Mapping[str, Any], way: str) -> str:
        return share_text(part[f"{way}_accuracy"], 1, part[f"{way}_interval"])

    def trained(name: str, arm: Mapping[str, Any]) -> list[str]:
        answers, record = arm["evaluation"], arm["record"]
        return [
            label_of(name),
            accuracy(answers, "greedy"),
            accuracy(answers, "sampled"),
            f"{record['tokens']['num_loss']:,}",
            f"{record['seconds']['train']:.0f} s",
        ]

    rows(
        ["held-out questions", "greedy", "sampled at T = 1", "tokens with a loss", "training"],
        [
            ["base", accuracy(before, "greedy"), accuracy(before, "sampled"), "", ""],
            [f"always “{majority['answer']}”", f"{100 * majority['accuracy']:.1f} %", "", "", ""],
            *(trained(name, arm) for name, arm in result["arms"].items()),
        ],
    )


def _unchanged(result: Mapping[str, Any]) -> None:
    """Bit-identical weights by kind."""
    comparisons = result["comparisons"]
    kinds = dict.fromkeys(kind for part in comparisons.values() for kind in part["by_kind"])

    def unchanged(part: Mapping[str, Any]) -> str:
        num_elements, num_changed = part["num_elements"], part["num_changed"]["bits"]
        return percent(num_elements - num_changed, num_elements)

    rows(
        ["bit-identical to the base", *comparisons],
        [
            *(
                [f"`{kind}`", *(unchanged(part["by_kind"][kind]) for part in comparisons.values())]
                for kind in kinds
            ),
            ["all", *(unchanged(part["total"]) for part in comparisons.values())],
        ],
    )


def masked_runs(result: Mapping[str, Any] | None) -> None:
    """Runs in a mask, compared with GRPO."""
    if result is None:
        return
    checks, arms = result["identities"], result["record"]["arms"]

    def cells(label: str, total: Mapping[str, Any]) -> list[str]:
        inside, arm = total["inside"], arms[label]
        equal = (inside[side]["bits"] for side in ("num_sub_equal", "num_base_equal"))
        optimizer, same = arm["optimizer"], arm["same_answers"]
        num_bytes = optimizer["state_bytes"] + optimizer["index_bytes"]
        return [
            label,
            f"{optimizer['num_selected']:,}",
            f"{total['all']['num_sub_moved']:,}",
            *(percent(num, inside["num_elements"]) for num in equal),
            cosine_text(total["all"]["cosine"]),
            f"{same['correct']} of {same['total']}",
            f"{num_bytes / 1e6:,.0f} MB",
        ]

    rows(
        [
            "compared with GRPO",
            "weights trained",
            "changed when saved",
            "equal inside the mask",
            "the same for the base",
            "cosine of the updates",
            "same answers",
            "optimizer",
        ],
        (cells(label, check["total"]) for label, check in checks.items()),
    )
