"""`trimtab demo`: train, compare, train only the mask, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

import trimtab
from trimtab.cli.options import SEED, Command, command_line
from trimtab.cli.terminal import say

if TYPE_CHECKING:
    from trimtab.masks.identity import Identity
    from trimtab.measure.compare_result import Comparison
    from trimtab.training.demo import DemoRun


@click.command(
    "demo",
    cls=Command,
    short_help="See it happen: RL-tune a real model on this machine.",
    epilog="Example: trimtab demo --seed 1 --out demo-seed-1",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of optimizer steps of each run.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Seed of the questions held out, their order, and the sampling.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for checkpoints, JSON and the report.",
)
@click.option(
    "--controls",
    is_flag=True,
    help="Also train as many weights at random places, as many of each size, all weights outside "
    "the mask, and every weight under the next seed.",
)
def demo(steps: int, seed: int, out: Path, controls: bool) -> None:
    """See sparse updates happen: RL-tune a real model on this machine, and compare.

    SmolLM2-135M-Instruct learns one-digit addition twice from the same start: by GRPO, and by SFT
    on the right answers at the same learning rate and number of steps. Both are compared with the
    base. Then GRPO runs again with the same questions and seed, but trains only the weights that it
    had changed, and the two models are set side by side. Interrupt it when you like; the same
    command goes on where it was.
    """
    from trimtab.cli.demo_record import demo_record, label_of
    from trimtab.report.demo import demo_document
    from trimtab.report.files import write_output
    from trimtab.report.html import check_installed, render
    from trimtab.report.terminal import render_text
    from trimtab.training.demo import train_demo

    check_installed()
    started = perf_counter()
    try:
        run = train_demo(out, controls=controls, steps=steps, seed=seed)
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("the same command goes on where it was") from None
    comparisons = {name: _compare(run, name) for name, arm in run.arms.items() if arm.mask is None}
    beside = [name for name in run.arms if name not in ("grpo", "sft")]
    beside.sort(key=lambda name: run.arms[name].mask is None)  # the mask first, the seed last
    checks = {name: _check(run, name) for name in beside}
    for name, comparison in comparisons.items():
        comparison.save(out / f"{name}.json", force=True)
    for name, check in checks.items():
        check.save(out / f"identity-{name}.json", force=True)
    by_label = {label_of(name): comparison for name, comparison in comparisons.items()}
    identities = {label_of(name): check for name, check in checks.items()}
    record = demo_record(run)
    told = {
        **run.to_dict(),
        "record": record,
        "seconds_in_all": perf_counter() - started,
        "comparisons": {label: _totals(of) for label, of in by_label.items()},
        "identities": {label: _totals(of) for label, of in identities.items()},
    }
    write_output(out / "demo.json", json.dumps(told, indent=1, allow_nan=False) + "\n", force=True)
    document = demo_document(record, by_label, identities)
    write_output(out / "report.html", render(document), force=True)
    say(render_text(document))
    say(
        f"\n{perf_counter() - started:.0f} s in all. Open {out / 'report.html'}; "
        f"the numbers are in {out / 'demo.json'}.",
    )


def _compare(run: DemoRun, name: str) -> Comparison:
    settings = run.arms[name].record["settings"]
    comparison = trimtab.compare(
        run.base,
        run.arms[name].folder,
        lr=settings["learning_rate"],
        steps=settings["steps"],
        betas=(settings["beta1"], settings["beta2"]),
    )
    told = {
        **comparison.provenance,
        "command": command_line(),
        "seed": settings["seed"],
    }
    return replace(comparison, provenance=told)


def _check(run: DemoRun, name: str) -> Identity:
    """A run against GRPO: in its own mask, or in that of GRPO if it trained every weight."""
    mask = run.arms[name].mask or run.arms["grpo-mask"].mask
    assert mask is not None
    check = trimtab.identity(run.base, run.arms["grpo"].folder, run.arms[name].folder, mask)
    return replace(check, provenance={**check.provenance, "command": command_line()})


def _totals(result: Comparison | Identity) -> dict[str, Any]:
    data = result.to_dict()
    return {"total": data["total"], "by_kind": data["by_kind"]}
