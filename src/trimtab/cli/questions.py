"""What the commands that ask a model share: which questions, and when an answer is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from trimtab.training.evaluation.questions import Questions
    from trimtab.training.runs.settings import RewardTable

__all__ = ["question_options", "questions_of", "reward_table", "task_config"]

_path = click.Path(path_type=Path)
_seed = click.IntRange(min=0, max=2**32 - 1)

_OPTIONS = (
    click.option(
        "--run", type=_path, metavar="RUN.toml", help="Ask what this run was not trained on."
    ),
    click.option("--task", metavar="NAME", help="Ask a task: addition or reasoning_gym:NAME."),
    click.option("--data", type=_path, metavar="FILE", help="Ask the rows of a JSON Lines file."),
    click.option(
        "--questions", type=click.IntRange(min=1), metavar="N", help="Ask so many, at most."
    ),
    click.option(
        "--questions-seed", type=_seed, metavar="SEED", help="Which questions a task asks."
    ),
    click.option(
        "--config", multiple=True, metavar="KEY=VALUE", help="Configure a reasoning-gym task."
    ),
    click.option("--chat", is_flag=True, help="Put a task's questions as messages of a user."),
    click.option(
        "--verifier",
        type=click.Choice(["exact", "regex", "math"]),
        help="When an answer is right, for --data.  [default: exact]",
    ),
    click.option("--pattern", metavar="REGEX", help="Finds the answer, for --verifier regex."),
    click.option("--column", metavar="NAME", help="Column of the right answer.  [default: answer]"),
    click.option(
        "--reward", metavar="FILE.py:NAME", help="A reward function; right if it gives 1."
    ),
    click.option("--stop", metavar="TEXT", help="Ends an answer, beside the end token."),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Of an answer.  [default: 256; addition 3]",
    ),
)


def question_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that `questions_of` takes."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def questions_of(
    *,
    run: Path | None,
    task: str | None,
    data: Path | None,
    questions: int | None,
    stop: str | None,
    max_tokens: int | None,
    by: str | None = None,
    **more: Any,
) -> Questions | None:
    """What to ask, as the options say; None if they say nothing of it.

    Raises:
        UsageError: Options that do not go together.
        SettingsError: There are no such questions.
        MissingExtraError: The package of a task is missing.
    """
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
        from trimtab.training.runs.settings import Settings

        made = questions_of_run(Settings.read(run), data=data, num=questions, by=by)
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
    from trimtab.training.runs.settings import DataTable

    table = DataTable(task=task, chat=chat, config=task_config(config))
    return questions_of_task(table, seed=questions_seed or 0, num=num, by=by)


def task_config(pairs: tuple[str, ...]) -> dict[str, Any]:
    """What `--config` says, of texts `KEY=VALUE`.

    Raises:
        UsageError: One of them is something else.
    """
    parted = [pair.partition("=") for pair in pairs]
    if bad := [key for key, equals, _ in parted if not equals]:
        raise click.UsageError(f"--config {bad[0]}: expected KEY=VALUE")
    return {key: _value(text) for key, _, text in parted}


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

    table = reward_table(verifier, pattern, column, reward)
    return file_questions(data, reward_of(table, Path()), column=table.column, by=by)


def reward_table(
    verifier: Any, pattern: str | None, column: str | None, reward: str | None
) -> RewardTable:
    """What says when an answer is right.

    Raises:
        UsageError: Options that do not go together.
    """
    from trimtab.training.runs.settings import RewardTable

    if reward is not None and (verifier is not None or pattern is not None):
        raise click.UsageError("--reward judges alone: without --verifier and --pattern")
    return RewardTable(
        function=reward,
        kind=None if reward is not None else verifier or ("regex" if pattern else "exact"),
        column=column or "answer",
        pattern=pattern,
    )
