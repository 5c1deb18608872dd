"""Which implementation is faster for so many elements: NumPy, or the kernels compiled with Numba.

Both give the same results. The kernels are loaded only where there is enough for them to do.
"""

from __future__ import annotations

import threading

from trimtab.elements import bits
from trimtab.elements.bits import Counters
from trimtab.elements.scan import NumpyScanner, Scanner
from trimtab.elements.series import HistoryMaker, NumpyHistory

COMPILED_FROM = 4_000_000
"""Elements from which loading the compiled kernels costs less than it saves (about 0.5 s)."""


class Scanners(threading.local):
    """A scanner for each thread, in its attribute `scanner`."""

    def __init__(self, num_elements: int) -> None:
        """Choose the scanner.

        Args:
            num_elements: Elements to be scanned in all.
        """
        self.scanner: Scanner = NumpyScanner()
        if num_elements >= COMPILED_FROM:
            from trimtab.elements.scan_kernels import NumbaScanner

            self.scanner = NumbaScanner()


def counters_for(num_elements: int) -> Counters:
    """The functions that count bits, for so many elements in all."""
    if num_elements < COMPILED_FROM:
        return Counters(bits.bit_sums, bits.count_bins, bits.count_by_bin)
    from trimtab.elements import set_kernels

    return Counters(
        set_kernels.compiled_bit_sums,
        set_kernels.compiled_count_bins,
        set_kernels.compiled_count_by_bin,
    )


def history_maker(num_elements: int) -> HistoryMaker:
    """What makes histories, for so many elements, counted at every point."""
    if num_elements < COMPILED_FROM:
        return NumpyHistory
    from trimtab.elements.set_kernels import NumbaHistory

    return NumbaHistory
