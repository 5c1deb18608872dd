"""Read what `trimtab.UpdateTracker` wrote during a run: as a trajectory, or element by element.

The elements that entered or left the changed set, step by step, determine all sets: what differed
from the base at each point, ever, and at the end. Only NumPy is needed, and memory for one part of
the model. Element positions are known only for whole tensors, not for sharded tensors or parts of
fused ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.names import match_stored
from trimtab.errors import AnalysisError, ResultFormatError, TensorMismatchError
from trimtab.measure.tracked_file import StepFigures, TrackedFile, damaged, open_tracked
from trimtab.measure.trajectory_result import Point, PointCounts, Trajectory
from trimtab.results.records import CheckpointRecord, content_hash
from trimtab.words import first_few

SPARSE_ABOVE = 64
"""With more elements per byte of its sets, only those of a part that ever moved are replayed."""


def read_tracked(path: str | os.PathLike[str]) -> Trajectory:
    """Read a file of tracked updates as a trajectory, whose last point is the file's last.

    Raises:
        ResultFormatError: It is not such a file, is damaged, or has no point yet.
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
                kind: _counts(rows[row].tolist(), point.figures.by_kind[kind].stepped)
                for kind, rows in counts.items()
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
    """Read the figures of each point: gradients, absorbed updates and norms.

    Raises:
        ResultFormatError: It is not a file of tracked updates, or a damaged one.
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
        for elements in tracked.toggles(number):
            yield elements if moved is None else np.searchsorted(moved, elements)

    is_final = np.zeros(num_elements, np.bool_)
    for elements in toggles():
        is_final[elements] ^= True
    is_changed = np.zeros(num_elements, np.bool_)
    has_changed = np.zeros(num_elements, np.bool_)
    counts = np.zeros(5, np.int64)
    for row, elements in zip(rows, toggles(), strict=True):
        enters, final = ~is_changed[elements], is_final[elements]
        is_new = enters & ~has_changed[elements]
        is_changed[elements] = enters
        has_changed[elements] = True
        num_entered, num_new = np.count_nonzero(enters), np.count_nonzero(is_new)
        num_left = len(elements) - num_entered
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
    """The provenance of a file that ends within a point."""
    if not tracked.num_cut_off:
        return {}
    after = tracked.points[-1].figures.step
    return {"cut_off": {"after_step": after, "num_bytes": tracked.num_cut_off}}


def _cadence(steps: Sequence[int]) -> int | None:
    """Steps from point to point, if constant."""
    gaps = {after - before for before, after in pairwise([0, *steps])}
    return gaps.pop() if len(gaps) == 1 else None


class TrackedPoints:
    """The points of a tracked run up to a step.

    Attributes:
        steps: Optimizer steps taken at each point, ascending.
    """

    def __init__(
        self, path: str | os.PathLike[str], base: Checkpoint, last: int | None = None
    ) -> None:
        """Read a file without its sets.

        Args:
            path: A file of tracked updates.
            base: The checkpoint that the run started from.
            last: Leave out points after this step; None for none.

        Raises:
            ResultFormatError: It is not such a file, or a damaged one.
            AnalysisError: It has no point up to that step.
            TensorMismatchError: Its parts are not the tensors of base.
        """
        self._tracked = open_tracked(path)
        self._base = base
        self._points = tuple(
            point for point in self._tracked.points if last is None or point.figures.step <= last
        )
        self.steps = tuple(point.figures.step for point in self._points)
        if not self._points:
            first = [str(point.figures.step) for point in self._tracked.points[:1]] or ["none"]
            raise AnalysisError(
                f"{os.fspath(path)}: no point up to step {last}: the first is {first[0]}"
            )
        tracked = [part.name for part in self._tracked.parts]
        renamed = match_stored(tracked, base.tensors, base.tied)
        names = [renamed.get(name, name) for name in tracked]
        self._tracked_name = dict(zip(names, tracked, strict=True))
        self._places = {name: number for number, name in enumerate(names)}
        stored = {name: tensor.num_elements for name, tensor in base.tensors.items()}
        sizes = (part.num_elements for part in self._tracked.parts)
        parts = dict(zip(names, sizes, strict=True))
        if parts != stored or len(parts) < len(self._tracked.parts):
            differ = sorted(
                name for name in {*parts, *stored} if parts.get(name) != stored.get(name)
            )
            raise TensorMismatchError(
                f"{os.fspath(path)} does not track the whole tensors of {base.id}: "
                f"{first_few(differ) or 'several processes tracked them'}. Use the base that the "
                "run started from; of fused or sharded tensors the file does not tell places"
            )

    def check(self, digests: Mapping[str, str]) -> None:
        """Check that the run started from these weights.

        Args:
            digests: Name -> xxh3-128 of the stored bytes of each tensor of base.

        Raises:
            TensorMismatchError: It did not.
        """
        actual = content_hash(
            sorted(
                (self._tracked_name[name], tensor.dtype.name, tensor.shape, digests[name])
                for name, tensor in self._base.tensors.items()
            )
        )
        tracked = self._tracked.header["base"]["content_hash"]
        if actual != tracked:
            raise TensorMismatchError(
                f"{self._tracked.path} tracks a run from weights with the hash {tracked}, and "
                f"{self._base.id} has {actual}: use the base that the run started from"
            )

    def times_changed(self, name: str) -> NDArray[np.int32]:
        """Number of points at which each element of a tensor differs from the base; flat.

        Raises:
            ResultFormatError: The file is damaged.
        """
        number_of_part = self._places[name]
        num_elements = self._tracked.parts[number_of_part].num_elements
        times = np.zeros(num_elements, np.int32)
        is_changed = np.zeros(num_elements, np.bool_)
        num_points = len(self._points)
        for number, elements in enumerate(self._tracked.toggles(number_of_part, self._points)):
            is_changed[elements] ^= True
            # What enters counts at this point and all later ones, unless it leaves again.
            times[elements] += np.where(
                is_changed[elements], num_points - number, number - num_points
            ).astype(np.int32)
        return times
