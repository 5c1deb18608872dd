"""Tables of `docs/benchmarks.md` drawn from the result of `benchmarks/tracker.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.elements.counts import percent

__all__ = ["measured", "memory", "speed", "targets"]

Report = Mapping[str, Any]

DEMO = "AdamW, fp32 weights"
TIME_TARGET, MEMORY_TARGET = 0.05, 400e6
"""Targets of `UpdateTracker`, set before measuring: share of a step, and bytes."""


def targets(report: Report | None) -> None:
    """Targets, results, and whether they were met."""
    if report is None:
        return
    time = report["speed"]["by_training"][DEMO]["tracked / step"] - 1
    peak = report["memory"]["by_training"][DEMO]["extra"]["peak"]
    rows(
        ["at every step of the demo's model", "target", "measured", "met"],
        [
            ["time added to a step", "≤ 5 %", _share(time), _met(time <= TIME_TARGET)],
            ["peak memory added", "≤ 400 MB", _megabytes(peak), _met(peak <= MEMORY_TARGET)],
        ],
    )


def speed(report: Report | None) -> None:
    """Times, and the sizes of files."""
    if report is None:
        return
    by_training = report["speed"]["by_training"]
    lines = {
        "a step, not tracked": lambda row: f"{row['step']:.2f} s",
        "tracked ÷ not tracked, in pairs": lambda row: f"{row['tracked / step']:.3f}",
        "the tracker's own time ÷ step": lambda row: f"{row['tracker / step']:.3f}",
        "… for gradients": lambda row: _milliseconds(row["gradients"]),
        "… for the point": lambda row: _milliseconds(row["point"]),
        "once, at the start": lambda row: f"{row['beginning']:.2f} s",
        "elements that a step changed": lambda row: _share(row["stepped"]),
        "elements changed at the end": lambda row: _share(row["changed"]),
        "a point in the file": lambda row: _megabytes(row["bytes of a point"]),
        "the file of the base": lambda row: _megabytes(row["bytes of the base"]),
    }
    rows(
        ["", *by_training],
        ([what, *map(show, by_training.values())] for what, show in lines.items()),
    )


def memory(report: Report | None) -> None:
    """Peaks of resident memory."""
    if report is None:
        return
    rows(
        ["", "peak, not tracked", "tracked", "added", "added between steps"],
        (
            [
                name,
                _megabytes(part["plain"]["peak"]),
                _megabytes(part["tracked"]["peak"]),
                _megabytes(part["extra"]["peak"]),
                _megabytes(part["extra"]["at rest"]),
            ]
            for name, part in report["memory"]["by_training"].items()
        ),
    )


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    for part in ("speed", "memory"):
        info = report[part]["provenance"]
        print(
            f"- {part}: {info['date'][:10]}, trimtab {info['trimtab_version']}, torch "
            f"{info['torch_version']}, {info['processor']}, {info['processors']} processors, "
            f"{report['speed']['threads']} threads; load before: {info['load_before']:.2f}"
        )
    model = report["speed"]["by_training"][DEMO]
    print(
        f"\n{model['num_elements']:,} parameters; {report['sequences']} sequences of "
        f"{report['tokens']} tokens a step; {report['speed']['rounds']} pairs of steps."
    )


def _share(value: float) -> str:
    return percent(value, 1)


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


def _met(is_met: bool) -> str:
    return "yes" if is_met else "no"
