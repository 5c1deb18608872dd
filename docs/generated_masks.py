"""Tables of `docs/overlap.md` and `docs/benchmarks.md` on masks, drawn from recorded results.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from docs.generated import rows

from trimtab.elements.counts import percent
from trimtab.report.chance import count_text, lift_text, z_text

__all__ = ["agreement", "by_kind", "chances", "lifts", "measured", "origin", "speed", "targets"]

Report = Mapping[str, Any]

TARGETS = (
    (
        "overlap, independent and per-tensor nulls",
        "overlap",
        "overlap, 2 threads / numpy",
        "≤ 3 × reading both files and popcount with NumPy",
        3.0,
    ),
    (
        "overlap, magnitude-matched null",
        "magnitude",
        "overlap, 2 threads / hashing, 2 threads",
        "≤ 2 × reading the base's weights once",
        2.0,
    ),
    (
        "`mask extract`, 1 % changed",
        "extract, 1% changed",
        "extract, 2 threads / compare, 2 threads",
        "≤ 1.3 × `compare`",
        1.3,
    ),
    (
        "`mask extract`, 20 % changed",
        "extract, 20% changed",
        "extract, 2 threads / compare, 2 threads",
        "≤ 1.3 × `compare`",
        1.3,
    ),
)
"""What is measured, its part and ratio in the report, and the target."""

MOST_MEGABYTES = 1000


def origin(report: Report | None) -> None:
    """How the figures of the demo were made."""
    if report is None:
        return
    info = report["provenance"]
    dtypes = ", ".join(report["dtypes"])
    print(
        f"Criterion {report['criterion']}, weights stored in {dtypes}; seed of the random controls "
        f"{report['control_seed']}; trained and counted on a CPU ({info['processor']}), "
        f"{info['date'][:10]}, trimtab {info['trimtab_version']}."
    )


def chances(report: Report | None) -> None:
    """For each pair, what is shared, and the expectation under each null."""
    if report is None:
        return
    rows(
        [
            "A",
            "B",
            "density of A",
            "of B",
            "o1",
            "o2",
            "chance of o1: independent",
            "per-tensor",
            "magnitude",
        ],
        (
            [
                pair["first"],
                pair["second"],
                *(
                    _share(total[key] / total["num_elements"])
                    for key in ("num_first", "num_second")
                ),
                _share(total["o1"]),
                _share(total["o2"]),
                *(_share(null["chance"]["o1"]) for null in total["nulls"].values()),
            ]
            for pair in report["pairs"]
            for total in (pair["total"],)
        ),
    )


def lifts(report: Report | None) -> None:
    """For each pair, the lift over each null, and its z."""
    if report is None:
        return
    rows(
        ["A", "B", "lift: independent", "per-tensor", "magnitude", "z: magnitude"],
        (
            [
                pair["first"],
                pair["second"],
                *(lift_text(null["lift"]) for null in nulls.values()),
                z_text(nulls["magnitude-matched"]["z"]),
            ]
            for pair in report["pairs"]
            for nulls in (pair["total"]["nulls"],)
        ),
    )


def by_kind(report: Report | None) -> None:
    """The first pair by kind."""
    if report is None:
        return
    pair = report["pairs"][0]
    rows(
        ["kind", "o1", "o2", "lift: independent", "per-tensor", "magnitude"],
        (
            [
                name,
                _share(shared["o1"]),
                _share(shared["o2"]),
                *(lift_text(null["lift"]) for null in shared["nulls"].values()),
            ]
            for name, shared in {**pair["by_kind"], "all": pair["total"]}.items()
        ),
    )


def agreement(report: Report | None) -> None:
    """How many weights are in exactly 0, 1, 2 or 3 of the runs' masks."""
    if report is None:
        return
    consensus = report["consensus"]
    rows(
        ["number of masks", "weights", *consensus["nulls"]],
        (
            [
                str(count),
                f"{num:,}",
                *(
                    count_text(null["expected_by_count"][count])
                    for null in consensus["nulls"].values()
                ),
            ]
            for count, num in enumerate(consensus["num_by_count"])
        ),
    )


def targets(report: Report | None) -> None:
    """Targets, results, and whether they were met."""
    if report is None:
        return
    cells = []
    for what, part, ratio, target, limit in TARGETS:
        wall, cpu = (report[part][kind][ratio] for kind in ("ratios", "cpu_ratios"))
        cells.append([what, target, f"{wall:.2f} ×", f"{cpu:.2f} ×", _met(wall <= limit)])
    peak = max(report[part]["peak_mb"] for part in ("overlap", "magnitude"))
    met = _met(peak <= MOST_MEGABYTES)
    cells.append(["peak memory of an overlap", "≤ 1 GB", f"{peak:.0f} MB", "", met])
    rows(["on two threads", "target", "measured", "processor time", "met"], cells)


def speed(report: Report | None) -> None:
    """Times of all contestants."""
    if report is None:
        return
    rows(
        ["", "contestant", "median", "processor time"],
        (
            [
                part.replace("%", " %") if index == 0 else "",
                name,
                f"{seconds:.3f} s",
                f"{times['cpu_seconds'][name]:.3f} s",
            ]
            for part, times in report.items()
            if "seconds" in times
            for index, (name, seconds) in enumerate(times["seconds"].items())
        ),
    )


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    info = report["provenance"]
    masks, base = report["overlap"]["num_bytes"], report["magnitude"]["num_bytes"]
    print(
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, NumPy "
        f"{info['numpy_version']} and Numba {info['numba_version']} on {info['processor']}, "
        f"{info['processors']} processors; load before: {info['load_before']:.2f}. Two masks of "
        f"{masks / 1e9:.2f} GB together; a base of {base / 1e9:.2f} GB for the magnitude-matched "
        f"null; {report['overlap']['rounds']} rounds."
    )


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value, 1.0)


def _met(is_met: bool) -> str:
    return "yes" if is_met else "no"
