"""Rewards: a user's function, a comparison with an answer, or a model; for tasks see `tasks`."""

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
"""Columns that are not passed to a reward function, as in TRL."""

RESERVED_COLUMNS = (
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
"""Names that trainers pass to a reward function themselves, or treat specially."""


def _any_value(value: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Reward:
    """A reward function whose results are checked.

    Attributes:
        function: Called as TRL calls a reward function; returns one finite number per completion.
        columns: Columns of the data that it needs.
        record: Its entry in records.
        problem_of: Returns what is wrong with a value of these columns, or None. Functions of the
            user get all values of the file, including null.
    """

    function: Callable[..., list[float]]
    columns: tuple[str, ...]
    record: dict[str, Any]
    problem_of: Callable[[Any], str | None] = _any_value

    def of(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[float]:
        """Compute the rewards of completions, like a trainer.

        Args:
            rows: The row of each completion.
            texts: The completions; converted to messages if the prompts are messages.

        Raises:
            SettingsError: The reward fails.
        """
        completions = [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
        return self.function(
            prompts=[row["prompt"] for row in rows], completions=completions, **columns
        )


def comparison(kind: str, column: str, pattern: str | None) -> Reward:
    """A reward of 1 if the completion is the answer, 0 otherwise.

    Args:
        kind: `exact` compares the whole completion; `regex` the first group (or else the whole) of
            the first match of a pattern; both ignore surrounding whitespace. `math` uses
            math-verify to compare mathematical expressions.
        column: The column with the answer.
        pattern: Regular expression for `regex`.

    Raises:
        SettingsError: The pattern is missing, not expected, or invalid.
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
            problem = "cannot be parsed by math-verify"
        return problem

    record = {"kind": kind, "column": column}
    if pattern is not None:
        record["pattern"] = pattern
    if kind == "math":
        record["math-verify"] = version("math-verify")
    return Reward(checked_reward(reward, kind), (column,), record, problem_of)


def _no_answer(right: Any) -> str | None:
    """What is wrong with an answer that completions are compared with, or None."""
    if isinstance(right, str | int) and not isinstance(right, bool):
        return None
    if isinstance(right, float) and isfinite(right):
        return None
    shown = f"a {type(right).__name__}"
    if right is None or isinstance(right, bool):
        shown = json.dumps(right)
    elif isinstance(right, float):
        shown += " that is not finite"
    return f"is {shown}, expected the text or number of a correct completion"


def _answer(right: Any) -> str:
    """The answer as text; a number as Python formats it."""
    if (problem := _no_answer(right)) is not None:
        raise SettingsError(f"an answer {problem}")
    return str(right)


def _is_exact(text: str, right: str) -> bool:
    return text.strip() == right.strip()


def _finder(pattern: str) -> Callable[[str, str], bool]:
    """Return a comparison of the first match of a pattern with the answer."""
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
    """Return a comparison of the last mathematical expression of a text with the answer.

    An answer without LaTeX delimiters is treated as boxed. Expressions that math-verify cannot
    parse or compare within 5 seconds are not equal.
    """
    library = require("math_verify", INSTALL)

    def is_equal(text: str, right: str) -> bool:
        gold = _gold(right)
        if not gold:
            raise ValueError(f"math-verify cannot parse the answer {right!r}")
        return bool(library.verify(gold, library.parse(text)))

    return is_equal


@cache  # called for every row before a run, and for every sample during it
def _gold(right: str) -> list[Any]:
    """An answer as parsed by math-verify; empty if it cannot be parsed."""
    is_marked = "$" in right or "\\boxed" in right
    parse: Callable[[str], list[Any]] = require("math_verify", INSTALL).parse
    return parse(right if is_marked else f"\\boxed{{{right}}}")


def load_function(named: str, folder: Path) -> Reward:
    """Load a reward function from a Python file. The file is executed.

    Args:
        named: `file.py:name`.
        folder: Base of relative paths.

    Raises:
        SettingsError: The file or function does not exist, or the file fails.
    """
    file, _, name = named.rpartition(":")
    if not file or not name.isidentifier():
        raise SettingsError(f'reward.function is "{named}", expected "file.py:name"')
    path = folder / Path(file).expanduser()
    content = read_bytes(path, SettingsError, limit=MAX_CONFIG_BYTES, where="reward.function: ")
    digest = xxhash.xxh3_128_hexdigest(content)
    spec = spec_from_file_location(f"trimtab_reward_{digest}", path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"reward.function: {path}: expected a file ending in .py")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # needed by dataclasses and pickles in the file
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise SettingsError(f"reward.function: {path} fails: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise SettingsError(f"reward.function: {path} has no function {name}")
    return Reward(checked_reward(function, name), (), {"function": named, "xxh3_128": digest})


def text_of(completion: Any) -> str:
    """A completion as text; TRL passes messages if the prompts are messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def model_reward(named: str, folder: Path) -> Reward:
    """The reward of a sequence classifier with one output: its logit.

    Args:
        named: The folder of the model.
        folder: Base of relative paths.

    Raises:
        SettingsError: The folder does not exist, or has no such model with its tokenizer.
        CheckpointError: Its weights cannot be read, or the folder has an adapter.
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
    """A reward model that is loaded on first use."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model: Any = None

    def __call__(self, **kwargs: Any) -> list[float]:
        if self._model is None:
            from trimtab.training.rollouts.rewards import RewardModel

            self._model = RewardModel(str(self._path), None, runtime.accelerator())
        scores: list[float] = self._model(**kwargs)
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
