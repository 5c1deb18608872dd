"""Tables on the deltas of single steps, drawn from the result of `benchmarks/sync.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generated import rows
from docs.generated_deltas import NONE, OURS, RIVALS

__all__ = ["anatomy", "bits", "runs", "sizes"]

Report = Mapping[str, Any]

LISTS = ("u32 index and value, zstd-1", "u32 index and value")

NEMO = RIVALS[1]

RANKS = ("0", "1", "16")


def _measured(report: Report, names: tuple[str, ...]) -> Iterator[tuple[str, str, Report]]:
    """Run, step and sizes of the steps that were measured in every format."""
    for name, run in report["runs"].items():
        if not names or name in names:
            for step, part in run["steps"].items():
                if "sizes" in part:
                    yield name, step, part


def runs(report: Report | None) -> None:
    """What the runs are."""
    if report is None:
        return

    def line(name: str, run: Report) -> list[str]:
        settings = run["settings"]
        trained = "everything" if settings["mask"] == "none" else settings["mask"]
        cells = settings["base"], settings["dtype"], f"{settings['learning_rate']:g}", trained
        return [name, *cells, str(len(run["steps"]))]

    rows(
        ["run", "base", "weights in training", "learning rate", "trained", "steps measured"],
        (line(name, run) for name, run in report["runs"].items()),
    )


def sizes(report: Report | None, *names: str) -> None:
    """Size of the delta of a step, and the sizes of others as ratios to it."""
    if report is None:
        return

    def line(name: str, step: str, part: Report) -> list[str]:
        ours, dense = part["sizes"][OURS], part["num_bytes"]
        entropy = part["entropies"]["given tensor and exponent"]["sum"]
        ratios = ((rival, part["sizes"].get(rival)) for rival in (*RIVALS, *LISTS))
        return [
            name,
            step,
            f"{100 * part['num_changed'] / part['num_elements']:.3f}",
            f"**{ours / 1000:,.0f}**",
            f"**{100 * ours / dense:.3f}**",
            f"{100 * entropy / dense:.3f}",
            *(NONE if size is None else f"{size / ours:.2f} ×" for _, size in ratios),
            f"{dense / ours:,.0f} ×",
        ]

    rows(
        [
            *("run", "step", "changed, %", "delta, kB", "delta, %", "entropy, %"),
            *(*RIVALS, *LISTS, "dense"),
        ],
        (line(*item) for item in _measured(report, names)),
    )


def bits(report: Report | None, *names: str) -> None:
    """Bits for each changed element of a step, and of its sign with predictors."""
    if report is None:
        return

    def line(name: str, step: str, part: Report) -> list[str]:
        per_change = 8 / part["num_changed"]
        plain = part["by_rank"]["0"]
        kinds = (plain[kind] for kind in ("positions", "distances", "signs"))
        signs = (part["by_rank"][rank]["signs"] for rank in RANKS[1:])
        factors = (part["by_rank"][rank]["predictors"] for rank in RANKS[1:])
        return [
            name,
            step,
            *(f"{per_change * kind:.2f}" for kind in kinds),
            f"{per_change * plain['all']:.2f}",
            *(
                f"{per_change * s:.2f} + {per_change * f:.2f}"
                for s, f in zip(signs, factors, strict=True)
            ),
            f"{per_change * part['by_rank'][RANKS[-1]]['all']:.2f}",
        ]

    rows(
        [
            *("run", "step", "positions", "distances", "signs", "all"),
            *(f"signs + factors, rank up to {rank}" for rank in RANKS[1:]),
            f"all, rank up to {RANKS[-1]}",
        ],
        (line(*item) for item in _measured(report, names)),
    )


def anatomy(report: Report | None, *names: str) -> None:
    """What the bytes of a delta file are, in its first step, its eighth and its last."""
    if report is None:
        return

    def lines() -> Iterator[list[str]]:
        for name, run in report["runs"].items():
            if name not in names:
                continue
            for step in dict.fromkeys(("1", "8", list(run["steps"])[-1])):
                part = run["steps"][step]["without predictors"]
                rest = part["all"] - part["frames"]
                kinds = (part[kind] for kind in ("frames", "header", "manifest", "files"))
                cells = (f"{kind / 1000:,.1f}" for kind in kinds)
                yield [name, step, *cells, f"{100 * rest / part['all']:.1f} %"]

    rows(
        ["run", "step", "frames, kB", "header, kB", "manifest, kB", "files, kB", "not frames"],
        lines(),
    )
