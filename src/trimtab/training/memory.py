"""The most memory that a piece of work held at a time, measured; and giving back what is unused.

On a GPU it is what torch allocated there. On a CPU it is the resident memory of the process, whose
peak Linux lets a process reset; elsewhere the peak is that since the process began.
"""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any

__all__ = ["PeakMemory", "give_back_unused"]

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures from its making on."""

    def __init__(self, device: Any) -> None:
        """Reset the peak.

        Args:
            device: The `torch.device` that computes.
        """
        self._device = device
        self._since = "the start of this phase"
        if device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(device)
        else:
            try:
                CLEAR.write_text("5")
            except OSError:
                self._since = "the start of the process"
        self._at_start = self._peak()

    def read(self) -> dict[str, Any]:
        """The peak so far, what it is a peak of, and what there was when it was reset."""
        on_gpu = self._device.type == "cuda"
        return {
            "num_bytes": self._peak(),
            "num_bytes_at_start": self._at_start,
            "of": "memory allocated on the GPU" if on_gpu else "resident memory",
            "since": self._since,
        }

    def _peak(self) -> int:
        if self._device.type == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            lines = STATUS.read_text().splitlines()
        except OSError:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
        (line,) = [line for line in lines if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


def give_back_unused() -> None:
    """Free what only cycles hold, and return free memory to the system, where that is possible.

    The allocator of glibc keeps freed memory for later; after a phase that needed several times
    that of the next, what it keeps is most of what the process has.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
