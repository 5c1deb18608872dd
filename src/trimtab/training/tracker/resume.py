"""Go on with a file of tracked updates where a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.compare.tracked_file import TrackedFile, TrackedPoint, open_tracked
from trimtab.elements import step_kernels
from trimtab.errors import ResultFormatError
from trimtab.training.tracker.processes import Processes

__all__ = ["PointReached", "Sets"]

Sets = tuple[NDArray[np.uint64], NDArray[np.uint64]]
"""The elements of a part that differ from the base, and those that ever did."""


class PointReached:
    """The point of a file at which a run was saved; what the file has after it is of no concern.

    Attributes:
        header: Of the file.
        end: Where in the file the point ends; 0 in all processes but the first.
    """

    def __init__(self, path: Path, step: int, processes: Processes) -> None:
        """Find it. All processes that take part must call this, and `sets`.

        Args:
            path: The file.
            step: Optimizer steps taken when the run was saved.
            processes: Those that take part.

        Raises:
            ResultFormatError: The file is gone or damaged, or has no point at that step.
        """
        self._processes = processes
        self._tracked: TrackedFile | None = None
        self._points: tuple[TrackedPoint, ...] = ()
        self.end = 0

        def find() -> Mapping[str, Any]:
            tracked = open_tracked(path)
            points = tuple(of for of in tracked.points if of.figures.step <= step)
            if not points or points[-1].figures.step != step:
                raise ResultFormatError(
                    f"{path}: has no point at step {step}, after which the run is resumed: resume "
                    "from a checkpoint that was saved while it was tracked, or without the tracker"
                )
            self._tracked, self._points, self.end = tracked, points, points[-1].end
            return tracked.header

        self.header = processes.by_first(find)

    def sets(self) -> list[Sets]:
        """The sets of the parts of this process, at the point."""
        of_all: list[list[Sets]] = [[] for _ in range(self._processes.size)]
        if self._tracked is not None:
            for number, part in enumerate(self._tracked.parts):
                of_all[part.process].append(self._sets(self._tracked, number))
        return self._processes.from_first(of_all)

    def _sets(self, tracked: TrackedFile, number: int) -> Sets:
        words = step_kernels.num_words(tracked.parts[number].num_elements)
        changed, ever = np.zeros(words, np.uint64), np.zeros(words, np.uint64)
        for toggled in tracked.toggles(number, self._points):
            step_kernels.flip(changed, toggled)
            ever |= changed
        return changed, ever
