"""`trimtab evaluate MODEL...`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trimtab.cli.questions import question_options, questions_of
from trimtab.cli.results import Outputs, result_options

__all__ = ["command"]

_path = click.Path(path_type=Path)
_seed = click.IntRange(min=0, max=2**32 - 1)


@click.command(
    "evaluate", epilog="Example: trimtab evaluate out/model --base base/ --run run.toml --samples 8"
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--base", metavar="MODEL", help="What they were tuned from: also probe forgetting.")
@question_options
@click.option("--by", metavar="NAME", help="Also by level: a column, or what a task tells.")
@click.option(
    "--samples",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Sampled answers to each question, beside the greedy one.",
)
@click.option("--temperature", type=float, default=1.0, show_default=True, help="Of the samples.")
@click.option("--seed", type=_seed, default=0, show_default=True, help="Of the samples.")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Answers generated at a time.",
)
@click.option("--text", type=_path, metavar="FILE", help="Read this in place of our neutral text.")
@click.option("--suite", metavar="TASK,...", help="Also tasks of lm-evaluation-harness.")
@click.option("--suite-folder", type=_path, help="YAML files of tasks, for --suite.")
@click.option("--suite-limit", type=click.IntRange(min=1), help="Questions of each, at most.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "fp32"]),
    help="Compute in this.  [default: bf16 if all are stored in it]",
)
@result_options
@click.pass_obj
def command(
    typed: str,
    /,
    models: tuple[str, ...],
    base: str | None,
    by: str | None,
    samples: int,
    temperature: float,
    seed: int,
    batch_size: int,
    text: Path | None,
    suite: str | None,
    suite_folder: Path | None,
    suite_limit: int | None,
    dtype: Any,
    outputs: Outputs,
    **asked: Any,
) -> None:
    """Ask models held-out questions, side by side, and measure what they forgot.

    MODEL is a folder or a hub id with an optional @revision. With several, or with --base, each is
    set against the first on the same questions. With --base all read a neutral text beside it.

    Without -o, a table is printed.
    """
    if suite is None and (suite_folder is not None or suite_limit is not None):
        raise click.UsageError("--suite-folder and --suite-limit are for --suite")
    questions = questions_of(by=by, **asked)

    from trimtab.training.evaluation.evaluate import evaluate
    from trimtab.training.evaluation.suites import Suites

    try:
        evaluation = evaluate(
            models,
            base=base,
            questions=questions,
            num_samples=samples,
            temperature=temperature,
            text=text,
            suites=None
            if suite is None
            else Suites(tuple(map(str.strip, suite.split(","))), suite_folder, suite_limit),
            dtype=dtype,
            batch_size=batch_size,
            seed=seed,
        )
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("no answers are kept: the same command asks anew") from None
    outputs.give(evaluation, typed)
