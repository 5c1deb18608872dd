"""`trimtab robustness CHECKPOINT --mask m.safetensors --base BASE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trimtab.cli.questions import question_options, questions_of
from trimtab.cli.results import Outputs, result_options
from trimtab.cli.terminal import say
from trimtab.outputs import is_stream

__all__ = ["command"]

NOISES = ("gaussian", "gaussian-absolute", "sign", "bitflip")
"""Those of `trimtab.training.perturbation.noise`, which is not imported for `--help`."""


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r}: expected numbers and commas between them") from None


@click.command(
    "robustness",
    epilog="Example: trimtab robustness tuned/ --mask m.safetensors --base base/ --task addition",
)
@click.argument("checkpoint")
@click.option(
    "--mask", type=click.Path(path_type=Path), required=True, help="What to perturb first."
)
@click.option("--base", required=True, metavar="MODEL", help="What the mask was made against.")
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
    show_default=True,
    callback=_numbers,
    metavar="LEVEL,...",
    help="Of Gaussian noise its relative size, of the others the share of elements hit.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often sets of elements and noise are drawn.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=0,
    show_default=True,
    help="The first of them.",
)
@question_options
@click.option(
    "--text", type=click.Path(path_type=Path), help="Read this in place of our neutral text."
)
@click.option(
    "--passages", type=click.IntRange(min=1), help="Read so many passages of the text, at most."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Answers generated at a time.",
)
@result_options
@click.pass_obj
def command(
    typed: str,
    /,
    checkpoint: str,
    mask: Path,
    base: str,
    noises: tuple[str, ...],
    levels: tuple[float, ...],
    seeds: int,
    seed: int,
    text: Path | None,
    passages: int | None,
    batch_size: int,
    outputs: Outputs,
    **asked: Any,
) -> None:
    """Ask whether a subnetwork is more fragile than other weights of the model.

    CHECKPOINT is a folder or a hub id with an optional @revision. Noise is put into the elements
    of the mask; into as many of each tensor outside it; into as many at random; and into as many
    at random that the base's weights match in magnitude. After each, a text is read beside the
    unperturbed model (KL), and questions are asked if there are any. The files are not touched.

    That is noises x levels x seeds x 4 sets: 144 conditions, unless you ask for fewer. After the
    first it is told how long they take. With -o NAME.json, interrupt it when you like: the same
    command goes on, and keeps what is finished. Without -o, nothing is kept, and a table is
    printed.
    """
    questions = questions_of(**asked)

    from trimtab.training.perturbation.noise import ARMS
    from trimtab.training.perturbation.probe import robustness

    output = outputs.output
    keeps = output is not None and not is_stream(output)
    unfinished = output.with_suffix(".partial.jsonl") if output is not None and keeps else None
    if unfinished is None:
        num = len(noises or NOISES) * len(levels) * seeds * len(ARMS)
        say(
            f"{num} conditions, of which nothing is kept if this is interrupted: with -o NAME.json "
            "the same command goes on",
            err=True,
        )
    try:
        result = robustness(
            checkpoint,
            base=base,
            mask=mask,
            questions=questions,
            noises=noises or NOISES,
            levels=levels,
            num_seeds=seeds,
            seed=seed,
            text=text,
            num_passages=passages,
            batch_size=batch_size,
            unfinished=unfinished,
        )
    except KeyboardInterrupt as interrupt:
        if unfinished is None:
            raise
        raise type(interrupt)("the same command goes on, and keeps what is finished") from None
    outputs.give(result, typed)
    if unfinished is not None:
        unfinished.unlink()
