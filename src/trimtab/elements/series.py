"""What became of some elements from a base over a series of points: moved, came back, stayed.

The points of a series are gone through one after the other, so that however many there are, only
the base, the last point, the point before and the one at hand are held. All is by bits.

`NumpyHistory` is the definition, written for reading; `trimtab.elements.set_kernels` has the
same compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits

COUNTED = ("changed", "stepped", "ever", "in_final", "ever_in_final")
"""What is counted at each point, in the order in which `advance` adds it up."""


class History(Protocol):
    """Some elements on their way through a series."""

    def advance(self, before: Bits, now: Bits, counts: NDArray[np.int64]) -> None:
        """Go on to the next point.

        Args:
            before: The elements at the point before; at the first point, those of the base.
            now: The elements at this point.
            counts: `[len(COUNTED)]`, added to: elements that differ from the base now, from the
                point before, from the base at any point so far; those of the first and of the
                third that differ from the base at the last point.
        """


HistoryMaker: TypeAlias = Callable[[Bits, Bits], History]
"""Makes the history of some elements from their bits in the base and at the last point.

Every array of a history is contiguous and of one size; those of the base are not copied.
"""


class NumpyHistory:
    """See `History`."""

    def __init__(self, base: Bits, last: Bits) -> None:
        self._base = base
        self._final: NDArray[np.bool_] = base != last
        self._ever = np.zeros_like(self._final)

    def advance(self, before: Bits, now: Bits, counts: NDArray[np.int64]) -> None:
        """See `History.advance`."""
        changed = now != self._base
        self._ever |= changed
        marked = (changed, now != before, self._ever, changed & self._final)
        counts += [np.count_nonzero(m) for m in (*marked, self._ever & self._final)]
