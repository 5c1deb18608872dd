"""Start torch, transformers and TRL offline and quietly, and measure peak memory.

These libraries read environment variables when they are first imported, so every entry point of
`trimtab.training` calls `start` before it imports any of them.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from logging import INFO, NOTSET, WARNING, getLogger
from pathlib import Path
from typing import Any

from trimtab._version import __version__
from trimtab.extras import require

INSTALL = "pip install 'trimtab[train]'"

_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Huge pages for large tensors: the logits of a step cost fewer page faults.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def start(*, offline: bool = True) -> None:
    """Set environment variables that the user has not set, and check for the train extra.

    Args:
        offline: Whether the hub client stays offline; False where a user can name hub models.

    Raises:
        MissingExtraError: A package of the train extra is missing.
    """
    environment = {**_ENVIRONMENT, **({"HF_HUB_OFFLINE": "1"} if offline else {})}
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    for module in ("torch", "transformers", "datasets", "accelerate", "gguf", "trl"):
        require(module, INSTALL)


def say(text: str) -> None:
    """Log a message for the user, at level INFO of the logger `trimtab`.

    It is shown by the user's handlers, or else on stderr, unless the user has set the level of that
    logger.
    """
    logger = getLogger("trimtab")
    if logger.level == NOTSET:
        logger.setLevel(INFO)
    if logger.hasHandlers():
        logger.info(text)
    elif logger.isEnabledFor(INFO):
        print(f"[trimtab] {text}", file=sys.stderr)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, logs (including ours) and one known deprecation warning."""
    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars = datasets.are_progress_bars_disabled()
    own = getLogger("trimtab")
    own_level = own.level
    own.setLevel(WARNING)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # TRL 1.16 itself still uses the old name of activation checkpointing.
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        own.setLevel(own_level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if not dataset_bars:
            datasets.enable_progress_bars()


@cache  # Python parses all the metadata of a package for its version: a tenth of a tiny run
def versions() -> Mapping[str, str]:
    """Versions of the packages that can affect the result of a training run."""
    packages = ("torch", "transformers", "trl", "accelerate")
    return {
        "trimtab": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages if find_spec(package)},
    }


def accelerator() -> Any:
    """The `torch.device` of the accelerator; the CPU if there is none."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device(where: Any = None) -> dict[str, Any]:
    """Describe the device of a run, for its record.

    Args:
        where: The `torch.device`; None for the CPU.
    """
    import torch

    if where is not None and where.type != "cpu":
        named = torch.cuda.is_available() and where.type == "cuda"
        return {
            "type": where.type,
            **({"name": torch.cuda.get_device_name(where)} if named else {}),
        }
    return {
        "type": "cpu",
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "num_threads": torch.get_num_threads(),
    }


CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")


class PeakMemory:
    """Peak memory since this object was created.

    On a GPU, the memory that torch allocated. On a CPU, the resident memory of the process; only
    Linux lets a process reset its peak, elsewhere the peak counts from the start of the process.
    """

    def __init__(self, device: Any) -> None:
        """Reset the peak of `device`, a `torch.device`."""
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
        """The peak so far, what it measures, and the value when it was reset."""
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
    """Collect reference cycles, and return free memory to the system where possible.

    The allocator of glibc keeps freed memory: most of the process after a phase that needed several
    times the memory of the next one.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
