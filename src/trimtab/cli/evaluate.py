"""`trimtab evaluate MODEL...`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.results import Outputs, result_options

if TYPE_CHECKING:
    from trimtab.training.evaluation.questions import Questions

__all__ = ["command"]

_path = click.Path(path_type=Path)
_seed = click.IntRange(min=0, max=2**32 - 1)


@click.command(
    "evaluate", epilog="Example: trimtab evaluate out/model --base base/ --run run.toml --samples 8"
)
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--base", metavar="MODEL", help="What they were tuned from: also probe forgetting.")
@click.option("--run", type=_path, metavar="RUN.toml", help="Ask what this run was not trained on.")
@click.option("--task", metavar="NAME", help="Ask a task: addition or reasoning_gym:NAME.")
@click.option("--data", type=_path, metavar="FILE", help="Ask the rows of a JSON Lines file.")
@click.option("--by", metavar="NAME", help="Also by level: a column, or what a task tells.")
@click.option("--questions", type=click.IntRange(min=1), metavar="N", help="Ask so many, at most.")
@click.option("--questions-seed", type=_seed, metavar="SEED", help="Which questions a task asks.")
@click.option(
    "--config", multiple=True, metavar="KEY=VALUE", help="Configure a reasoning-gym task."
)
@click.option("--chat", is_flag=True, help="Put a task's questions as messages of a user.")
@click.option(
    "--verifier",
    type=click.Choice(["exact", "regex", "math"]),
    help="When an answer is right, for --data.  [default: exact]",
)
@click.option("--pattern", metavar="REGEX", help="Finds the answer, for --verifier regex.")
@click.option("--column", metavar="NAME", help="Column of the right answer.  [default: answer]")
@click.option("--reward", metavar="FILE.py:NAME", help="A reward function; right if it gives 1.")
@click.option("--stop", metavar="TEXT", help="Ends an answer, beside the end token.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    help="Of an answer.  [default: 256; addition 3]",
)
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
    questions = _questions(**asked)

    from trimtab.training.evaluation.engine import evaluate
    from trimtab.training.evaluation.suites import Suites

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
    outputs.give(evaluation, typed)


def _questions(
    *,
    run: Path | None,
    task: str | None,
    data: Path | None,
    by: str | None,
    questions: int | None,
    stop: str | None,
    max_tokens: int | None,
    **more: Any,
) -> Questions | None:
    """What to ask, as the options say; None if they say nothing of it."""
    options = {"by": by, "questions": questions, "stop": stop, "max_tokens": max_tokens, **more}
    given = {name for name, value in options.items() if value not in (None, (), False)}
    of_task, of_data = (
        {"questions_seed", "config", "chat"},
        {"verifier", "pattern", "column", "reward"},
    )
    if task is not None and (run is not None or data is not None):
        raise click.UsageError("--task stands alone: without --run and --data")
    if run is None and task is None and data is None:
        _refuse(given, "needs --run, --task or --data")
        return None
    _refuse(given & of_task if task is None else set(), "is for --task")
    _refuse(given & of_data if data is None or run is not None else set(), "is for --data alone")
    if task is not None:
        made = _of_task(task, by, questions, **{name: more[name] for name in of_task})
    elif run is not None:
        from trimtab.training.evaluation.questions import questions_of_run
        from trimtab.training.runs.run_file import RunFile

        made = questions_of_run(RunFile.read(run), data=data, num=questions, by=by)
    else:
        assert data is not None
        made = _of_data(data, by, **{name: more[name] for name in of_data}).first(questions)
    if stop is not None:
        made = replace(made, stop=stop)
    return made if max_tokens is None else replace(made, max_completion_length=max_tokens)


def _refuse(names: set[str], why: str) -> None:
    if names:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
        raise click.UsageError(f"{told} {why}")


def _of_task(
    task: str,
    by: str | None,
    num: int | None,
    *,
    questions_seed: int | None,
    config: tuple[str, ...],
    chat: bool,
) -> Questions:
    from trimtab.training.evaluation.questions import questions_of_task
    from trimtab.training.runs.tables import DataTable

    pairs = [pair.partition("=") for pair in config]
    if bad := [key for key, equals, _ in pairs if not equals]:
        raise click.UsageError(f"--config {bad[0]}: expected KEY=VALUE")
    table = DataTable(task=task, chat=chat, config={key: _value(text) for key, _, text in pairs})
    return questions_of_task(table, seed=questions_seed or 0, num=num, by=by)


def _value(text: str) -> Any:
    """A number, true, false or a list as JSON writes it; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _of_data(
    data: Path,
    by: str | None,
    *,
    verifier: Any,
    pattern: str | None,
    column: str | None,
    reward: str | None,
) -> Questions:
    from trimtab.training.evaluation.questions import file_questions, reward_of
    from trimtab.training.runs.tables import RewardTable

    if reward is not None and (verifier is not None or pattern is not None):
        raise click.UsageError("--reward judges alone: without --verifier and --pattern")
    table = RewardTable(
        function=reward,
        kind=None if reward is not None else verifier or ("regex" if pattern else "exact"),
        column=column or "answer",
        pattern=pattern,
    )
    return file_questions(data, reward_of(table, Path()), column=table.column, by=by)
