"""The text that `trimtab trajectory` prints: what became of the weights, and how it came about."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

from trimtab.elements.counts import percent
from trimtab.measure.trajectory_result import PointCounts, Trajectory
from trimtab.report.table import aligned, told, wrapped
from trimtab.report.trajectory_wording import (
    cadence,
    cadence_sentence,
    endpoints_of,
    fates,
    fates_sentence,
    likeness_text,
    outside_sentence,
    point_title,
    series_coverage_sentence,
    settled_sentence,
    settled_text,
)
from trimtab.report.wording import kinds_in_order, plural, printable

__all__ = ["render_trajectory_table"]

_MOST_ROWS = 24
"""Points shown; of a longer series, some at even distances."""

_NOTES = {
    "unchanged": "“unchanged”: equal to the base at this point;",
    "untouched": "“untouched”: at every point so far;",
    "moved": "“moved”: differs from the point before;",
    "coverage": "“coverage”: share of the final subnetwork that differs from the base already;",
    "Jaccard": "“Jaccard”: similarity with the final mask;",
    "outside/ever": "“outside”: differed so far and is not in the final subnetwork, as a share of "
    "what ever changed, and of all.",
}


def render_trajectory_table(
    trajectory: Trajectory, *, console_width: int | None = None, styled: bool = False
) -> str:
    """Draw a trajectory as text.

    Args:
        trajectory: The result.
        console_width: Characters in a line; None asks the terminal.
        styled: Use bold and yellow, for a terminal that shows them.

    Returns:
        Lines without trailing spaces, without a final newline.
    """
    width = console_width or shutil.get_terminal_size().columns
    parts = [_opening(trajectory, width, styled=styled)]
    if trajectory.final.total.num_elements:
        parts.append(_points(trajectory, width, styled=styled))
        parts.append(_kinds(trajectory, width, styled=styled))
    return "\n\n".join(parts)


def _opening(trajectory: Trajectory, width: int, *, styled: bool) -> str:
    base, last = endpoints_of(trajectory)
    lines = [f"base  {base}", f"last  {last}", ""]
    sentences = [(fates_sentence(trajectory), "1"), (cadence_sentence(trajectory), "")]
    sentences.append((settled_sentence(trajectory) or "", ""))
    sentences.append((outside_sentence(trajectory) or "", ""))
    if trajectory.conversion is not None:
        sentences.append((f"Compared: {printable(trajectory.conversion)}.", "33"))
    if (coverage := trajectory.coverage) is not None:
        colour = "" if coverage.is_complete else "1;33"
        sentences.append((f"Coverage {series_coverage_sentence(coverage)}.", colour))
    return "\n".join([*lines, *told(sentences, width, styled=styled)])


def _points(trajectory: Trajectory, width: int, *, styled: bool) -> str:
    shown = evenly(len(trajectory.points), _MOST_ROWS)
    points = [trajectory.points[at] for at in shown]

    def shares(part: Callable[[PointCounts], int]) -> list[str]:
        return [percent(part(point.total), point.total.num_elements) for point in points]

    first = (
        {"step": [f"{point.step:,}" for point in points]}
        if trajectory.steps
        else {"point": [point_title(trajectory, at) for at in shown]}
    )
    lines = aligned(
        first
        | {
            "unchanged": shares(lambda now: now.num_elements - now.changed),
            "untouched": shares(lambda now: now.untouched),
            "cancelled": shares(lambda now: now.returned),
            "moved": shares(lambda now: now.stepped),
            "coverage": [likeness_text(trajectory, "coverage", at) for at in shown],
            "Jaccard": [likeness_text(trajectory, "jaccard", at) for at in shown],
            "outside/ever": [percent(p.total.outside_final, p.total.ever) for p in points],
            "outside/all": shares(lambda now: now.outside_final),
        },
        width,
    )
    note = " ".join(text for column, text in _NOTES.items() if column in lines[0])
    if left_out := len(trajectory.points) - len(shown):
        note += f" {plural(left_out, 'more point')} not shown here; the JSON has all."
    title = f"Over time, observed {cadence(trajectory)}"
    if styled:
        lines[0] = f"\x1b[2m{lines[0]}\x1b[0m"
    return "\n".join([title, *lines, *wrapped(note, width, "2", styled=styled)])


def evenly(num: int, most: int) -> Sequence[int]:
    """Places of at most so many of `num` items, the last among them, at even distances."""
    if num <= most:
        return range(num)
    return sorted({round((place + 1) * num / most) - 1 for place in range(most)})


def _kinds(trajectory: Trajectory, width: int, *, styled: bool) -> str:
    kinds: list[str | None] = [*kinds_in_order(trajectory.final.by_kind), None]
    columns: dict[str, list[str]] = {}
    for kind in kinds:
        last = trajectory.series(kind)[-1]
        cells = {
            "kind": "all" if kind is None else printable(kind),
            "elements": f"{last.num_elements:,}",
            **{fate: percent(num, last.num_elements) for fate, num in fates(last).items()},
            "outside/ever": percent(last.outside_final, last.ever),
            "settled": settled_text(trajectory, "coverage", kind),
        }
        for title, cell in cells.items():
            columns.setdefault(title, []).append(cell)
    lines = aligned(columns, width)
    if styled:
        lines[0], lines[-1] = f"\x1b[2m{lines[0]}\x1b[0m", f"\x1b[1m{lines[-1]}\x1b[0m"
    return "\n".join([f"What became of the weights, observed {cadence(trajectory)}", *lines])
