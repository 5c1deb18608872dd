"""The sets of a part of the model, and the pass over it that brings them up to date.

For each element three bits are kept (whether it differs from the base, ever did, entered or left)
and its stored bits at the point before. The base stays on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from trimtab.elements import index_coding, step_kernels
from trimtab.elements.dtypes import Bits
from trimtab.measure.tracked_file import KindFigures
from trimtab.training.tracker.file import BaseFile
from trimtab.training.tracker.gradients import Moment
from trimtab.training.tracker.parts import (
    CHUNK,
    MAGNITUDES,
    ModelPart,
    as_bits,
    buffer,
    stored_bits,
)

MOST_PENDING = 16
"""Chunks that wait for a thread, or a few more: what moved them is in memory."""

NOTHING = np.empty(0, np.uint8)

Weights: TypeAlias = Tensor | NDArray[Any]
"""Elements, flat: bits if they are on the CPU."""


class Moved(NamedTuple):
    """What moved the elements of a part, on the CPU; see `step_kernels.look`."""

    values: NDArray[Any] = NOTHING
    magnitude: Any = MAGNITUDES[1]
    decays: bool = False
    selected: NDArray[np.uint8] = NOTHING

    @classmethod
    def by(cls, moment: Moment | None) -> Moved:
        """From what moved a part, flat; None if nothing did, or if it is not known."""
        if moment is None:
            return cls()
        values, magnitude = as_bits(moment.values)
        if moment.has_flags:
            return cls(values, np.uint8(step_kernels.MOVES), moment.decays, values)
        return cls(values, magnitude, moment.decays)


class Seen(NamedTuple):
    """What one point saw of a part.

    Attributes:
        figures: Without gradients.
        num_changed: Elements that differ from the base.
        num_ever: Elements that ever did.
        coding: How `toggled` is coded.
        toggled: Elements that entered or left those that differ from the base.
    """

    figures: KindFigures
    num_changed: int
    num_ever: int
    coding: int
    toggled: bytes


class Watched:
    """A part of the model, and what is known of its elements.

    Attributes:
        part: The part.
        before: Its stored bits at the last point, or those of the base.
        changed: Set of the elements that differ from the base.
        ever: Set of those that did at some point.
        start: Where in the base file it begins, in bytes.
    """

    def __init__(self, part: ModelPart, elements: Tensor, start: int) -> None:
        self.part = part
        self.start = start
        self.before: Bits = np.empty(elements.numel(), part.dtype.bits)
        for begin in range(0, elements.numel(), CHUNK):
            here = slice(begin, begin + CHUNK)
            self.before[here] = stored_bits(elements[here], part.dtype)
        words = step_kernels.num_words(self.before.size)
        self.changed = np.zeros(words, np.uint64)
        self.ever = np.zeros(words, np.uint64)
        self._toggled = np.zeros(words, np.uint64)

    @property
    def num_bytes(self) -> int:
        """Bytes of its base."""
        return self.before.nbytes

    def look(self, begin: int, weights: Weights, base: BaseFile, moved: Moved) -> Counts:
        """Look at a chunk; see `look_at`.

        Args:
            begin: Its first element; a multiple of `CHUNK`.
            weights: Of the part.
            base: Where the base is.
            moved: What moved its elements.
        """
        here = slice(begin, min(begin + CHUNK, self.before.size))
        words = slice(begin // step_kernels.WORD, -(-here.stop // step_kernels.WORD))
        dtype, before = self.part.dtype, self.before[here]
        now = stored_bits(weights[here], dtype)
        then = buffer("base", dtype.bits, before.size)
        base.read_into(self.start + begin * dtype.num_bytes, then)
        counts = step_kernels.look(
            now,
            before,
            then,
            MAGNITUDES[dtype.num_bytes],
            moved.values[here],
            moved.magnitude,
            moved.decays,
            moved.selected[here],
            self.changed[words],
            self.ever[words],
            self._toggled[words],
        )
        squares = step_kernels.squared_distance
        found = Counts(
            *counts,
            squares(now, before, dtype.storage) if counts[0] else 0.0,
            squares(now, then, dtype.storage) if counts[1] else 0.0,
        )
        if found.stepped:
            before[:] = now
        return found

    def settle(self, counts: Sequence[Counts], *, knows_moments: bool) -> Seen:
        """Put what was found in the chunks together; without any, nothing ever moved."""
        total = Counts(*map(sum, zip(Counts(), *counts, strict=True)))
        coding, toggled = index_coding.encode(self._toggled, self.before.size)
        figures = KindFigures(
            stepped=total.stepped,
            asked=total.asked if knows_moments else None,
            absorbed=total.absorbed if knows_moments else None,
            step_squares=total.step_squares,
            update_squares=total.update_squares,
        )
        return Seen(figures, total.changed, total.ever, coding, toggled)


class Counts(NamedTuple):
    """What was found in a chunk; the first five as `step_kernels.look` returns them."""

    stepped: int = 0
    changed: int = 0
    ever: int = 0
    asked: int = 0
    absorbed: int = 0
    step_squares: float = 0.0
    update_squares: float = 0.0


def look_at(
    watched: Iterable[tuple[Watched, Tensor | None, Moment | None]],
    base: BaseFile,
    pool: ThreadPoolExecutor,
    *,
    knows_moments: bool,
) -> list[Seen]:
    """Take a point: compare every element with the point before and with the base.

    Args:
        watched: Each part with its elements, flat, or None if nothing ever trained it; and what
            moved them, flat, or None if nothing did. Not all are taken at once.
        base: Where the base is.
        pool: Threads to do it on.
        knows_moments: Whether it is known what moved the elements.
    """
    seen = []
    pending: deque[tuple[Watched, list[Future[Counts]]]] = deque()

    def settle() -> None:
        of, futures = pending.popleft()
        seen.append(of.settle([future.result() for future in futures], knows_moments=knows_moments))

    for of, elements, moment in watched:
        futures = []
        if elements is not None:
            weights = as_bits(elements)[0] if elements.device.type == "cpu" else elements
            moved = Moved.by(moment)
            starts = range(0, of.before.size, CHUNK)
            futures = [pool.submit(of.look, start, weights, base, moved) for start in starts]
        pending.append((of, futures))
        while sum(len(futures) for _, futures in pending) > MOST_PENDING and len(pending) > 1:
            settle()
    while pending:
        settle()
    return seen
