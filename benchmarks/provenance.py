"""What the figures of a benchmark were measured with."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import trimtab

__all__ = ["provenance"]


def provenance(*libraries: str) -> dict[str, Any]:
    """Versions, machine, date, and how busy the machine was before.

    Args:
        libraries: Whose versions matter to the figures.
    """
    return {
        "trimtab_version": trimtab.__version__,
        **{f"{name}_version": version(name) for name in libraries},
        "python_version": platform.python_version(),
        "processor": next(_processor_names(), platform.processor()),
        "processors": os.cpu_count(),
        "device": "cpu",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before": os.getloadavg()[0],
    }


def _processor_names() -> Iterator[str]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("model name"):
            yield line.split(":", 1)[1].strip()
