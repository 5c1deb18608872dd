"""The data of a run: rows from a JSON Lines file, and a check of their lengths.

Texts are strings, or lists of messages (`{"role": ..., "content": ...}`) for models with a chat
template; a file must not mix the two. Rows of built-in tasks are made in `tasks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from trimtab.errors import SettingsError
from trimtab.inputs import MAX_DATA_BYTES, read_bytes
from trimtab.training.runs.base_model import BaseModel
from trimtab.training.runs.rewards import RESERVED_COLUMNS, Reward
from trimtab.words import first_few

TEXTS = ("prompt", "completion", "chosen", "rejected")
"""Columns whose values are texts; other columns are for the reward."""


@dataclass(frozen=True)
class Rows:
    """The rows of a data set.

    Attributes:
        source: The file, or the task.
        rows: Rows that all have the same columns.
        digest: xxh3-128 of the file, or of the rows of a task.
        ends_with_line: Whether a newline ends a completion, in addition to the end token.
        details: Additional entries of the record.
    """

    source: str
    rows: Sequence[Mapping[str, Any]]
    digest: str
    ends_with_line: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_messages(self) -> bool:
        """Whether its texts are lists of messages."""
        return isinstance(self.rows[0]["prompt"], list)

    def describe(self) -> dict[str, Any]:
        """The record of the data."""
        return {
            "source": self.source,
            "num_rows": len(self.rows),
            "columns": list(self.rows[0]),
            "xxh3_128": self.digest,
            **self.details,
        }


def read_rows(
    path: Path, columns: Sequence[str], *others: Sequence[str], reward: Reward | None = None
) -> Rows:
    """Read a JSON Lines file.

    Args:
        path: One JSON object per line; empty lines are skipped.
        columns: Columns that every row must have.
        *others: Alternative sets of columns; the first row decides which one is used.
        reward: The reward whose columns every row must have, too.

    Raises:
        SettingsError: The file or some rows cannot be used; lists the first few problems.
    """
    content = _content(path)
    wanted = reward.columns if reward is not None else ()
    rows: list[dict[str, Any]] = []
    first = 0
    problems: list[str] = []
    invalid: dict[str, list[str]] = {}
    lines = content.decode("utf-8-sig").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number} is not JSON ({error})")
            continue
        if not rows and isinstance(row, dict):
            columns = next((some for some in others if row.keys() >= set(some)), columns)
            first = number
            if reward is not None and (taken := row.keys() & set(RESERVED_COLUMNS)):
                problems.append(
                    f"rename {', '.join(sorted(taken))}: trainers and rewards use these names "
                    "for something else"
                )
        problems += [
            f"line {number} {problem}"
            for problem in _problems(row, (*columns, *wanted), rows[:1], first)
        ]
        for column in wanted if isinstance(row, dict) else ():
            if reward is not None and column in row:
                problem = reward.problem_of(row[column])
                if problem is not None:
                    invalid.setdefault(f"{column} {problem}", []).append(str(number))
        rows.append(row)
    problems += [
        f"in line{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} {problem}"
        for problem, numbers in invalid.items()
    ]
    if problems:
        message = first_few(problems, "; ")
        first_line = next((line.lstrip() for line in lines if line.strip()), "")
        if not first_line.startswith("{"):
            message += (
                ". Expected JSON Lines: a JSON object on each line, and not a list or a table"
            )
        raise SettingsError(f"data.file: {path}: {message}")
    if not rows:
        raise SettingsError(f"data.file: {path}: no rows: expected a JSON object on each line")
    return Rows(str(path), rows, xxhash.xxh3_128_hexdigest(content))


def _content(path: Path) -> bytes:
    """Read a UTF-8 file as bytes."""
    content = read_bytes(path, SettingsError, limit=MAX_DATA_BYTES, where="data.file: ")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"data.file: {path}: not UTF-8 ({error.reason}): expected JSON Lines, a JSON object on "
            "each line"
        ) from None
    return content


def _parsed(line: str) -> Any:
    """Parse a line of JSON; refuses duplicate keys and unpaired surrogates."""
    row = json.loads(line, object_pairs_hook=_with_each_key_once)
    if "\\u" in line:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("an unpaired surrogate, which no tokenizer reads") from None
    return row


def _with_each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice} occurs twice")
    return row


def _problems(
    row: Any, columns: Sequence[str], first: Sequence[Mapping[str, Any]], line: int
) -> Iterator[str]:
    """Problems of a row; `first` has the first row, unless this is the first one."""
    if not isinstance(row, dict):
        yield f"is a {type(row).__name__}, expected a JSON object"
        return
    if missing := [column for column in columns if column not in row]:
        yield f"lacks {', '.join(missing)}"
    kinds = {column: _kind(row[column]) for column in columns if column in row and column in TEXTS}
    for column, kind in kinds.items():
        if kind is None:
            yield f"has a {column} that is neither a text nor a list of messages"
    if "label" in columns and not isinstance(row.get("label", True), bool):
        yield "has a label that is neither true nor false"
    if not first or not isinstance(first[0], dict):
        if len(set(kinds.values()) - {None}) > 1:
            yield "mixes texts with messages"
        return
    if strangers := first[0].keys() ^ row.keys():
        yield f"and line {line} do not both have {', '.join(sorted(strangers))}"
    for column, kind in kinds.items():
        if kind and column in first[0] and _kind(first[0][column]) not in (kind, None):
            yield f"has a {column} of another kind than the first row"
    for column in row.keys() & first[0].keys() - kinds.keys():
        if not _same_type(row[column], first[0][column]):
            yield f"has a {column} of another type than the first row"


def _same_type(value: Any, other: Any) -> bool:
    """Whether two JSON values fit into one column; null fits into any."""
    types = {float if type(v) is int else type(v) for v in (value, other)} - {type(None)}
    return len(types) < 2


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


def prompt_ids(tokenizer: Any, prompt: Any) -> list[int]:
    """Token ids of a prompt: a text, or messages."""
    if isinstance(prompt, str):
        ids: list[int] = tokenizer(prompt)["input_ids"]
    else:
        written = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = written["input_ids"]
    return ids


def check_lengths(rows: Rows, base: BaseModel, room: int, max_length: int | None) -> None:
    """Check that no prompt is empty, and that each leaves room for its completion.

    Args:
        rows: Rows with prompts.
        base: The model; its config has the context length.
        room: Tokens that a completion may take.
        max_length: Length at which the trainer truncates prompt and completion; None for no limit.

    Raises:
        SettingsError: Some prompts are empty or too long; lists the first few.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    lengths = [len(prompt_ids(tokenizer, row["prompt"])) for row in rows.rows]
    _raise_for(rows, [index for index, length in enumerate(lengths) if not length], "no token")
    config = AutoConfig.from_pretrained(base.folder).get_text_config()
    limits = {
        f"the context of {base.record.id}": getattr(config, "max_position_embeddings", None),
        "trainer.max_length": max_length,
    }
    for name, limit in limits.items():
        if limit is not None:
            _raise_for(
                rows,
                [index for index, length in enumerate(lengths) if length + room > limit],
                f"too many tokens: the longest has {max(lengths)}, and {name} is {limit}, with "
                f"{room} for the completion. Shorten or leave out what is too long",
            )


def _raise_for(rows: Rows, indices: Sequence[int], problem: str) -> None:
    if indices:
        numbers = first_few([str(index + 1) for index in indices])
        raise SettingsError(f"data: {rows.source}: the prompts of rows {numbers} have {problem}")
