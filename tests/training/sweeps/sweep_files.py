"""Sweep files on the tiny base, written out as a person would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.training.runs.run_files import content, write
from trimtab.training.sweeps.plan import Plan, plan
from trimtab.training.sweeps.settings import SweepSettings


def write_sweep(folder: Path, text: str, base: Path | None = None, **runs: Any) -> Path:
    """Write a sweep file beside run files: by default one of SFT, `sft.toml`."""
    for name, values in (runs or {"sft": {}}).items():
        algorithm = values.pop("algorithm", name)
        write(folder, content(algorithm, base or Path("base"), **values), f"{name}.toml")
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def planned(folder: Path, text: str, base: Path, **runs: Any) -> Plan:
    """Plan a sweep."""
    return plan(SweepSettings.read(write_sweep(folder, text, base, **runs)))


Told = Callable[..., None]


def tell_nobody(*_: Any) -> None:
    """Stands in for what tells of cells."""
