"""Tables of `docs/train.md` drawn from the result of `benchmarks/which_mask.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

from docs.generated import rows

from trimtab.elements.counts import percent
from trimtab.results.statistics import Estimate, difference_over_seeds, mean_over_seeds

__all__ = ["accuracies", "interval", "measured", "rates"]

Report = Mapping[str, Any]
Values = dict[str, float]
"""Seed -> accuracy."""

ALL, LORA, OWN, GRADIENTS = "everything", "LoRA", "own run", "gradients"

TITLES = {
    OWN: "what training everything moved most ¹",
    GRADIENTS: "the largest gradients ²",
    LORA: "LoRA of no more memory ³",
}

ORDER = ("random", "low-magnitude", "high-magnitude", "off-principal", "principal")


def accuracies(report: Report | None, base: str, task: str) -> None:
    """Held-out accuracy of every kind and density, each at its own learning rate.

    With the difference to training everything, paired by seed.
    """
    if (part := _part(report, base)) is None:
        return
    found = _reported(part, task)
    densities = sorted({density for kind, density in found if kind != ALL})
    rate, everything = found[ALL, 1.0]
    before = 100 * fmean(part["base"][task])
    print(
        f"Training everything: {interval(mean_over_seeds(everything))} % right, at a learning "
        f"rate of {_rate(rate)}; before training: {before:.1f} %.\n"
    )

    def cell(kind: str, density: float) -> str:
        if (kind, density) not in found:
            return "–"
        rate, values = found[kind, density]
        rank = f", rank {part['ranks'][str(density)]}" if kind == LORA else ""
        against = interval(difference_over_seeds(values, everything), "+.1f")
        return f"{100 * fmean(values.values()):.1f} ({against})<br>at {_rate(rate)}{rank}"

    kinds = _kinds(kind for kind, _ in found)
    rows(
        [f"`{task}`", *(percent(density, 1.0) for density in densities)],
        ([TITLES.get(kind, f"`{kind}`"), *(cell(kind, d) for d in densities)] for kind in kinds),
    )


def rates(report: Report | None, base: str) -> None:
    """The best learning rate of each density, over that of training everything."""
    if (part := _part(report, base)) is None:
        return
    tasks = list(part["base"])
    by_task = {task: _reported(part, task) for task in tasks}
    densities = sorted({d for found in by_task.values() for kind, d in found if kind != ALL})
    table = []
    for density in densities:
        line = [percent(density, 1.0)]
        for task in tasks:
            unit, _ = by_task[task][ALL, 1.0]
            ratios = [
                by_task[task][kind, density][0] / unit
                for kind in ORDER
                if (kind, density) in by_task[task]
            ]
            ends = (
                [f"{ratio:.3g}" for ratio in sorted({min(ratios), max(ratios)})] if ratios else []
            )
            line.append(" – ".join(ends) or "–")
        table.append(line)
    rows(["density", *(f"`{task}`" for task in tasks)], table)


def measured(report: Report | None, base: str) -> None:
    """How it was measured."""
    if (part := _part(report, base)) is None:
        return
    info = part["provenance"]
    print(
        f"{info['date'][:10]}, trimtab {info['trimtab_version']}, torch {info['torch_version']}, "
        f"transformers {info['transformers_version']}, PEFT {info['peft_version']}, fp32 weights, "
        f"on a CPU ({info['processor']}). {len(part['cells'])} runs of {part['steps']} steps of "
        f"{part['batch']} sequences; {part['num_train']} examples to train on, "
        f"{part['num_heldout']} held out; {part['num_elements']:,} weights. Learning rates chosen "
        f"on {_seeds(part['choosing'])}, results of {_seeds(part['reported'])}."
    )


def _seeds(seeds: list[int]) -> str:
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}"


def _part(report: Report | None, base: str) -> Report | None:
    if report is not None and base not in report:
        print("*Not measured yet.*")
        return None
    return None if report is None else report[base]


def _kinds(found: Iterable[str]) -> list[str]:
    """Kinds of the rows of a table, in order."""
    known = set(found)
    return [kind for kind in (*ORDER, GRADIENTS, OWN, LORA) if kind in known]


def _reported(part: Report, task: str) -> dict[tuple[str, float], tuple[float, Values]]:
    """Kind and density -> learning rate chosen, and accuracies of the reported seeds with it.

    An arm of which a reported seed is missing is left out.
    """
    by_rate: dict[tuple[str, float], dict[float, dict[int, float]]] = {}
    for of, kind, density, rate, seed, sampled, *_ in part["cells"]:
        if of == task:
            by_rate.setdefault((kind, density), {}).setdefault(rate, {})[seed] = sampled

    def chosen(values: Mapping[int, float]) -> float:
        return fmean([values[seed] for seed in part["choosing"] if seed in values] or [0.0])

    arms = {}
    for arm, rates in by_rate.items():
        rate = max(rates, key=lambda each: chosen(rates[each]))
        values = {str(s): rates[rate][s] for s in part["reported"] if s in rates[rate]}
        if len(values) == len(part["reported"]):
            arms[arm] = rate, values
    return arms


def interval(estimate: Estimate, style: str = ".1f") -> str:
    """A share as per cent, with the ends of its interval."""
    value = format(100 * estimate.value, style)
    if estimate.low is None or estimate.high is None:
        return value
    low, high = (format(100 * end, style) for end in (estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _rate(rate: float) -> str:
    mantissa, _, exponent = f"{rate:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}"
