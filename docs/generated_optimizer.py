"""Tables of `docs/benchmarks.md` drawn from the result of `benchmarks/optimizer.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generated import rows

__all__ = ["bought", "bytes_per_parameter", "measured", "memory", "speed", "targets"]

Report = Mapping[str, Any]

OURS = "SparseAdamW"
REFERENCE = "masked dense AdamW, fp32 masters"
UNIT, UNIT_FP32 = "dense AdamW, bf16", "dense AdamW, fp32 masters"

PER_ELEMENT = {
    OURS: 14.03,
    f"{OURS}, fp32 masters": 16.03,
    f"{OURS}, bf16 states": 10.03,
    f"{OURS}, 8-bit states": 7.09,
}
"""Bytes that each selected element costs: position 2.03; gradient 2; means 4, 2 or 1.03 each; and a
remainder of 2 or 1, or an fp32 master."""

MEMORY_TARGETS = {"5%": 0.10, "20%": 0.28}
PHASE_TARGETS = {"5%": 0.35, "20%": 0.90}
"""Density -> target ratio of `SparseAdamW`, set before measuring."""


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    for part in ("memory", "speed"):
        info = report[part]["provenance"]
        print(
            f"- {part}: {info['date'][:10]}, trimtab {info['trimtab_version']}, torch "
            f"{info['torch_version']}, PEFT {info['peft_version']}, {info['processor']}, "
            f"{info['processors']} processors; load before: {info['load_before']:.2f}"
        )
    model = report["model"]
    print(
        f"\nThe model has {model['num_elements']:,} parameters in {model['num_hidden_layers']} "
        f"layers of width {model['hidden_size']}; its largest tensor has "
        f"{model['largest_tensor']:,}. The sequence has {model['sequence']} tokens."
    )


def targets(report: Report | None) -> None:
    """Targets, results, and whether they were met."""
    if report is None:
        return
    by_threads = report["speed"]["by_threads"]

    def figures() -> Iterator[tuple[str, str, float, float]]:
        for density, limit in MEMORY_TARGETS.items():
            yield (
                "peak above the weights",
                density,
                limit,
                _over_reference(report, density, "steps"),
            )
        for threads, times in by_threads.items():
            for density, limit in PHASE_TARGETS.items():
                figure = times[density][OURS][f"optimizer / {UNIT}"]
                yield f"optimizer phase, {_threads(threads)}", density, limit, figure
        for threads, times in by_threads.items():
            for density, part in times.items():
                yield (
                    f"whole step, {_threads(threads)}",
                    density,
                    1.0,
                    part[OURS][f"whole / {UNIT}"],
                )

    rows(
        ["ratio", "density", "target", "measured", "met"],
        (
            [what, density, f"≤ {limit:.2f}", f"{figure:.3f}", "yes" if figure <= limit else "no"]
            for what, density, limit, figure in figures()
        ),
    )


def bought(report: Report | None) -> None:
    """What a mask saves and what it does not, on one thread, as ratios to training all weights."""
    if report is None:
        return
    peaks, times = report["memory"]["by_density"], report["speed"]["by_threads"]["1"]
    dense = {name: peaks["100%"][name]["steps"] for name in (UNIT, UNIT_FP32)}

    def line(density: str) -> list[str]:
        ours, theirs = times[density][OURS], times[density][UNIT]
        passes = [part["forward"] + part["backward"] for part in (ours, theirs)]
        peak = peaks[density][OURS]["steps"]
        return [
            density,
            *(f"{peak / dense_peak:.2f}" for dense_peak in dense.values()),
            f"{passes[0] / passes[1]:.2f}",
            f"{ours[f'optimizer / {UNIT}']:.2f}",
            f"{ours[f'whole / {UNIT}']:.2f}",
        ]

    rows(
        [
            "density of the mask",
            f"peak ÷ {UNIT}",
            f"peak ÷ {UNIT_FP32}",
            "forward and backward",
            "optimizer phase",
            "whole step",
        ],
        (line(density) for density in times),
    )


def memory(report: Report | None) -> None:
    """Peaks of every contestant."""
    if report is None:
        return

    def line(density: str, name: str, peaks: Mapping[str, int]) -> list[str]:
        def ratio(key: str) -> str:
            masked = density != "100%"
            return f"{_over_reference(report, density, key, name):.3f}" if masked else ""

        return [
            density,
            name,
            f"{peaks['num_trained'] / 1e6:.2f} M",
            _megabytes(peaks["making"]),
            _megabytes(peaks["steps"]),
            ratio("steps"),
            _megabytes(peaks["in_use"]),
            ratio("in_use"),
        ]

    rows(
        ["density", "", "trained", "making it", "3 steps", "ratio", "3 steps, in use", "ratio"],
        (
            line(density, name, peaks)
            for density, part in report["memory"]["by_density"].items()
            for name, peaks in part.items()
        ),
    )


def bytes_per_parameter(report: Report | None) -> None:
    """The measured bytes of `SparseAdamW` and those of the formula."""
    if report is None:
        return
    num_elements = report["model"]["num_elements"]
    gradient = 2 * report["model"]["largest_tensor"] / num_elements

    def line(density: str, name: str, peaks: Mapping[str, int]) -> list[str]:
        formula = 2 + PER_ELEMENT[name] * peaks["num_trained"] / num_elements + gradient
        return [
            density,
            name,
            f"2 + {PER_ELEMENT[name]} d + {gradient:.2f} = {formula:.2f}",
            *(f"{2 + peaks[key] / num_elements:.2f}" for key in ("kept", "in_use", "steps")),
        ]

    rows(
        ["density", "", "formula", "weights and state", "peak in use", "peak"],
        (
            line(density, name, peaks)
            for density, part in report["memory"]["by_density"].items()
            for name, peaks in part.items()
            if name in PER_ELEMENT
        ),
    )


def speed(report: Report | None) -> None:
    """Times of every contestant."""
    if report is None:
        return
    phases = {"forward": "forward", "backward": "backward", "hooks": "hooks"}
    phases |= {"optimizer": "optimizer phase", "whole": "whole step"}
    ratios = {f"optimizer / {UNIT}": "phase ÷ bf16 step"}
    ratios |= {f"optimizer / {UNIT_FP32}": "phase ÷ fp32 step", f"whole / {UNIT}": "whole ÷ dense"}
    for threads, times in report["speed"]["by_threads"].items():
        for density, part in times.items():
            print(f"{_threads(threads).capitalize()}, {density}:\n")
            rows(
                ["", *phases.values(), *ratios.values()],
                (
                    [
                        name,
                        *(f"{1e3 * figures[phase]:.0f} ms" for phase in phases),
                        *(f"{figures[ratio]:.2f}" for ratio in ratios),
                    ]
                    for name, figures in part.items()
                ),
            )
            print()


def _threads(number: str) -> str:
    return "one thread" if number == "1" else f"{number} threads"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _over_reference(report: Report, density: str, key: str, name: str = OURS) -> float:
    """A peak as a share of that of the reference at the same density."""
    peaks = report["memory"]["by_density"][density]
    return peaks[name][key] / peaks[REFERENCE][key]
