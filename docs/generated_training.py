"""Tables of `docs/benchmarks.md` drawn from the result of `benchmarks/training.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from docs.generated import rows

__all__ = ["measured", "memory", "speed"]

Report = Mapping[str, Any]

BARE, WHOLE = "bare TRL", "whole model"
CONTESTANTS = (BARE, WHOLE, "20%", "5%")


def speed(report: Report | None) -> None:
    """Tokens per second, and their ratios to those of the unit."""
    _table(report, "tokens per second", "speed", lambda value: f"{value:,.0f}")


def memory(report: Report | None) -> None:
    """Peaks above the weights, and their ratios to that of the unit."""
    _table(report, "peak", "peak", lambda value: f"{value / 1e6:,.0f} MB")


def measured(report: Report | None) -> None:
    """How it was measured; one line for all algorithms measured in the same way."""
    if report is None:
        return
    groups: dict[str, list[tuple[str, float]]] = {}
    for name, part in report["by_algorithm"].items():
        info = part["provenance"]
        text = (
            f"{info['date'][:10]}, trimtab {info['trimtab_version']}, torch "
            f"{info['torch_version']}, transformers {info['transformers_version']}, TRL "
            f"{info['trl_version']}, {info['processor']}, {info['processors']} processors; "
            f"{_number(part['rounds'], 'round')} of {_number(part['steps'], 'step')}"
        )
        groups.setdefault(text, []).append((name, info["load_before"]))
    for text, entries in groups.items():
        names, loads = zip(*entries, strict=True)
        print(f"- {', '.join(names)}: {text}; load before the first: {loads[0]:.2f}")
    model = report["model"]
    tokens = report["sequences"] * (report["prompt"] + report["completion"])
    print(
        f"\nThe model has {model['num_elements']:,} parameters in {model['num_hidden_layers']} "
        f"layers of width {model['hidden_size']}. A step takes {report['sequences']} sequences of "
        f"{report['prompt']} + {report['completion']} tokens: {tokens} tokens."
    )


def _table(report: Report | None, figure: str, ratio: str, shown: Callable[[float], str]) -> None:
    """A figure of every contestant, and its ratio to that of the unit."""
    if report is None:
        return

    def line(name: str, contestants: Mapping[str, Mapping[str, float]]) -> list[str]:
        unit = BARE if BARE in contestants else WHOLE
        return [
            name,
            *(
                shown(contestants[name][figure]) if name in contestants else "–"
                for name in CONTESTANTS
            ),
            unit,
            *(f"{contestants[name][f'{ratio} / {unit}']:.2f}" for name in CONTESTANTS[1:]),
        ]

    rows(
        ["", *CONTESTANTS, "unit", *(f"{name} ÷ unit" for name in CONTESTANTS[1:])],
        (line(name, part["contestants"]) for name, part in report["by_algorithm"].items()),
    )


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
