"""Read what `trimtab.training.UpdateTracker` wrote while a run went on, as a trajectory.

From the elements that entered or left the set of those that differ from the base, step by step, all
sets follow: what differed from the base at each point, what ever did, and what does so at the end.
Only NumPy is needed, and memory for one part of the model at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.compare.tracked_file import (
    StepFigures,
    TrackedFile,
    damaged,
    is_tracked,
    open_tracked,
)
from trimtab.compare.trajectory_result import Point, PointCounts, Trajectory
from trimtab.errors import ResultFormatError
from trimtab.results.records import CheckpointRecord

__all__ = ["is_tracked", "read_steps", "read_tracked"]

SPARSE_ABOVE = 64
"""Elements to a byte of its sets above which a part is replayed on those that ever moved only."""


def read_tracked(path: str | os.PathLike[str]) -> Trajectory:
    """Read a file of tracked updates as a trajectory, whose last point is the file's last.

    Raises:
        ResultFormatError: It is no such file, a damaged one, or has no point yet.
    """
    tracked = open_tracked(path)
    if not tracked.points:
        raise ResultFormatError(
            f"{os.fspath(path)}: has no point yet: the run stopped before its first"
        )
    counts = {part.kind: np.zeros((len(tracked.points), 6), np.int64) for part in tracked.parts}
    for number, part in enumerate(tracked.parts):
        counts[part.kind][:, 1:] += _replay(tracked, number)
        counts[part.kind][:, 0] += part.num_elements
    points = [
        Point(
            label=f"step {point.figures.step}",
            step=point.figures.step,
            by_kind={
                kind: _counts(of[row].tolist(), point.figures.by_kind[kind].stepped)
                for kind, of in counts.items()
            },
        )
        for row, point in enumerate(tracked.points)
    ]
    try:
        return Trajectory(
            base=CheckpointRecord(**tracked.header["base"]),
            points=tuple(points),
            observed="steps",
            every=_cadence([point.figures.step for point in tracked.points]),
            provenance=tracked.header["provenance"] | _cut_off(tracked),
        )
    except ValueError as error:
        raise damaged(path, str(error)) from None


def read_steps(path: str | os.PathLike[str]) -> tuple[StepFigures, ...]:
    """Read what each point says of gradients, absorbed updates and norms.

    Raises:
        ResultFormatError: It is no file of tracked updates, or a damaged one.
    """
    return tuple(point.figures for point in open_tracked(path).points)


def _replay(tracked: TrackedFile, number: int) -> NDArray[np.int64]:
    """Changed, ever, returned, in_final and ever_in_final of a part, a row for each point."""
    points = tracked.points
    rows = np.zeros((len(points), 5), np.int64)
    num_elements = tracked.parts[number].num_elements
    num_bytes = sum(int(p.offsets[number + 1] - p.offsets[number]) for p in points)
    if not num_bytes:
        return rows
    moved = None
    if num_elements > SPARSE_ABOVE * num_bytes:
        moved = np.unique(np.concatenate(list(tracked.toggles(number))))
        num_elements = len(moved)

    def toggles() -> Iterator[NDArray[np.int64]]:
        for of in tracked.toggles(number):
            yield of if moved is None else np.searchsorted(moved, of)

    is_final = np.zeros(num_elements, np.bool_)
    for of in toggles():
        is_final[of] ^= True
    is_changed = np.zeros(num_elements, np.bool_)
    has_changed = np.zeros(num_elements, np.bool_)
    counts = np.zeros(5, np.int64)
    for row, of in zip(rows, toggles(), strict=True):
        enters, final = ~is_changed[of], is_final[of]
        is_new = enters & ~has_changed[of]
        is_changed[of] = enters
        has_changed[of] = True
        num_entered, num_new = np.count_nonzero(enters), np.count_nonzero(is_new)
        num_left = len(of) - num_entered
        counts += (
            num_entered - num_left,
            num_new,
            num_new - num_entered + num_left,
            2 * np.count_nonzero(enters & final) - np.count_nonzero(final),
            np.count_nonzero(is_new & final),
        )
        row[:] = counts
    return rows


def _counts(row: Sequence[int], stepped: int) -> PointCounts:
    num_elements, changed, ever, returned, in_final, ever_in_final = row
    return PointCounts(num_elements, changed, stepped, ever, returned, in_final, ever_in_final)


def _cut_off(tracked: TrackedFile) -> dict[str, Any]:
    """What the provenance says of a file that ends in a piece of a point."""
    if not tracked.num_cut_off:
        return {}
    after = tracked.points[-1].figures.step
    return {"cut_off": {"after_step": after, "num_bytes": tracked.num_cut_off}}


def _cadence(steps: Sequence[int]) -> int | None:
    """Steps from point to point, if it is always the same number."""
    found = {after - before for before, after in pairwise([0, *steps])}
    return found.pop() if len(found) == 1 else None
