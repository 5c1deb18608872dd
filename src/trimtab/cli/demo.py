"""`trimtab example` and `trimtab demo`, for a first look."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from textwrap import indent
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

import trimtab
from trimtab.cli.options import SEED, Command, command_line
from trimtab.cli.terminal import say, stop_asked
from trimtab.outputs import write_text

if TYPE_CHECKING:
    from trimtab.masks.identity import Identity
    from trimtab.measure.compare_result import Comparison
    from trimtab.training.demo import DemoRun

TRY = """\
trimtab compare base tuned --lr 1e-5 --steps 20
trimtab mask extract base tuned -o mask.safetensors
trimtab trajectory base run"""


@click.command(
    "example",
    cls=Command,
    short_help="Write tiny checkpoints to try the other commands on.",
    epilog="Example: trimtab example try-it",
)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path())
def example(folder: Path) -> None:
    """Write tiny checkpoints to try the other commands on, into FOLDER or the current folder.

    They take a second and 600 kB, and are those that the documentation shows: `base` and `tuned`,
    a made-up Llama of two layers before and after 20 random steps; `sub` and `other`, two more like
    `tuned`; and `run`, with eight checkpoints of a longer walk. No torch is needed. Nothing that
    exists is replaced.
    """
    from trimtab.example import EXAMPLE, write_example

    written = write_example(folder)
    if written:
        width = max(map(len, EXAMPLE))
        for name, description in EXAMPLE.items():
            say(f"{name:{width}}  {description}")
        say(f"\nwrote them into {'this folder' if folder == Path() else folder}. Try:")
    else:
        say("the example is here already, as it was written. Try:")
    go = "" if folder == Path() else f"cd {folder}\n"
    say(indent(go + TRY, "  "))


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
    help="Number of optimizer steps of each run.",
)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    help="Seed of the questions held out, their order, and the sampling.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    help="Folder for checkpoints, JSON and the report.",
)
@click.option(
    "--controls",
    is_flag=True,
    help="Also train controls: random masks, also of matched magnitudes; all weights outside the "
    "mask; every weight under the next seed.",
)
def demo(steps: int, seed: int, out: Path, controls: bool) -> None:
    """See sparse updates happen: RL-tune a real model on this machine, and compare.

    SmolLM2-135M-Instruct learns one-digit addition twice from the same start: by GRPO, and by SFT
    on the right answers at the same learning rate and number of steps. Both are compared with the
    base. Then GRPO runs again with the same questions and seed, but trains only the weights that it
    had changed, and the two models are compared. It can be interrupted at any time; the same
    command resumes where it stopped.
    """
    from trimtab.report.demo import demo_document
    from trimtab.report.demo_record import demo_record, label_of
    from trimtab.report.html import check_installed, render
    from trimtab.report.terminal import render_text
    from trimtab.training.demo import train_demo

    check_installed()
    started = perf_counter()
    try:
        with stop_asked("finishing the step and saving it") as stop:
            run = train_demo(out, controls=controls, steps=steps, seed=seed, stop=stop)
    except KeyboardInterrupt as interrupt:
        why = interrupt.args or ("the same command resumes where it stopped",)
        raise type(interrupt)(*why) from None
    comparisons = {name: _compare(run, name) for name in run.runs if run.runs[name].mask is None}
    others = [name for name in run.runs if name not in ("grpo", "sft")]
    others.sort(key=lambda name: run.runs[name].mask is None)  # the mask first, the seed last
    checks = {name: _check(run, name) for name in others}
    for name, comparison in comparisons.items():
        comparison.save(out / f"{name}.json", force=True)
    for name, check in checks.items():
        check.save(out / f"identity-{name}.json", force=True)
    by_label = {label_of(name): comparison for name, comparison in comparisons.items()}
    identities = {label_of(name): check for name, check in checks.items()}
    data = run.to_dict()
    record = demo_record(data)
    numbers = {
        **data,
        "record": record,
        "seconds_in_all": perf_counter() - started,
        "comparisons": {label: _totals(result) for label, result in by_label.items()},
        "identities": {label: _totals(result) for label, result in identities.items()},
    }
    write_text(out / "demo.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n", force=True)
    document = demo_document(record, by_label, identities)
    write_text(out / "report.html", render(document), force=True)
    say(render_text(document))
    say(
        f"\n{perf_counter() - started:.0f} s in all. Open {out / 'report.html'}; "
        f"the numbers are in {out / 'demo.json'}.",
    )


def _compare(run: DemoRun, name: str) -> Comparison:
    settings = run.runs[name].run.settings()
    trainer = settings["trainer"]
    comparison = trimtab.compare(
        run.base,
        run.runs[name].folder,
        lr=trainer["learning_rate"],
        steps=trainer["max_steps"],
        betas=(trainer["adam_beta1"], trainer["adam_beta2"]),
    )
    provenance = {**comparison.provenance, "command": command_line(), "seed": settings["seed"]}
    return replace(comparison, provenance=provenance)


def _check(run: DemoRun, name: str) -> Identity:
    """Compare a run with GRPO in its own mask, or in GRPO's if it trained every weight."""
    mask = run.runs[name].mask or run.runs["grpo-mask"].mask
    assert mask is not None
    check = trimtab.identity(run.base, run.runs["grpo"].folder, run.runs[name].folder, mask)
    return replace(check, provenance={**check.provenance, "command": command_line()})


def _totals(result: Comparison | Identity) -> dict[str, Any]:
    data = result.to_dict()
    return {"total": data["total"], "by_kind": data["by_kind"]}
