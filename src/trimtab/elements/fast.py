"""Choose between NumPy and the kernels compiled with Numba, by the number of elements.

Both give the same results. The kernels are loaded only if there is enough work for them.
"""

from __future__ import annotations

import threading

from trimtab.elements import bits
from trimtab.elements.bits import Counters
from trimtab.elements.scan import NumpyScanner, Scanner
from trimtab.elements.series import HistoryMaker, NumpyHistory

COMPILED_FROM = 4_000_000
"""Elements from which the compiled kernels save more than loading them costs (about 0.5 s)."""


class Scanners(threading.local):
    """A scanner for each thread, in its attribute `scanner`."""

    def __init__(self, num_elements: int) -> None:
        """Choose the scanner.

        Args:
            num_elements: Total number of elements to scan.
        """
        self.scanner: Scanner = NumpyScanner()
        if num_elements >= COMPILED_FROM:
            from trimtab.elements.scan_kernels import NumbaScanner

            self.scanner = NumbaScanner()


def counters_for(num_elements: int) -> Counters:
    """The functions that count bits, for a total number of elements."""
    if num_elements < COMPILED_FROM:
        return Counters(bits.bit_sums, bits.count_bins, bits.count_by_bin)
    from trimtab.elements import set_kernels

    return Counters(
        set_kernels.compiled_bit_sums,
        set_kernels.compiled_count_bins,
        set_kernels.compiled_count_by_bin,
    )


def history_maker(num_elements: int) -> HistoryMaker:
    """The factory of histories, for a total number of elements counted at every point."""
    if num_elements < COMPILED_FROM:
        return NumpyHistory
    from trimtab.elements.set_kernels import NumbaHistory

    return NumbaHistory
