"""Tables on the deltas of single steps, drawn from the result of `benchmarks/sync.py`.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from docs.generated import rows
from docs.generated_deltas import NONE, RIVALS

__all__ = [
    "anatomy",
    "bits",
    "bound",
    "break_even",
    "measured",
    "overhead",
    "runs",
    "sizes",
    "stages",
]

Report = Mapping[str, Any]

LISTS = ("u32 index and value, zstd-1", "u32 index and value")

NEMO = RIVALS[1]

RANKS = ("0", "16")


def _measured(report: Report, names: tuple[str, ...]) -> Iterator[tuple[str, str, Report]]:
    """Run, step and sizes of the steps that were measured in every format."""
    for name, run in report["runs"].items():
        if not names or name in names:
            for step, part in run["steps"].items():
                if "sizes" in part:
                    yield name, step, part


def measured(report: Report | None) -> None:
    """How it was measured."""
    if report is None:
        return
    info = report["provenance"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    print(
        f"Measured on {info['date'][:10]} with trimtab {info['trimtab_version']}, torch "
        f"{info['torch_version']}, transformers {info['transformers_version']}, TRL "
        f"{info['trl_version']}, zstandard {info['zstandard_version']}, {packages}, seed 0."
    )


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
        ours, dense = part["delta"]["all"], part["num_bytes"]
        entropy = part["entropies"]["given tensor and exponent"]["sum"]
        ratios = ((rival, part["sizes"].get(rival)) for rival in (*RIVALS, *LISTS))
        return [
            name,
            step,
            f"{100 * part['num_changed'] / part['num_elements']:.3f}",
            f"**{ours / 1000:,.0f}**",
            f"**{100 * ours / dense:.3f}**",
            f"{100 * entropy / dense:.3f}",
            f"{part['over_mask'] / 1000:,.0f}" if "over_mask" in part else NONE,
            *(NONE if size is None else f"{size / ours:.2f} ×" for _, size in ratios),
            f"{dense / ours:,.0f} ×",
        ]

    rows(
        [
            *("run", "step", "changed, %", "delta, kB", "delta, %", "entropy, %"),
            "over its mask, kB",
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
        plain, best = (part["by_rank"][rank] for rank in RANKS)
        kinds = (plain[kind] for kind in ("positions", "distances", "signs", "all"))
        signs = part.get("signs")
        agreement = (
            [NONE, NONE]
            if signs is None
            else [f"{100 * signs[half]:.1f}" for half in ("fitted", "held_out")]
        )
        return [
            name,
            step,
            f"{100 * part['num_changed'] / part['num_elements']:.3f}",
            *(f"{per_change * kind:.2f}" for kind in kinds),
            f"{per_change * best['all']:.2f}",
            *agreement,
        ]

    rows(
        [
            *("run", "step", "changed, %", "positions", "distances", "signs", "sum"),
            "sum, predictors allowed",
            *("signs right, %: fitted", "held out"),
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
                part = run["steps"][step]["delta"]
                rest = part["all"] - part["frames"]
                kinds = (part[kind] for kind in ("frames", "header", "manifest", "files"))
                cells = (f"{kind / 1000:,.1f}" for kind in kinds)
                yield [name, step, *cells, f"{100 * rest / part['all']:.1f} %"]

    rows(
        ["run", "step", "frames, kB", "header, kB", "manifest, kB", "files, kB", "not frames"],
        lines(),
    )


STAGES = ("diff", "encode", "publish", "fetch", "decode", "pause", "apply")


def stages(report: Report | None) -> None:
    """Times of each stage, and what publishing costs the trainer."""
    if report is None:
        return

    def lines(kind: str, names: tuple[str, ...]) -> Iterator[list[str]]:
        for stage in names:
            yield [
                stage,
                *(f"{1000 * part[kind][stage]:,.1f}" for part in report["stages"].values()),
            ]

    runs = [f"{name}, ms" for name in report["stages"]]
    rows(["stage", *runs], lines("seconds", STAGES))
    print()
    rows(
        ["processor time of", *runs],
        lines("processor_seconds", ("blocked", "background", "follower")),
    )
    print()
    for name, part in report["stages"].items():
        info, steps = part["provenance"], part["steps"]
        print(
            f"{name}: medians of steps {steps[0]} to {steps[-1]}, one thread on each side, "
            f"{part['num_bytes']:,.0f} bytes a step; {info['date'][:10]}, load "
            f"{info['load_before']:.0f} on {info['processors']} processors.\n"
        )


def overhead(report: Report | None) -> None:
    """Processor time of a training step that is published, beside one that is not."""
    if report is None:
        return
    for name, part in report["overhead"].items():
        info, seconds = part["provenance"], part["processor_seconds"]
        print(
            f"{name}, training alone and published: {seconds['alone']:.1f} and "
            f"{seconds['published']:.1f} s of processor time a step, {part['ratio']:.2f} × "
            f"(medians of {part['rounds']} pairs; {info['date'][:10]}, load "
            f"{info['load_before']:.0f})."
        )


def bound(report: Report | None, *names: str) -> None:
    """The bounds that were set before measuring."""
    if report is None:
        return
    parts = list(_measured(report, names))
    shares = [part["delta"]["all"] / part["sizes"][NEMO] for _, _, part in parts]
    lists = {
        name: part["sizes"][LISTS[1]] / part["delta"]["all"]
        for name, step, part in parts
        if step == "8"
    }
    at_eight = ", ".join(f"{ratio:.1f} ({name})" for name, ratio in lists.items())
    rows(
        ["bound, everything trained in bf16", "measured", "met"],
        [
            [
                "every step ≤ 0.45 × NeMo style",
                f"{min(shares):.2f} to {max(shares):.2f}",
                "yes" if max(shares) <= 0.45 else "no",
            ],
            [
                "step 8: index and value ≥ 6 × ours",
                at_eight,
                "yes" if min(lists.values(), default=0) >= 6 else "no",
            ],
        ],
    )


def break_even(report: Report | None) -> None:
    """Below which bandwidth publishing a step beats sending the weights."""
    if report is None:
        return

    def line(name: str, part: Report) -> list[str]:
        dense, side = part["num_dense_bytes"], part["processor_seconds"]
        made, taken = side["blocked"] + side["background"], side["follower"]
        below = 8e-9 * (dense - part["num_bytes"]) / (made + taken)
        return [
            name,
            f"{100 * part['num_bytes'] / dense:.3f}",
            f"{1e9 * made / dense:.2f}",
            f"{1e9 * taken / dense:.2f}",
            f"{below:.1f}",
            f"{8 * below:.0f}",
        ]

    rows(
        [
            *("run", "% of dense", "trainer, s for 1 GB", "follower, s for 1 GB"),
            *("beats dense below, Gbit/s: one thread each", "eight each"),
        ],
        (line(name, part) for name, part in report["stages"].items()),
    )
