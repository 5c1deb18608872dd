"""Everything that a run file names, opened and checked before anything is trained.

`prepare` leaves nothing to find out later that can be known now: the whole base is read and hashed,
the mask is compared with it, every row of the data is looked at, the reward is loaded, and the
configuration of TRL is made. All problems are told at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError, TrimtabError
from trimtab.masks import Mask
from trimtab.training import runtime
from trimtab.training.also import names_of, with_whole
from trimtab.training.runs.algorithms import ALGORITHMS, Algorithm
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.datasets import Rows, read_rows
from trimtab.training.runs.prompts import check_lengths
from trimtab.training.runs.reward_model import model_reward
from trimtab.training.runs.rewards import Reward, comparison, load_function
from trimtab.training.runs.run_file import RunFile
from trimtab.training.runs.run_mask import load_mask, random_mask
from trimtab.training.runs.tables import ADDITION
from trimtab.training.runs.tasks import (
    addition_reward,
    addition_rows,
    gym_questions,
    gym_reward,
    gym_rows,
)
from trimtab.training.runs.trainer_arguments import SAVING, trainer_arguments

__all__ = ["PreparedRun", "prepare"]

FORMAT = "trimtab.run"
FORMAT_VERSION = 1

WITHOUT_EFFECT = {"output_dir", "hub_token", "run_name", "logging_dir"}
"""Fields of TRL's configuration that do not belong to the settings of a run."""


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start.

    Attributes:
        file: The run file.
        output: Its folder.
        algorithm: The algorithm.
        base: The model that it starts from.
        dtype: Of the weights while they are trained.
        data: What was read, or the prompts of samples.
        rows: What is trained on: the data, or what is made of samples once they are drawn.
        reward: The reward; None where nothing is rewarded.
        args: TRL's configuration.
        mask: What is trained; None for all, and for a mask that the run has yet to find.
    """

    file: RunFile
    output: Path
    algorithm: Algorithm
    base: BaseModel
    dtype: str
    data: Rows
    rows: Rows
    reward: Reward | None
    args: Any
    mask: Mask | None

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints were asked for, beyond those to go on from."""
        return any(key in self.file.trainer for key in SAVING)

    @property
    def trained(self) -> Mask | None:
        """The mask, with the parameters that are trained whole beside it."""
        if self.mask is None:
            return None
        return with_whole(self.mask, self.base.shapes, names_of(self.file.also, self.base.shapes))

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as plain data; a run goes on only with the same."""
        trainer = {k: v for k, v in self.args.to_dict().items() if k not in WITHOUT_EFFECT}
        settings = {
            "algorithm": self.algorithm.name,
            "seed": self.file.seed,
            "dtype": self.dtype,
            "save_dtype": self.file.save_dtype,
            "dropout": self.file.dropout,
            "model": self.base.record.content_hash,
            "mask": self._mask_setting(),
            **({"also": list(self.file.also)} if self.file.also else {}),
            "data": self.data.digest,
            "reward": None if self.reward is None else self.reward.record,
            "samples": None if self.file.samples is None else asdict(self.file.samples),
            "optimizer": (
                {"name": self.file.optimizer.name}
                if self.file.mask == "none"
                else asdict(self.file.optimizer)
            ),
            "trainer": trainer,
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return plain

    def _mask_setting(self) -> Any:
        if self.file.mask == "auto":
            return asdict(self.file.auto)
        return None if self.mask is None else self.mask.digest

    def describe(self) -> dict[str, Any]:
        """What is known of the run before it starts."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_file": str(self.file.path),
            "output": str(self.output),
            "factors": dict(self.file.factors),
            "settings": self.settings(),
            "model": self.base.record.to_dict(),
            "mask": _describe_mask(self.file.mask, self.mask),
            "data": self.data.describe(),
            "samples": None if self.rows is self.data else self.rows.describe(),
            "versions": runtime.versions(),
            "prepared": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def prepare(file: RunFile, bases: dict[Path, BaseModel] | None = None) -> PreparedRun:
    """Open and check all that a run file names.

    Args:
        file: The run file.
        bases: Models that have been opened and hashed before, by where they are; added to. For
            many runs of the same model.

    Raises:
        SettingsError: Some settings cannot be used, or several things are wrong.
        CheckpointError: The model cannot be used.
        MaskError: The mask cannot be used.
        MissingExtraError: A package of the train extra is missing.
    """
    _check_alone()
    runtime.start(offline=False)
    algorithm = ALGORITHMS[file.algorithm]
    output = file.resolve(file.output)
    problems = _Problems()
    args = problems.result(lambda: trainer_arguments(file, algorithm, output))
    questions = problems.result(lambda: _questions(file))
    is_open = questions is not None or not file.data.is_gym
    reward = problems.result(lambda: _reward(file, algorithm, questions)) if is_open else None
    data = problems.result(lambda: _data(file, algorithm, reward, questions)) if is_open else None
    base = problems.result(lambda: _base(file, {} if bases is None else bases))
    dtype, mask = "", None
    if base is not None:
        dtype = problems.result(lambda: base.training_dtype(file.dtype)) or ""
        mask = problems.result(lambda: _mask(file, base))
        problems.result(lambda: names_of(file.also, base.shapes))
        if args is not None:
            problems.result(lambda: _check_dropout(file, base, args))
        if file.save_dtype == "fp32" and dtype == "bf16":
            problems.add(
                'save_dtype is "fp32", and the weights are trained in bf16: dtype = "fp32"'
            )
        if data is not None and data.has_messages and not base.has_chat_template:
            problems.add(
                f"data has messages, and the tokenizer of {base.record.id} has no chat template: "
                "write prompts as text, or take a model with one"
            )
        elif data is not None and args is not None:
            problems.result(lambda: _check_lengths(file, algorithm, data, base, args))
    problems.raise_if_any(file.path)
    assert base is not None and data is not None
    return PreparedRun(file, output, algorithm, base, dtype, data, data, reward, args, mask)


