"""Where the first steps of a tracked run moved elements: the places that a trajectory only counts.

A file of tracked updates has places for whole tensors only: what a process had of a sharded tensor,
or a part of a fused one, is a row of elements whose places in the tensor it does not tell.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.names import match_stored
from trimtab.compare.tracked_file import open_tracked
from trimtab.errors import AnalysisError, TensorMismatchError
from trimtab.results.records import content_hash
from trimtab.words import first_few

__all__ = ["TrackedPoints"]


class TrackedPoints:
    """The points of a tracked run up to a step.

    Attributes:
        steps: Optimizer steps taken at each point, ascending.
    """

    def __init__(
        self, path: str | os.PathLike[str], base: Checkpoint, last: int | None = None
    ) -> None:
        """Read a file but for its sets.

        Args:
            path: A file of tracked updates.
            base: What the run started from.
            last: Leave out points after this step; None for none.

        Raises:
            ResultFormatError: It is no such file, or a damaged one.
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
            found = [str(point.figures.step) for point in self._tracked.points[:1]] or ["none"]
            raise AnalysisError(
                f"{os.fspath(path)}: no point up to step {last}: the first is {found[0]}"
            )
        tracked = [part.name for part in self._tracked.parts]
        renamed = match_stored(tracked, base.tensors, base.tied)
        names = [renamed.get(name, name) for name in tracked]
        self._tracked_name = dict(zip(names, tracked, strict=True))
        self._places = {name: place for place, name in enumerate(names)}
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
        """Check that the run started from these very weights.

        Args:
            digests: Name -> xxh3-128 of the stored bytes of each tensor of base.

        Raises:
            TensorMismatchError: It did not.
        """
        found = content_hash(
            sorted(
                (self._tracked_name[name], tensor.dtype.name, tensor.shape, digests[name])
                for name, tensor in self._base.tensors.items()
            )
        )
        tracked = self._tracked.header["base"]["content_hash"]
        if found != tracked:
            raise TensorMismatchError(
                f"{self._tracked.path} tracks a run from weights with the hash {tracked}, and "
                f"{self._base.id} has {found}: use the base that the run started from"
            )

    def times_changed(self, name: str) -> NDArray[np.int32]:
        """At how many of the points each element of a tensor differs from the base; flat.

        Raises:
            ResultFormatError: The file is damaged.
        """
        place = self._places[name]
        num_elements = self._tracked.parts[place].num_elements
        times = np.zeros(num_elements, np.int32)
        is_changed = np.zeros(num_elements, np.bool_)
        num_points = len(self._points)
        for number, of in enumerate(self._tracked.toggles(place, self._points)):
            is_changed[of] ^= True
            # What enters is there at this point and all after it, unless it leaves again.
            times[of] += np.where(is_changed[of], num_points - number, number - num_points).astype(
                np.int32
            )
        return times
