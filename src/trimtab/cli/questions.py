"""Options of the commands that ask a model questions, and what they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.options import PATH, SEED, Function, adding, set_option

if TYPE_CHECKING:
    from trimtab.training.evaluation.questions import Questions
    from trimtab.training.runs.settings import DataTable, RewardTable

task_options = adding(
    click.option("--task", metavar="NAME", help="Task to ask: addition or reasoning_gym:NAME."),
    click.option(
        "--config",
        multiple=True,
        metavar="KEY=VALUE",
        help="Setting of a reasoning-gym task; may be repeated.",
    ),
    click.option("--chat", is_flag=True, help="Put a task's questions as messages of a user."),
)

judging_options = adding(
    click.option(
        "--verifier",
        type=click.Choice(["exact", "regex", "math"]),
        help="How answers to rows of a file are judged.  [default: exact]",
    ),
    click.option(
        "--pattern", metavar="REGEX", help="Expression that finds the answer, for --verifier regex."
    ),
    click.option("--column", metavar="NAME", help="Column of the right answer.  [default: answer]"),
    click.option(
        "--reward",
        metavar="FILE.py:NAME",
        help="Reward function, in place of a verifier; an answer is right if it gives 1.",
    ),
)

answer_options = adding(
    click.option(
        "--stop", metavar="TEXT", help="Text that ends an answer, in addition to the end token."
    ),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Number of tokens of an answer, at most.  [default: 256; addition 3]",
    ),
)

_question_options = adding(
    click.option(
        "--run", type=PATH, metavar="RUN.toml", help="Run whose held-out questions to ask."
    ),
    set_option("Key that `trimtab train --set` set in the file of --run; may be repeated."),
    click.option("--data", type=PATH, metavar="FILE", help="JSON Lines file of rows to ask."),
    task_options,
    click.option(
        "--questions",
        type=click.IntRange(min=1),
        metavar="N",
        help="Number of questions, at most.",
    ),
    click.option(
        "--questions-seed", type=SEED, metavar="SEED", help="Seed of the questions of a task."
    ),
    judging_options,
    answer_options,
)
_QUESTION_SETTINGS = (
    *("run", "overrides", "data", "task", "config", "chat", "questions", "questions_seed"),
    *("verifier", "pattern", "column", "reward", "stop", "max_tokens"),
)


def question_options(function: Callable[..., None]) -> Function:
    """Add the options that `questions_of` takes, as the argument `question_settings`."""

    @wraps(function)
    def with_questions(**settings: Any) -> None:
        chosen = {name: settings.pop(name) for name in _QUESTION_SETTINGS}
        function(question_settings=chosen, **settings)

    return _question_options(with_questions)


def questions_of(
    *,
    run: Path | None,
    overrides: tuple[str, ...],
    task: str | None,
    data: Path | None,
    questions: int | None,
    stop: str | None,
    max_tokens: int | None,
    by: str | None = None,
    **more: Any,
) -> Questions | None:
    """The questions that the options select; None if they select none.

    Raises:
        UsageError: Options contradict each other.
        SettingsError: There are no such questions.
        MissingExtraError: The package of a task is missing.
    """
    options = {"by": by, "questions": questions, "stop": stop, "max_tokens": max_tokens, **more}
    given = {name for name, value in options.items() if value not in (None, (), False)}
    if overrides and run is None:
        raise click.UsageError("--set needs --run")
    if task is not None and (run is not None or data is not None):
        raise click.UsageError("--task cannot be combined with --run or --data")
    if run is None and task is None and data is None:
        _refuse(given, "needs --run, --task or --data")
        return None
    if task is None:
        _refuse(given & {"questions_seed", "config", "chat"}, "is for --task")
    if data is None or run is not None:
        _refuse(given & {"verifier", "pattern", "column", "reward"}, "is for --data alone")

    from trimtab.training.evaluation.questions import (
        file_questions,
        questions_of_run,
        questions_of_task,
        reward_of,
    )
    from trimtab.training.runs.overrides import read_settings

    if task is not None:
        table = task_table(task, more["config"], chat=more["chat"])
        seed = more["questions_seed"] or 0
        selected = questions_of_task(table, seed=seed, num=questions, by=by)
    elif run is not None:
        selected = questions_of_run(read_settings(run, overrides), data=data, num=questions, by=by)
    else:
        assert data is not None
        judge = reward_table(more["verifier"], more["pattern"], more["column"], more["reward"])
        reward = reward_of(judge, Path())
        selected = file_questions(data, reward, column=judge.column, by=by).first(questions)
    if stop is not None:
        selected = replace(selected, stop=stop)
    if max_tokens is not None:
        selected = replace(selected, max_completion_length=max_tokens)
    return selected


def _refuse(names: set[str], why: str) -> None:
    if names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
        raise click.UsageError(f"{flags} {why}")


def task_table(task: str | None, config: tuple[str, ...], **settings: Any) -> DataTable:
    """The table `[data]` of a run file.

    Args:
        task: Name of the task, if there is one.
        config: Its settings: texts `KEY=VALUE`.
        settings: Other keys of the table.

    Raises:
        UsageError: A setting is not of that form.
    """
    from trimtab.training.runs.settings import DataTable

    pairs = [pair.partition("=") for pair in config]
    if bad := [key for key, equals, _ in pairs if not equals]:
        raise click.UsageError(f"--config {bad[0]}: expected KEY=VALUE")
    values = {key: _value(text) for key, _, text in pairs}
    return DataTable(task=task, config=values, **settings)


def _value(text: str) -> Any:
    """A number, true, false or a list as JSON writes it; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def reward_table(
    verifier: Any, pattern: str | None, column: str | None, reward: str | None
) -> RewardTable:
    """The table `[reward]` of a run file.

    Raises:
        UsageError: Options contradict each other.
    """
    from trimtab.training.runs.settings import RewardTable

    if reward is not None and (verifier is not None or pattern is not None):
        raise click.UsageError("--reward cannot be combined with --verifier or --pattern")
    return RewardTable(
        function=reward,
        kind=None if reward is not None else verifier or ("regex" if pattern else "exact"),
        column=column or "answer",
        pattern=pattern,
    )
