"""`trimtab demo`: train, compare, report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

import trimtab
from trimtab.cli.compare import to_json
from trimtab.compare import Comparison
from trimtab.report.files import write_output

if TYPE_CHECKING:
    from trimtab.report.demo import DemoRecord
    from trimtab.training.demo import DemoRun

__all__ = ["command"]

LABELS = {"grpo": "GRPO", "sft": "SFT"}
MEASURES = {"grpo": "reward", "sft": "loss"}
"""What tells of learning; the loss of GRPO hovers around zero by construction."""


@click.command("demo", epilog="Example: trimtab demo --seed 1 --out demo-seed-1")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Optimizer steps of each run.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="Of the questions held out, their order, and the sampling.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Folder for checkpoints, JSON and the report.",
)
@click.pass_obj
def command(typed: str, steps: int, seed: int, out: Path) -> None:
    """See sparse updates happen: RL-tune a real model on this machine, and compare.

    SmolLM2-135M-Instruct learns one-digit addition twice from the same start: by GRPO, and by SFT
    on the right answers at the same learning rate and number of steps. Both are compared with the
    base. Interrupt it when you like; the same command goes on where it was.
    """
    from trimtab.report.demo_table import render_demo_table
    from trimtab.report.html import check_installed, render_demo_html
    from trimtab.training.demo import train_demo

    check_installed()
    started = perf_counter()
    run = train_demo(out, steps=steps, seed=seed)
    comparisons = {LABELS[name]: _compare(run, name, typed) for name in run.arms}
    record = _record(run)
    told = {
        **run.to_dict(),
        "record": record,
        "seconds_in_all": perf_counter() - started,
        "comparisons": {
            label: {"total": c.to_dict()["total"], "by_kind": c.to_dict()["by_kind"]}
            for label, c in comparisons.items()
        },
    }
    for name, label in LABELS.items():
        if label in comparisons:
            write_output(out / f"{name}.json", to_json(comparisons[label]), force=True)
    write_output(out / "demo.json", json.dumps(told, indent=1, allow_nan=False) + "\n", force=True)
    write_output(out / "report.html", render_demo_html(record, comparisons), force=True)
    click.echo(render_demo_table(record, comparisons))
    click.echo(
        f"\n{perf_counter() - started:.0f} s in all. Open {out / 'report.html'}; "
        f"the numbers are in {out / 'demo.json'}.",
    )


def _compare(run: DemoRun, name: str, typed: str) -> Comparison:
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
        "command": typed,
        "seed": settings["seed"],
    }
    return replace(comparison, provenance=told)


def _record(run: DemoRun) -> DemoRecord:
    def scores(evaluation: Any) -> dict[str, Any]:
        told = evaluation.to_dict()
        return {
            "accuracy_greedy": {
                "correct": told["num_greedy_correct"],
                "total": told["num_questions"],
                "standard_error": told["greedy_standard_error"],
            },
            "accuracy_sampled": {
                "correct": sum(answer["num_sampled_correct"] for answer in told["answers"]),
                "total": told["num_questions"] * told["num_samples"],
                "standard_error": told["sampled_standard_error"],
            },
        }

    majority = run.majority
    record: Any = {
        "base_id": run.origin["model"],
        "model_note": f"Its weights are {run.origin['note']}: they are not bit for bit those that "
        "the model was published with.",
        "task": "one-digit addition with a verifiable reward",
        "before": scores(run.before),
        "majority_baseline": {
            "correct": majority.num_correct,
            "total": majority.num_questions,
            "answer": str(majority.answer),
        },
        "arms": {
            LABELS[name]: {
                **scores(arm.evaluation),
                "history": [
                    {key: row[key] for key in ("step", MEASURES[name])}
                    for row in arm.record["history"]
                ],
                "seconds": arm.record["seconds"]["train"],
                "loss_tokens": arm.num_loss_tokens,
                "settings": {
                    **arm.record["settings"],
                    "precision": arm.record["precision"],
                    "forward tokens": arm.num_forward_tokens,
                },
            }
            for name, arm in run.arms.items()
        },
    }
    demo: DemoRecord = record
    return demo
