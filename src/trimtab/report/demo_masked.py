"""The part of a demo on training only a mask: what each run trained, moved and kept in memory.

Runs are set beside FULL, the run of every weight whose changes are the mask. Each comes with an
identity check against it: in the mask that the run trained, or, for another run of every weight, in
the mask of FULL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.report.blocks import Column, Section, table
from trimtab.report.demo import ArmRecord, DemoRecord, score_text
from trimtab.report.identity import base_share, cosine_text, sub_share
from trimtab.report.wording import printable

__all__ = ["mask_columns", "mask_reading", "only_the_mask"]


def only_the_mask(
    demo: DemoRecord, comparisons: Mapping[str, Comparison], identities: Mapping[str, Identity]
) -> Section:
    """What the runs inside a mask trained and learned, beside FULL.

    Args:
        demo: What the runs did.
        comparisons: The runs of every weight against the base, by label.
        identities: The runs against FULL, by label.
    """
    columns = mask_columns(demo, comparisons, identities)
    labels = columns.pop("run")
    runs = [demo["arms"][label] for label in labels]
    shown = {
        "run": labels,
        "greedy": [score_text(run["accuracy_greedy"]) for run in runs],
        **columns,
    }
    headings: list[Column] = [(title, "text" if title == "run" else "number") for title in shown]
    about = [
        f"{label}: {demo['arms'][label]['about']}"
        for label in identities
        if "about" in demo["arms"][label]
    ]
    numbers = table(
        f"Beside {demo['full']}",
        headings,
        zip(*shown.values(), strict=True),
        is_folded=False,
        note=mask_reading(demo["full"], shown),
    )
    paragraphs = map(printable, [*about, *demo.get("mask_notes", ())])
    return Section("Training only the mask", tuple(paragraphs), (numbers,))


def mask_columns(
    demo: DemoRecord, comparisons: Mapping[str, Comparison], identities: Mapping[str, Identity]
) -> dict[str, list[str]]:
    """Title -> cells of FULL and of each checked run, given as to `only_the_mask`."""
    full = demo["full"]
    rows = [_row(full, demo["arms"][full], comparisons[full].total.num_changed["bits"], None)]
    for label, identity in identities.items():
        num_changed = identity.total.all.num_sub_moved
        rows.append(_row(label, demo["arms"][label], num_changed, identity))
    return {title: [row[title] for row in rows] for title in rows[0]}


def mask_reading(full: str, titles: Iterable[str]) -> str:
    """How to read those of the columns that are shown."""
    sentences = {
        "trained": "“Trained” and “changed” count weights, changed by criterion bits.",
        "SUB = FULL": f"FULL is {full}, SUB the run: bit equality inside the mask that the run "
        f"trained, or, for another run of every weight, inside that of {full}.",
        "BASE = FULL": "“BASE = FULL” is what doing nothing scores there.",
        "cosine": "“Cosine” is that of the two whole updates.",
        "same answers": f"“Same answers” are held-out questions with the greedy answer of {full}.",
        "optimizer": "“Optimizer” is the memory of its running means, 8 bytes a weight, and of the "
        "positions of the weights where it needs them.",
    }
    shown = set(titles)
    return " ".join(sentence for title, sentence in sentences.items() if title in shown)


def _row(label: str, run: ArmRecord, num_changed: int, check: Identity | None) -> dict[str, str]:
    optimizer, same = run.get("optimizer"), run.get("same_answers")
    kept = optimizer and optimizer["state_bytes"] + optimizer["index_bytes"]
    return {
        "run": printable(label),
        "trained": f"{optimizer['num_selected']:,}" if optimizer else "–",
        "changed": f"{num_changed:,}",
        "SUB = FULL": sub_share(check.total.inside) if check else "–",
        "BASE = FULL": base_share(check.total.inside) if check else "–",
        "cosine": cosine_text(check.total.all.cosine) if check else "–",
        "same answers": f"{same['correct']:,} of {same['total']:,}" if same else "–",
        "optimizer": f"{kept / 1e6:,.{0 if kept > 1e8 else 2}f} MB" if kept else "–",
    }
