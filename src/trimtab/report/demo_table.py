"""What `trimtab demo` prints when it is done: did the runs learn, and what did they move."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from shutil import get_terminal_size

from trimtab.compare.result import Comparison
from trimtab.elements.counts import percent
from trimtab.report.arms import Arm, kinds_in_order
from trimtab.report.causes import random_walk_text
from trimtab.report.demo import DemoRecord, Score, standard_error
from trimtab.report.table import aligned
from trimtab.report.wording import sparsity_text

__all__ = ["render_demo_table"]


def render_demo_table(
    demo: DemoRecord, comparisons: Mapping[str, Comparison], *, console_width: int | None = None
) -> str:
    """Draw the result of a demo as text.

    Args:
        demo: What the runs did.
        comparisons: Each run against the base, by the label that the run has in `demo`.
        console_width: Characters in a line; None asks the terminal.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or get_terminal_size().columns
    arms = [Arm(label, comparison) for label, comparison in comparisons.items()]
    criterion = arms[0].criterion
    parts = [
        "\n".join(textwrap.wrap(f"{demo['base_id']}. {demo['model_note']}", width)),
        "Held-out accuracy\n" + "\n".join(_accuracy(demo, width)),
        f"Weights left as they were (criterion: {criterion})\n" + "\n".join(_sparsity(arms, width)),
    ]
    if all(random_walk_text(arm, None) is not None for arm in arms):
        section = arms[0].comparison.analyses["precision"]
        note = (
            f"“predicted” knows only the base weights, their dtype, and that {section['steps']} "
            f"steps of {section['lr']:g} go at random up or down: it is the same for every run."
        )
        parts[-1] += "\n" + "\n".join(textwrap.wrap(note, width))
    return "\n\n".join(parts)


def _accuracy(demo: DemoRecord, width: int) -> list[str]:
    baseline = demo["majority_baseline"]
    columns: dict[str, list[str]] = {
        "": ["before", f"always “{baseline['answer']}”"],
        "greedy": [_score(demo["before"]["accuracy_greedy"]), _score(baseline)],
        "sampled, T = 1": [_score(demo["before"]["accuracy_sampled"]), ""],
        "loss tokens": ["", ""],
        "seconds": ["", ""],
    }
    for label, arm in demo["arms"].items():
        cells = (
            f"after {label}",
            _score(arm["accuracy_greedy"]),
            _score(arm["accuracy_sampled"]),
            f"{arm['loss_tokens']:,}",
            f"{arm['seconds']:.0f}",
        )
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(cell)
    return aligned(columns, width)


def _score(score: Score) -> str:
    error = standard_error(score)
    share = percent(score["correct"], score["total"], 1)
    return share if error is None else f"{share} ± {100 * error:.1f}"


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
