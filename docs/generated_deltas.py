"""Tables of `docs/benchmarks.md` drawn from the result of `benchmarks/delta_sizes.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

__all__ = ["entropies", "measured", "memory", "sizes"]

Report = Mapping[str, Any]

OURS = "trimtab delta"


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    info = report["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    print(
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, zstandard "
        f"{info['zstandard_version']}, {packages}, and Python {info['python_version']}."
    )


def sizes(report: Report | None) -> None:
    """Size of every format, smallest first, in % of the dense tensors."""
    if report is None:
        return
    pairs = report["pairs"]
    names = sorted(
        {name for pair in pairs.values() for name in pair["sizes"]},
        key=lambda name: sum(pair["sizes"][name]["num_bytes"] for pair in pairs.values()),
    )

    def line(name: str) -> list[str]:
        cells = [f"**{name}**" if name == OURS else name]
        for pair in pairs.values():
            size = pair["sizes"][name]["num_bytes"]
            cells.append(f"{100 * size / pair['num_bytes']:.2f}")
            cells.append(f"{size / pair['sizes'][OURS]['num_bytes']:.2f} ×")
        return cells

    titles = [
        title
        for name, pair in pairs.items()
        for title in (f"{name}, {100 * pair['density']:.2f} % changed", "to ours")
    ]
    rows(["% of the tuned weights", *titles], map(line, names))


def entropies(report: Report | None) -> None:
    """What codes of single elements could reach."""
    if report is None:
        return
    kinds = ("positions", "distances", "signs", "sum")

    def line(name: str, pair: Mapping[str, Any], given: str) -> list[str]:
        part = pair["entropies"][given]
        return [name, given, *(f"{100 * part[kind] / pair['num_bytes']:.2f}" for kind in kinds)]

    rows(
        ["% of the tuned weights", "entropies", *kinds],
        (
            line(name, pair, given)
            for name, pair in report["pairs"].items()
            for given in pair["entropies"]
        ),
    )


def memory(report: Report | None) -> None:
    """Peak memory and time of a large pair."""
    if report is None or "memory" not in report:
        return
    part = report["memory"]
    tensor = part["num_bytes_of_a_tensor"]
    rows(
        [
            f"{part['num_bytes'] / 1e9:.1f} GB in tensors of {tensor / 1e6:.0f} MB",
            "peak resident memory",
            "above one tensor",
            "seconds",
        ],
        (
            [
                step,
                f"{part[step]['num_bytes'] / 1e6:.0f} MB",
                f"{(part[step]['num_bytes'] - tensor) / 1e6:.0f} MB",
                f"{part[step]['seconds']:.0f}",
            ]
            for step in ("make", "apply")
        ),
    )
