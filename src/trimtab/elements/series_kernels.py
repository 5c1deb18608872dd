"""The histories of `trimtab.elements.series`, compiled with Numba.

A set of elements is a bit for each. Three comparisons of vectors give 64 bits of each set, and
counting ones gives the counts: all five in one pass, at the speed at which memory is read.

Import this module only when there is much to follow: it loads Numba and, once per machine,
compiles. The kernels release the GIL.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.elements.dtypes import Bits
from trimtab.elements.kernels import compiled
from trimtab.elements.lanes import LANES, differ, num_ones

__all__ = ["NumbaHistory"]


@compiled()
def _differ_in_rest(left: Bits, right: Bits, start: int) -> np.uint64:
    """As `differ`, for the fewer than `LANES` elements at the end."""
    mask = np.uint64(0)
    for i in range(start, len(left)):
        mask |= np.uint64(left[i] != right[i]) << np.uint64(i - start)
    return mask


@compiled()
def _differ_all(left: Bits, right: Bits, marked: NDArray[np.uint64]) -> None:
    """Mark where two arrays differ."""
    whole = len(left) // LANES
    for word in range(whole):
        marked[word] = differ(left, right, word * LANES)
    if whole < len(marked):
        marked[whole] = _differ_in_rest(left, right, whole * LANES)


@compiled()
def _advance(
    base: Bits,
    before: Bits,
    now: Bits,
    final: NDArray[np.uint64],
    ever: NDArray[np.uint64],
    counts: NDArray[np.int64],
) -> None:
    num_changed = num_stepped = num_ever = num_in_final = num_ever_in_final = 0
    whole = len(base) // LANES
    for word in range(len(ever)):
        start = word * LANES
        if word < whole:
            changed, stepped = differ(base, now, start), differ(before, now, start)
        else:
            changed = _differ_in_rest(base, now, start)
            stepped = _differ_in_rest(before, now, start)
        so_far = ever[word] | changed
        ever[word] = so_far
        num_changed += num_ones(changed)
        num_stepped += num_ones(stepped)
        num_ever += num_ones(so_far)
        num_in_final += num_ones(changed & final[word])
        num_ever_in_final += num_ones(so_far & final[word])
    counts[0] += num_changed
    counts[1] += num_stepped
    counts[2] += num_ever
    counts[3] += num_in_final
    counts[4] += num_ever_in_final


class NumbaHistory:
    """See `trimtab.elements.series.History`."""

    def __init__(self, base: Bits, last: Bits) -> None:
        self._base = base.reshape(-1)
        self._final, self._ever = np.zeros((2, -(-base.size // LANES)), np.uint64)
        _differ_all(self._base, last.reshape(-1), self._final)

    def advance(self, before: Bits, now: Bits, counts: NDArray[np.int64]) -> None:
        """See `trimtab.elements.series.History.advance`."""
        flat = before.reshape(-1), now.reshape(-1)
        _advance(self._base, *flat, self._final, self._ever, counts)
