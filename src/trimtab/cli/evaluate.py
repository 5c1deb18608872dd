"""`trimtab evaluate MODEL...` and `trimtab robustness CHECKPOINT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import trimtab.training
from trimtab.cli import options
from trimtab.cli.questions import question_options, questions_of
from trimtab.cli.terminal import say
from trimtab.outputs import is_stream

NOISES = ("gaussian", "gaussian-absolute", "sign", "bitflip")
"""Those of `trimtab.training.perturbation.noise`, which is not imported for `--help`."""


@click.command(
    "evaluate",
    cls=options.Command,
    short_help="Ask models held-out questions, and measure what they forgot.",
    epilog="Example: trimtab evaluate out/model --base base/ --run run.toml --samples 8",
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--base", metavar="MODEL", help="Model that they were tuned from, to also probe forgetting."
)
@question_options
@click.option("--by", metavar="NAME", help="Column, or level of a task, to also count by.")
@click.option(
    "--samples",
    "num_samples",
    type=click.IntRange(min=0),
    default=0,
    help="Number of sampled answers to each question, in addition to the greedy one.",
)
@click.option("--temperature", type=float, default=1.0, help="Sampling temperature.")
@options.seed_option("Seed of the samples.", options.SEED)
@options.batch_size_option
@options.text_option
@click.option("--suite", metavar="TASK,...", help="Tasks of lm-evaluation-harness to ask as well.")
@click.option(
    "--suite-folder", type=options.PATH, help="Folder of YAML files of tasks, for --suite."
)
@click.option(
    "--suite-limit", type=click.IntRange(min=1), help="Number of questions of each task, at most."
)
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    help="Dtype to compute in.  [default: bf16 if all are stored in it]",
)
@options.result_options
def evaluate(
    models: tuple[str, ...],
    by: str | None,
    suite: str | None,
    suite_folder: Path | None,
    suite_limit: int | None,
    question_settings: dict[str, Any],
    outputs: options.Outputs,
    **settings: Any,
) -> None:
    """Ask models held-out questions, side by side, and measure what they forgot.

    MODEL is a folder or a hub id with an optional @revision. With several, or with --base, each is
    compared with the first on the same questions. With --base, the forgetting of each is measured
    on a neutral text.

    Without -o, a table is printed.
    """
    if suite is None and (suite_folder is not None or suite_limit is not None):
        raise click.UsageError("--suite-folder and --suite-limit are for --suite")
    questions = questions_of(by=by, **question_settings)

    from trimtab.training.evaluation.suites import Suites

    tasks = options.names_of(suite)
    try:
        evaluation = trimtab.training.evaluate(
            models,
            questions=questions,
            suites=None if tasks is None else Suites(tuple(tasks), suite_folder, suite_limit),
            **settings,
        )
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("no answers are kept: the same command starts over") from None
    outputs.give(evaluation)


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers and commas between them") from None


@click.command(
    "robustness",
    cls=options.Command,
    short_help="Test whether a mask is more fragile than other sets of its size.",
    epilog="Example: trimtab robustness tuned/ --mask m.safetensors --base base/ --task addition",
)
@click.argument("checkpoint")
@click.option(
    "--mask", type=options.PATH, required=True, help="Mask whose elements to perturb first."
)
@click.option("--base", required=True, metavar="MODEL", help="Base that the mask was made against.")
@click.option(
    "--noise",
    "noises",
    multiple=True,
    type=click.Choice(NOISES),
    help="Kind of noise; may be repeated.  [default: all]",
)
@click.option(
    "--levels",
    default="0.1,0.3,1",
    callback=_numbers,
    metavar="LEVEL,...",
    help="Noise levels: relative size for Gaussian noise, fraction of elements otherwise.",
)
@click.option(
    "--seeds",
    "num_seeds",
    type=click.IntRange(min=1),
    default=3,
    help="Number of draws of elements and noise.",
)
@options.seed_option("Seed of the first draw.", options.SEED)
@question_options
@options.text_option
@click.option(
    "--passages",
    "num_passages",
    type=click.IntRange(min=1),
    help="Number of passages of the text, at most.",
)
@options.batch_size_option
@options.result_options
def robustness(
    checkpoint: str,
    noises: tuple[str, ...],
    levels: tuple[float, ...],
    num_seeds: int,
    question_settings: dict[str, Any],
    outputs: options.Outputs,
    **settings: Any,
) -> None:
    """Test whether a subnetwork is more fragile than other weights of the model.

    CHECKPOINT is a folder or a hub id with an optional @revision. Noise is added to the elements
    of the mask, and to the same number of elements of each tensor: outside the mask, at random, and
    at random with matched magnitudes of the base's weights. After each, the KL from the unperturbed
    model is measured on a text, and questions are asked if there are any. No file is changed.

    That is noises x levels x seeds x 4 sets: 144 conditions by default. After the first, the time
    that the others take is estimated. With -o NAME.json it can be interrupted at any time: the same
    command resumes and keeps what is finished. Without -o, nothing is kept, and a table is printed.
    """
    questions = questions_of(**question_settings)

    from trimtab.training.perturbation.noise import ARMS

    output = outputs.output
    unfinished = None
    if output is not None and not is_stream(output):
        unfinished = output.with_suffix(".partial.jsonl")
    else:
        num = len(noises or NOISES) * len(levels) * num_seeds * len(ARMS)
        say(
            f"{num} conditions; nothing is kept if this is interrupted: with -o NAME.json the same "
            "command resumes",
            err=True,
        )
    try:
        result = trimtab.training.robustness(
            checkpoint,
            questions=questions,
            noises=noises or NOISES,
            levels=levels,
            num_seeds=num_seeds,
            unfinished=unfinished,
            **settings,
        )
    except KeyboardInterrupt as interrupt:
        if unfinished is None:
            raise
        raise type(interrupt)("the same command resumes and keeps what is finished") from None
    outputs.give(result)
    if unfinished is not None:
        unfinished.unlink()
