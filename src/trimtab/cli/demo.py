"""`trimtab example` and `trimtab demo`: what a newcomer starts with.

What the page cannot know of a run, its label and what it is, is said here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    from trimtab.report.demo import DemoRecord, Score
    from trimtab.results.answers import Answers
    from trimtab.training.demo import DemoRun, TrainedRun

LABELS = {
    "grpo": "GRPO",
    "sft": "SFT",
    "grpo-mask": "GRPO mask",
    "grpo-random": "random mask",
    "grpo-matched": "matched mask",
    "grpo-complement": "complement mask",
}
ABOUT = {
    "grpo-mask": "GRPO again, from the same base and with the same questions, order and seed, "
    "training only the weights that GRPO changed. All others keep the value of the base. In every "
    "run weights are fp32 while they are trained, and rounded to bf16 once, when they are saved; "
    "the mask is what changed in the saved bf16. Gradients are clipped by the norm of the whole "
    "gradient, as they are where every weight is trained.",
    "grpo-random": "the same with as many weights of each tensor, at random places.",
    "grpo-matched": "the same with as many weights of each tensor and each bf16 exponent, at "
    "random places: as many small and as many large ones.",
    "grpo-complement": "the same with all the weights that GRPO did not change.",
}
ABOUT_SEED = (
    "GRPO of every weight again, on the same questions under another seed: how far two such runs "
    "agree."
)
MEASURES = {"grpo": "reward", "sft": "loss"}
"""What tells of learning; the loss of GRPO hovers around zero by construction."""

ON_SAMPLES = (
    "GRPO learns from answers that it samples itself. As soon as one weight differs so do the "
    "answers, and with them what is learned from: a run in the mask is not the other one bit for "
    "bit. What counts is its accuracy, and the identity beside that of doing nothing and of the "
    "controls."
)
ON_CONTROLS = (
    "Whether it matters which weights are trained, only controls can tell: “trimtab demo "
    "--controls” adds them."
)
ON_RANDOM = (
    "The random mask has as many weights in each tensor as that of GRPO, but they are larger: bf16 "
    "cannot store a small step on a large weight, and saving rounds it away. “Changed” says what "
    "was left. Whether these weights matter, or only that they are small, the matched mask tells: "
    "it has as many of each size."
)

SETTINGS = {
    "algorithm": "algorithm",
    "steps": "trainer.max_steps",
    "seed": "seed",
    "sequences a step": "trainer.per_device_train_batch_size",
    "answers to a question": "trainer.num_generations",
    "tokens of an answer": "trainer.max_completion_length",
    "temperature": "trainer.temperature",
    "loss": "trainer.loss_type",
    "KL coefficient": "trainer.beta",
    "optimizer": "trainer.optim",
    "learning rate": "trainer.learning_rate",
    "schedule": "trainer.lr_scheduler_type",
    "beta 1": "trainer.adam_beta1",
    "beta 2": "trainer.adam_beta2",
    "epsilon": "trainer.adam_epsilon",
    "weight decay": "trainer.weight_decay",
    "gradient norm": "trainer.max_grad_norm",
    "clipped by": "optimizer.clip_by",
    "mask": "mask",
}
"""What the page lists of the settings of a run -> where `resolved.json` has it."""


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
        for name, what in EXAMPLE.items():
            say(f"{name:{width}}  {what}")
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
    from trimtab.report.demo import demo_document
    from trimtab.report.html import check_installed, render
    from trimtab.report.terminal import render_text
    from trimtab.training.demo import train_demo

    check_installed()
    started = perf_counter()
    try:
        with stop_asked("finishing the step and saving it") as stop:
            run = train_demo(out, controls=controls, steps=steps, seed=seed, stop=stop)
    except KeyboardInterrupt as interrupt:
        why = interrupt.args or ("the same command goes on where it was",)
        raise type(interrupt)(*why) from None
    comparisons = {name: _compare(run, name) for name, of in run.runs.items() if of.mask is None}
    beside = [name for name in run.runs if name not in ("grpo", "sft")]
    beside.sort(key=lambda name: run.runs[name].mask is None)  # the mask first, the seed last
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
    write_text(out / "demo.json", json.dumps(told, indent=1, allow_nan=False) + "\n", force=True)
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
    """A run against GRPO: in its own mask, or in that of GRPO if it trained every weight."""
    mask = run.runs[name].mask or run.runs["grpo-mask"].mask
    assert mask is not None
    check = trimtab.identity(run.base, run.runs["grpo"].folder, run.runs[name].folder, mask)
    return replace(check, provenance={**check.provenance, "command": command_line()})


def _totals(result: Comparison | Identity) -> dict[str, Any]:
    data = result.to_dict()
    return {"total": data["total"], "by_kind": data["by_kind"]}


def label_of(name: str) -> str:
    """What an arm is called in tables and charts."""
    return LABELS.get(name) or f"GRPO seed {name.rpartition('-')[2]}"


def demo_record(run: DemoRun) -> DemoRecord:
    """Everything but the comparisons and identity checks, as plain data."""
    majority = run.majority
    record: Any = {
        "base_id": run.origin["model"],
        "model_note": f"Its weights are {run.origin['note']}: they are not bit for bit those that "
        "the model was published with.",
        "task": "one-digit addition with a verifiable reward",
        "before": _scores(run.before),
        "majority_baseline": {
            "correct": majority["num_correct"],
            "total": majority["num_questions"],
            "answer": str(majority["answer"]),
        },
        "arms": {label_of(name): _arm(run, name, of) for name, of in run.runs.items()},
        "full": LABELS["grpo"],
        "mask_notes": [
            ON_SAMPLES,
            ON_RANDOM if "grpo-random" in run.runs else ON_CONTROLS,
        ],
    }
    demo: DemoRecord = record
    return demo


def _arm(run: DemoRun, name: str, of: TrainedRun) -> dict[str, Any]:
    from trimtab.outputs import flat

    settings, result = flat(of.run.settings()), of.result
    measure = MEASURES[settings["algorithm"]]
    shown = {
        label: settings[key] for label, key in SETTINGS.items() if settings.get(key) is not None
    }
    if "mask" in shown:
        shown["mask"] = f"{shown['mask'][:8]}…"  # a table has no room for whole digests
    record: dict[str, Any] = {
        **_scores(of.answers),
        "history": [{key: row[key] for key in ("step", measure)} for row in result["history"]],
        "seconds": result["seconds"]["train"],
        "loss_tokens": of.tokens["num_loss"],
        "settings": {
            **shown,
            **{f"{what} precision": dtype for what, dtype in result["precision"].items()},
            "forward tokens": of.tokens["num_forward"],
        },
        "optimizer": result["optimizer"],
    }
    if name not in ("grpo", "sft"):
        record["about"] = ABOUT.get(name, ABOUT_SEED)
        record["same_answers"] = _same_answers(of.answers, run.runs["grpo"].answers)
    return record


def _same_answers(answers: Answers, full: Answers) -> Score:
    from trimtab.results.statistics import wilson

    pairs = zip(answers.answers, full.answers, strict=True)
    same, total = sum(one.greedy == two.greedy for one, two in pairs), full.num_questions
    return {"correct": same, "total": total, "interval": list(wilson(same / total, total))}


def _scores(answers: Answers) -> Mapping[str, Any]:
    told = answers.to_dict()
    return {
        "accuracy_greedy": {
            "correct": told["num_greedy_correct"],
            "total": told["num_questions"],
            "interval": told["greedy_interval"],
        },
        "accuracy_sampled": {
            "correct": sum(answer["num_sampled_correct"] for answer in told["answers"]),
            "total": told["num_questions"] * told["num_samples"],
            "interval": told["sampled_interval"],
        },
    }
