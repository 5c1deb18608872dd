"""The reward of a completion: a user's function, a comparison with an answer, or a model.

The rewards of tasks are in `tasks`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from math import isfinite
from pathlib import Path
from typing import Any

import xxhash

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.stream import Source, new_buffer
from trimtab.errors import SettingsError
from trimtab.extras import require
from trimtab.inputs import MAX_CONFIG_BYTES, read_bytes
from trimtab.results.records import record_of
from trimtab.training import runtime
from trimtab.training.rollouts.rewards import checked_reward
from trimtab.training.runs.base_model import loading, refuse_adapter
from trimtab.training.runtime import INSTALL

NOT_PASSED = ("prompt", "completion", "completion_ids")
"""Columns that a reward function is not given as such, as with TRL."""

SAID_BY_TRAINERS = (
    "image",
    "images",
    "environment",
    "prompts",
    "completions",
    "trainer_state",
    "log_extra",
    "log_metric",
    "environments",
)
"""What trainers call a reward function with beside the columns of the data, or take for more."""


def _any_value(value: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Reward:
    """A reward function whose results are checked.

    Attributes:
        function: Called as TRL calls a reward function; returns one finite number each.
        columns: Columns of the data that it needs.
        record: What is recorded of it.
        problem_of: What is wrong with a value of these columns; None if nothing is. A function of
            the user's is given what the file says, null too.
    """

    function: Callable[..., list[float]]
    columns: tuple[str, ...]
    record: dict[str, Any]
    problem_of: Callable[[Any], str | None] = _any_value

    def of(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
        """What completions are worth, told as a trainer tells it.

        Args:
            rows: The row behind each completion.
            texts: The completions. Where prompts are messages, they are passed on as such.

        Raises:
            SettingsError: The reward fails.
        """
        said = [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
        return self.function(prompts=[row["prompt"] for row in rows], completions=said, **columns)


def comparison(kind: str, column: str, pattern: str | None) -> Reward:
    """1 where the completion is the answer, 0 elsewhere.

    Args:
        kind: `exact` compares the whole completion; `regex` the first group of a pattern (all that
            it matches if it has none), wherever it is found first; both but for space around it.
            `math` asks math-verify whether two mathematical expressions are equal.
        column: The column that holds the answer.
        pattern: For `regex`.

    Raises:
        SettingsError: The pattern is missing, not wanted, or no regular expression.
        MissingExtraError: `kind` is `math`, and math-verify is missing.
    """
    if (kind == "regex") != (pattern is not None):
        raise SettingsError(
            'reward.pattern: kind = "regex" needs a pattern'
            if pattern is None
            else f'reward.pattern is for kind = "regex", and kind is "{kind}"'
        )
    is_right = _finder(pattern) if pattern is not None else _math() if kind == "math" else _is_exact

    def reward(completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        pairs = zip(completions, columns[column], strict=True)
        return [float(is_right(text_of(sample), _answer(right))) for sample, right in pairs]

    def problem_of(right: Any) -> str | None:
        problem = _no_answer(right)
        if problem is None and kind == "math" and not _gold(str(right)):
            problem = "is no mathematics that math-verify reads"
        return problem

    record = {"kind": kind, "column": column}
    if pattern is not None:
        record["pattern"] = pattern
    if kind == "math":
        record["math-verify"] = version("math-verify")
    return Reward(checked_reward(reward, kind), (column,), record, problem_of)


def _no_answer(right: Any) -> str | None:
    """What is wrong with a value that completions are to be compared with."""
    if isinstance(right, str | int) and not isinstance(right, bool):
        return None
    if isinstance(right, float) and isfinite(right):
        return None
    shown = f"a {type(right).__name__}"
    if right is None or isinstance(right, bool):
        shown = json.dumps(right)
    elif isinstance(right, float):
        shown += " that is not finite"
    return f"is {shown}, expected the text or number that a right completion says"


def _answer(right: Any) -> str:
    """The text that is compared: a number as Python writes it."""
    if (problem := _no_answer(right)) is not None:
        raise SettingsError(f"an answer {problem}")
    return str(right)


def _is_exact(text: str, right: str) -> bool:
    return text.strip() == right.strip()


def _finder(pattern: str) -> Callable[[str, str], bool]:
    """Whether what a pattern finds is the answer."""
    try:
        searched = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise SettingsError(f"reward.pattern: not a regular expression ({error})") from None

    def is_found(text: str, right: str) -> bool:
        match = searched.search(text)
        group = match and (match[1] if searched.groups else match[0])
        return group is not None and group.strip() == right.strip()

    return is_found


def _math() -> Callable[[str, str], bool]:
    """Whether the last mathematical expression of a text equals the answer.

    An answer that is not in LaTeX marks is read as if it were boxed. What math-verify cannot read
    or compare in 5 seconds is not equal.
    """
    library = require("math_verify", INSTALL)

    def is_equal(text: str, right: str) -> bool:
        gold = _gold(right)
        if not gold:
            raise ValueError(f"math-verify reads no mathematics in the answer {right!r}")
        return bool(library.verify(gold, library.parse(text)))

    return is_equal


@cache  # it is read of every row before a run, and of every sample in it
def _gold(right: str) -> list[Any]:
    """An answer as math-verify reads it; nothing where it reads none."""
    is_marked = "$" in right or "\\boxed" in right
    parse: Callable[[str], list[Any]] = require("math_verify", INSTALL).parse
    return parse(right if is_marked else f"\\boxed{{{right}}}")


def load_function(named: str, folder: Path) -> Reward:
    """Load a reward function from a Python file. The file is executed.

    Args:
        named: `file.py:name`.
        folder: What a relative path is relative to.

    Raises:
        SettingsError: There is no such file or function, or the file fails.
    """
    where, _, name = named.rpartition(":")
    if not where or not name.isidentifier():
        raise SettingsError(f'reward.function is "{named}", expected "file.py:name"')
    path = folder / Path(where).expanduser()
    content = read_bytes(path, SettingsError, limit=MAX_CONFIG_BYTES, where="reward.function: ")
    digest = xxhash.xxh3_128_hexdigest(content)
    spec = spec_from_file_location(f"trimtab_reward_{digest}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"reward.function: {path}: expected a file ending in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickles of the file look it up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"reward.function: {path} fails: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SettingsError(f"reward.function: {path} has no function {name}")
    return Reward(checked_reward(function, name), (), {"function": named, "xxh3_128": digest})


def text_of(completion: Any) -> str:
    """A completion as text; TRL gives messages where the prompts are messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def model_reward(named: str, folder: Path) -> Reward:
    """The reward of a sequence classifier with one output: its logit.

    Args:
        named: The folder of the model.
        folder: What a relative path is relative to.

    Raises:
        SettingsError: There is no such folder, or it holds no such model with its tokenizer.
        CheckpointError: Its weights cannot be read, or an adapter lies beside them.
    """
    from transformers import AutoConfig, AutoTokenizer

    path = folder / Path(named).expanduser()
    if not path.is_dir():
        raise SettingsError(f"reward.model: {path}: expected the folder of a model")
    refuse_adapter("reward.model", path)
    problem = f"reward.model: {path}: its config or tokenizer cannot be loaded"
    with loading(problem, SettingsError):
        config = AutoConfig.from_pretrained(path)
        AutoTokenizer.from_pretrained(path)
        made_for = ", ".join(config.architectures or ["nothing"])
    if "ForSequenceClassification" not in made_for or config.num_labels != 1:
        raise SettingsError(
            f"reward.model: {path} is a {made_for} with {config.num_labels} outputs, expected a "
            "sequence classifier with one (…ForSequenceClassification, num_labels = 1)"
        )
    return Reward(checked_reward(_LoadedLater(path), "model"), (), {"model": _content_hash(path)})


class _LoadedLater:
    """A reward model that takes no memory before it is asked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model: Any = None

    def __call__(self, **given: Any) -> list[float]:
        if self._model is None:
            from trimtab.training.rollouts.rewards import RewardModel

            self._model = RewardModel(str(self._path), None, runtime.accelerator())
        scores: list[float] = self._model(**given)
        return scores


def _content_hash(path: Path) -> str:
    """One hash over all tensors of a checkpoint."""
    with open_checkpoint(path) as checkpoint:
        buffer = new_buffer()
        digests = {
            name: Source(tensor, tensor.dtype, None, buffer).finish()
            for name, tensor in checkpoint.tensors.items()
        }
        return record_of(checkpoint, digests).content_hash
