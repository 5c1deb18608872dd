"""The data of a run: rows from a JSON Lines file, or of a built-in task.

Texts are strings, or lists of messages (`{"role": ..., "content": ...}`) for models with a chat
template; a file has one or the other throughout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import xxhash

from trimtab.checkpoints.messages import first_few
from trimtab.errors import SettingsError
from trimtab.training.addition import ANSWER_END, Question, split_questions

__all__ = ["TEXTS", "Rows", "addition_rows", "read_rows"]

TEXTS = ("prompt", "completion", "chosen", "rejected")
"""Columns whose values are texts; any other column is what the reward makes of it."""


@dataclass(frozen=True)
class Rows:
    """What is trained on.

    Attributes:
        source: The file, or the task.
        rows: All with the same columns.
        digest: xxh3-128 of the file, or of the rows of a task.
        ends_with_line: Whether the end of a line ends a completion, and not only the end token.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]
    digest: str
    ends_with_line: bool = False

    @property
    def has_messages(self) -> bool:
        """Whether its texts are lists of messages."""
        return isinstance(self.rows[0]["prompt"], list)

    def describe(self) -> dict[str, Any]:
        """What is recorded of the data."""
        return {
            "source": self.source,
            "num_rows": len(self.rows),
            "columns": list(self.rows[0]),
            "xxh3_128": self.digest,
        }


def read_rows(path: Path, columns: Sequence[str]) -> Rows:
    """Read a JSON Lines file.

    Args:
        path: One JSON object a line; empty lines are passed over.
        columns: What every row must have.

    Raises:
        SettingsError: The file cannot be read, or rows that cannot be used; the first few named.
    """
    try:
        content = path.read_bytes()
        lines = content.decode("utf-8").split("\n")
    except FileNotFoundError:
        raise SettingsError(f"data.file: {path}: no such file") from None
    except OSError as error:
        raise SettingsError(f"data.file: {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"data.file: {path}: not UTF-8 ({error.reason})") from None
    rows: list[dict[str, Any]] = []
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not JSON ({error})")
            continue
        problems += [f"line {number} {problem}" for problem in _problems(row, columns, rows[:1])]
        rows.append(row)
    if problems:
        raise SettingsError(f"data.file: {path}: {first_few(problems, '; ')}")
    if not rows:
        raise SettingsError(f"data.file: {path}: no rows: expected a JSON object on each line")
    return Rows(str(path), rows, xxhash.xxh3_128_hexdigest(content))


def addition_rows(columns: Sequence[str], seed: int) -> Rows:
    """The training questions of one-digit addition, with any of the columns in `ADDITION`."""
    random = Random(seed)
    rows = [
        {column: ADDITION[column](question, random) for column in columns}
        for question in split_questions(seed).train
    ]
    digest = xxhash.xxh3_128_hexdigest(json.dumps(rows).encode())
    return Rows("addition", rows, digest, ends_with_line=True)


def _wrong(question: Question, random: Random) -> str:
    """A sum of two digits that is not the answer."""
    answer = random.choice([number for number in range(19) if number != question.answer])
    return f"{answer}{ANSWER_END}"


ADDITION: Mapping[str, Callable[[Question, Random], Any]] = {
    "prompt": lambda question, random: question.prompt,
    "completion": lambda question, random: question.gold,
    "chosen": lambda question, random: question.gold,
    "rejected": _wrong,
    "answer": lambda question, random: question.answer,
}
"""Column -> its value for a question."""


def _problems(
    row: Any, columns: Sequence[str], first: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What is wrong with a row; `first` holds the first row, if this is not the one."""
    if not isinstance(row, dict):
        yield f"is a {type(row).__name__}, expected a JSON object"
        return
    if missing := [column for column in columns if column not in row]:
        yield f"lacks {', '.join(missing)}"
    kinds = {column: _kind(row[column]) for column in columns if column in row and column in TEXTS}
    for column, kind in kinds.items():
        if kind is None:
            yield f"has a {column} that is neither a text nor a list of messages"
    if not first or not isinstance(first[0], dict):
        if len(set(kinds.values()) - {None}) > 1:
            yield "mixes texts with messages"
        return
    if strangers := first[0].keys() ^ row.keys():
        yield f"and line 1 do not both have {', '.join(sorted(strangers))}"
    for column, kind in kinds.items():
        if kind and column in first[0] and _kind(first[0][column]) not in (kind, None):
            yield f"has a {column} of another kind than the first row"


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    is_messages = (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
            for message in value
        )
    )
    return "messages" if is_messages else None
