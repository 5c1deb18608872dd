"""What `trimtab demo` prints when it is done: did the runs learn, and what did they move."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from shutil import get_terminal_size

from trimtab.elements.counts import percent
from trimtab.masks.identity import Identity
from trimtab.measure.compare_result import Comparison
from trimtab.report.arms import Arm
from trimtab.report.causes import random_walk_text
from trimtab.report.demo import DemoRecord, score_text
from trimtab.report.demo_masked import mask_columns, mask_reading
from trimtab.report.identity import stray_sentence
from trimtab.report.table import aligned
from trimtab.report.wording import kinds_in_order, sparsity_text

__all__ = ["render_demo_table"]


def render_demo_table(
    demo: DemoRecord,
    comparisons: Mapping[str, Comparison],
    identities: Mapping[str, Identity] | None = None,
    *,
    console_width: int | None = None,
) -> str:
    """Draw the result of a demo as text.

    Args:
        demo: What the runs did.
        comparisons: Each run of every weight against the base, by the label that it has in `demo`.
        identities: See `trimtab.report.demo_masked`; by label.
        console_width: Characters in a line; None asks the terminal.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or get_terminal_size().columns
    arms = [Arm(label, comparison) for label, comparison in comparisons.items()]
    criterion = arms[0].criterion
    parts = [
        "\n".join(textwrap.wrap(f"{demo['base_id']}. {demo['model_note']}", width)),
        "Held-out accuracy [95 % interval]\n" + "\n".join(_accuracy(demo, width)),
        f"Weights left as they were (criterion: {criterion})\n" + "\n".join(_sparsity(arms, width)),
    ]
    if all(random_walk_text(arm, None) is not None for arm in arms):
        section = arms[0].comparison.analyses["precision"]
        note = (
            f"“predicted” knows only the base weights, their dtype, and that {section['steps']} "
            f"steps of {section['lr']:g} go at random up or down: it is the same for every run."
        )
        parts[-1] += "\n" + "\n".join(textwrap.wrap(note, width))
    if identities:
        parts.append("\n".join(_masked(demo, comparisons, identities, width)))
    return "\n\n".join(parts)


def _masked(
    demo: DemoRecord,
    comparisons: Mapping[str, Comparison],
    identities: Mapping[str, Identity],
    width: int,
) -> list[str]:
    columns = mask_columns(demo, comparisons, identities)
    lines = aligned(columns, width)
    shown = [title for title in columns if title in lines[0]]
    notes = [mask_reading(demo["full"], shown), *demo.get("mask_notes", ())]
    for label, identity in identities.items():
        stray = None if label in comparisons else stray_sentence(identity)
        if stray is not None:
            notes.append(f"{label}: {stray}")
    title = "Training only the mask"
    if check := next((of for label, of in identities.items() if label not in comparisons), None):
        num, total = check.mask.num_selected, check.mask.num_elements
        title += f": {num:,} of {total:,} weights ({percent(num, total)})"
    return [
        *textwrap.wrap(title, width),
        *lines,
        *(line for note in notes for line in textwrap.wrap(note, width)),
    ]


def _accuracy(demo: DemoRecord, width: int) -> list[str]:
    baseline = demo["majority_baseline"]
    columns: dict[str, list[str]] = {
        "": ["before", f"always “{baseline['answer']}”"],
        "greedy": [score_text(demo["before"]["accuracy_greedy"]), score_text(baseline)],
        "sampled, T = 1": [score_text(demo["before"]["accuracy_sampled"]), ""],
        "loss tokens": ["", ""],
        "seconds": ["", ""],
    }
    for label, arm in demo["arms"].items():
        cells = (
            f"after {label}",
            score_text(arm["accuracy_greedy"]),
            score_text(arm["accuracy_sampled"]),
            f"{arm['loss_tokens']:,}",
            f"{arm['seconds']:.0f}",
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return aligned(columns, width)


def _sparsity(arms: list[Arm], width: int) -> list[str]:
    kinds = kinds_in_order(kind for arm in arms for kind in arm.by_kind)
    columns: dict[str, list[str]] = {"kind": [*kinds, "all"]}
    for arm in arms:
        columns[arm.label] = [
            *(sparsity_text(arm.by_kind[kind], arm.criterion) for kind in kinds),
            sparsity_text(arm.total, arm.criterion),
        ]
    predicted = [random_walk_text(arms[0], kind) for kind in (*kinds, None)]
    if predicted[-1] is not None:
        columns["predicted"] = [text or "–" for text in predicted]
    return aligned(columns, width)
