"""Follow elements from a base through a series of points: changed, returned, stayed. All by bits.

Points are processed in order, so only the base, the last point, the previous and the current one
are
in memory. `NumpyHistory` is the reference; `trimtab.elements.set_kernels` has the compiled one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits

COUNTED = ("changed", "stepped", "ever", "in_final", "ever_in_final")
"""What `advance` counts, in order."""


class History(Protocol):
    """Some elements and their history in a series."""

    def advance(self, before: Bits, now: Bits, counts: NDArray[np.int64]) -> None:
        """Advance to the next point.

        Args:
            before: The elements at the previous point; at the first point, those of the base.
            now: The elements at this point.
            counts: `[len(COUNTED)]`, added to: elements that differ now from the base; from the
                previous point; that ever differed from the base; and those of the first and third
                that differ from the base at the last point.
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