class _Problems:
    """Errors that are told together at the end."""

    def __init__(self) -> None:
        self._errors: list[TrimtabError] = []

    @contextmanager
    def gathered(self) -> Iterator[None]:
        try:
            yield
        except TrimtabError as error:
            self._errors.append(error)

    def add(self, problem: str) -> None:
        self._errors.append(SettingsError(problem))

    def result(self, function: Callable[[], Any]) -> Any:
        """What a function returns; None if it fails."""
        with self.gathered():
            return function()

    def raise_if_any(self, path: Path) -> None:
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise SettingsError(f"{path}: {'; '.join(map(str, self._errors))}")


def _check_alone() -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingsError(
            "trimtab train runs in one process, and WORLD_SIZE is "
            f"{os.environ['WORLD_SIZE']}: use train_only in a script of your own"
        )


def _base(file: RunFile, bases: dict[Path, BaseModel]) -> BaseModel:
    where = file.resolve(file.model)
    if where not in bases:
        bases[where] = open_base(file.model, file.path.parent)
    return bases[where]


def _questions(file: RunFile) -> Any:
    """The questions of a reasoning-gym task; None for other data."""
    return gym_questions(file.data, file.seed) if file.data.is_gym else None


def _reward(file: RunFile, algorithm: Algorithm, questions: Any) -> Reward | None:
    table = file.reward
    if not algorithm.takes_reward and file.samples is None:
        return None
    if file.data.task == ADDITION:
        return addition_reward()
    if file.data.is_gym:
        return gym_reward(questions, file.data)
    assert table is not None, "the run file was checked for it"
    if table.function is not None:
        return load_function(table.function, file.path.parent)
    if table.model is not None:
        return model_reward(table.model, file.path.parent)
    assert table.kind is not None
    return comparison(table.kind, table.column, table.pattern)


def _data(file: RunFile, algorithm: Algorithm, reward: Reward | None, questions: Any) -> Rows:
    either = (algorithm.columns, algorithm.or_columns) if file.samples is None else (("prompt",),)
    sets = [columns for columns in either if columns is not None]
    of_reward = reward.columns if reward else ()
    if file.data.task == ADDITION:
        return addition_rows((*sets[-1], *of_reward), file.seed)
    if file.data.is_gym:
        return gym_rows(questions, file.data, (*sets[0], *of_reward))
    assert file.data.file is not None
    return read_rows(file.resolve(file.data.file), *sets, reward=reward)


def _check_lengths(
    file: RunFile, algorithm: Algorithm, data: Rows, base: BaseModel, args: Any
) -> None:
    """Check that prompts leave room for what is sampled, or for some of what is learned."""
    if algorithm.takes_reward:
        check_lengths(data, base, args.max_completion_length or 1, None)
        return
    room = 1 if file.samples is None else file.samples.max_completion_length
    check_lengths(data, base, room, args.max_length)


def _check_dropout(file: RunFile, base: BaseModel, args: Any) -> None:
    """Check that the model has dropout to set, and that it stays on."""
    if file.dropout is None:
        return
    base.with_dropout(file.dropout)
    if file.dropout and getattr(args, "disable_dropout", False):
        raise SettingsError(
            f"dropout is {file.dropout}, and trainer.disable_dropout is true: set it to false"
        )


def _mask(file: RunFile, base: BaseModel) -> Mask | None:
    if file.mask in ("none", "auto"):
        return None
    if file.mask == "all":
        from trimtab.training.auto_mask import nearly_all

        return nearly_all(base.shapes)
    if file.density is not None:
        return random_mask(base, file.density, file.seed)
    return load_mask(file.resolve(file.mask), base)


def _describe_mask(asked: str, mask: Mask | None) -> Mapping[str, Any]:
    if mask is None:
        return {"source": asked}
    return {
        "source": asked,
        "digest": mask.digest,
        "density": mask.density,
        "num_selected": mask.num_selected(),
        "num_elements": mask.num_elements(),
        "provenance": dict(mask.provenance),
    }
