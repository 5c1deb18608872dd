"""Tables of `docs/benchmarks.md` drawn from the result of `benchmarks/optimizer.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generated import rows
from docs.generated_which_mask import interval

from trimtab.results.statistics import difference_over_seeds, mean_over_seeds

__all__ = [
    "bought",
    "bytes_per_parameter",
    "large",
    "learning",
    "measured",
    "memory",
    "published",
    "speed",
    "targets",
]

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

EIGHT_BITS = f"{OURS}, 8-bit states"

PEAK_TARGETS = {"5%": 0.085, "20%": 0.16}
"""Density -> target of the peak in use of 8-bit states, as a share of the reference's."""

KEPT_TARGETS = {OURS: 14, EIGHT_BITS: 8}
"""Contestant -> target of the bytes kept, with the weights: 2.15 and this times the density."""

PHASE_TARGETS = {"5%": 0.37 / 0.85, "20%": 0.90}
"""Density -> target ratio of the optimizer phase of `SparseAdamW`."""

PUBLISHED = (
    ("AdamW, fp32", "16", "arXiv 2602.23349, sec. 1: weight, gradient and two means, 4 each"),
    (
        "bitsandbytes 8-bit Adam",
        "weight + gradient + 2",
        "arXiv 2110.02861, abstract: 8 bits a state",
    ),
    ("torchao 8-bit AdamW", "weight + gradient + 2", "its documentation: 8 bits a state"),
    ("FlashOptim AdamW (CUDA)", "7", "arXiv 2602.23349, abstract: 24-bit masters, 8-bit states"),
    ("FlashOptim AdamW, gradients released", "5", "the same"),
)
"""Optimizer, bytes a parameter with its weight and gradient, source."""


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    for part in ("memory", "again", "large", "speed"):
        if part not in report:
            continue
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
    by_threads, by_density = report["speed"]["by_threads"], _newest(report)
    num_elements = report["model"]["num_elements"]

    def figures() -> Iterator[tuple[str, str, float, float]]:
        for density, limit in PEAK_TARGETS.items():
            if EIGHT_BITS not in by_density[density]:
                continue
            peaks = by_density[density]
            peak = peaks[EIGHT_BITS]["in_use"] / peaks[REFERENCE]["in_use"]
            yield "peak in use above the weights, 8-bit states", density, limit, peak
        for density in PEAK_TARGETS:
            for name, per_element in KEPT_TARGETS.items():
                if name not in by_density[density]:
                    continue
                peaks = by_density[density][name]
                limit = 2.15 + per_element * peaks["num_trained"] / num_elements
                kept = 2 + peaks["kept"] / num_elements
                yield f"bytes kept a parameter, {name}", density, limit, kept
        for threads, times in by_threads.items():
            for density, limit in PHASE_TARGETS.items():
                figure = times[density][OURS][f"optimizer / {UNIT}"]
                yield f"optimizer phase, {_threads(threads)}", density, limit, figure
        for threads, times in by_threads.items():
            for density, part in times.items():
                figure = part[OURS][f"whole / {UNIT}"]
                yield f"whole step, {_threads(threads)}", density, 1.0, figure

    rows(
        ["", "density", "target", "measured", "met"],
        (
            [what, density, f"≤ {limit:.3f}", f"{figure:.3f}", "yes" if figure <= limit else "no"]
            for what, density, limit, figure in figures()
        ),
    )


def _newest(report: Report) -> Mapping[str, Any]:
    """Peaks by density: of the few contestants that were measured again, if there are any."""
    found: Mapping[str, Any] = report.get("again", report["memory"])["by_density"]
    return found


def large(report: Report | None) -> None:
    """Peaks with the large model, and of what they are made."""
    if report is None or "large" not in report:
        return
    part = report["large"]
    weights = 2 * part["num_elements"]

    def line(name: str, peaks: Mapping[str, int]) -> list[str]:
        return [
            name,
            f"{peaks['num_trained'] / 1e6:,.1f} M",
            f"{(weights + peaks['steps']) / 1e9:.2f} GB",
            _megabytes(peaks["steps"]),
            _megabytes(peaks["kept"]) if peaks["kept"] else "",
            f"{(weights + peaks['steps']) / part['num_elements']:.2f}",
        ]

    header = [
        "",
        "trained",
        "peak",
        "above the weights",
        "kept by the optimizer",
        "bytes a parameter",
    ]
    rows(header, (line(name, peaks) for name, peaks in part["peaks"].items()))


def learning(report: Report | None) -> None:
    """Held-out accuracy of every form of state, minus that of the default, seed by seed."""
    if report is None:
        return
    for part in report.values():
        values: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
        for form, task, density, _, seed, sampled, _ in part["cells"]:
            forms = values.setdefault((task, density), {})
            forms.setdefault(form, {})[str(seed)] = sampled
        first = next(iter(values.values()))
        default = next(iter(first))
        seeds = len(first[default])
        others = [form for form in first if form != default]
        rows(
            [f"{seeds} seeds", f"{default}, % right", *(f"{form}, points" for form in others)],
            (
                [
                    f"`{task}`, {density:.0%}",
                    interval(mean_over_seeds(forms[default])),
                    *(
                        interval(difference_over_seeds(forms[form], forms[default]), "+.1f")
                        for form in others
                    ),
                ]
                for (task, density), forms in values.items()
            ),
        )
        print()


def published() -> None:
    """Bytes a parameter that others state."""
    rows(["", "bytes a parameter", "source"], map(list, PUBLISHED))


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
            for density, part in _newest(report).items()
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
