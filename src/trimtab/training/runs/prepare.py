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
from trimtab.training.runs.algorithms import ALGORITHMS, Algorithm
from trimtab.training.runs.algorithms.algorithm import DEFAULTS
from trimtab.training.runs.base_model import BaseModel, open_base
from trimtab.training.runs.checking import check_table
from trimtab.training.runs.datasets import Rows, addition_rows, read_rows
from trimtab.training.runs.rewards import Reward, comparison, load_function, task_reward
from trimtab.training.runs.run_file import AutoTable, RunFile
from trimtab.training.runs.run_mask import load_mask, random_mask

__all__ = ["CHECKPOINTS", "PreparedRun", "prepare"]

CHECKPOINTS = "checkpoints"
"""Folder of the Trainer's checkpoints, in the folder of the run."""

FORMAT = "trimtab.run"
FORMAT_VERSION = 1

SET_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "optim": "name in [optimizer]",
    "model_init_kwargs": "model and dtype",
    "resume_from_checkpoint": "nothing: an interrupted run goes on by itself",
    "disable_tqdm": "nothing: the progress is trimtab's own",
}
"""Keys of TRL's configuration that `[trainer]` may not have -> where the run file has them."""

OPTIM = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
"""`optimizer.name` -> `optim` of TRL's configuration."""

SAVING = ("save_strategy", "save_steps", "save_total_limit")
"""Who sets one of these wants checkpoints, and not only to be able to go on."""

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
        rows: The data.
        reward: The reward; None where the algorithm takes none.
        args: TRL's configuration.
        mask: What is trained; None for all, and for a mask that the run has yet to find.
    """

    file: RunFile
    output: Path
    algorithm: Algorithm
    base: BaseModel
    dtype: str
    rows: Rows
    reward: Reward | None
    args: Any
    mask: Mask | None

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints were asked for, beyond those to go on from."""
        return any(key in self.file.trainer for key in SAVING)

    def settings(self) -> dict[str, Any]:
        """All that decides the result, as plain data; a run goes on only with the same."""
        trainer = {k: v for k, v in self.args.to_dict().items() if k not in WITHOUT_EFFECT}
        settings = {
            "algorithm": self.algorithm.name,
            "seed": self.file.seed,
            "dtype": self.dtype,
            "model": self.base.record.content_hash,
            "mask": self._mask_setting(),
            "data": self.rows.digest,
            "reward": None if self.reward is None else self.reward.record,
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
            "settings": self.settings(),
            "model": self.base.record.to_dict(),
            "mask": _describe_mask(self.file.mask, self.mask),
            "data": self.rows.describe(),
            "versions": runtime.versions(),
            "prepared": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def prepare(file: RunFile) -> PreparedRun:
    """Open and check all that a run file names.

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
    args = problems.result(lambda: _trainer_arguments(file, algorithm, output))
    reward = problems.result(lambda: _reward(file, algorithm))
    rows = problems.result(lambda: _rows(file, algorithm, reward))
    base = problems.result(lambda: open_base(file.model, file.path.parent))
    dtype, mask = "", None
    if base is not None:
        dtype = problems.result(lambda: base.training_dtype(file.dtype)) or ""
        mask = problems.result(lambda: _mask(file, base))
        if rows is not None and rows.has_messages and not base.has_chat_template:
            problems.add(
                f"data.file has messages, and the tokenizer of {base.record.id} has no chat "
                "template: write prompts as text, or take a model with one"
            )
    problems.raise_if_any(file.path)
    assert base is not None and rows is not None
    return PreparedRun(file, output, algorithm, base, dtype, rows, reward, args, mask)


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


def _trainer_arguments(file: RunFile, algorithm: Algorithm, output: Path) -> Any:
    """TRL's configuration, from `[trainer]` and the defaults."""
    import torch

    problems = [
        f"trainer.{key} is set by {where}"
        for key, where in SET_ELSEWHERE.items()
        if key in file.trainer
    ]
    given = {key: value for key, value in file.trainer.items() if key not in SET_ELSEWHERE}
    config = algorithm.config_class()
    given = check_table(config, given, "trainer.", problems)
    if problems:
        raise SettingsError("; ".join(problems))
    defaults = {
        **DEFAULTS,
        **algorithm.defaults,
        "use_cpu": not torch.accelerator.is_available(),
    }
    if "gradient_checkpointing" in given:  # the older name of activation_checkpointing
        del defaults["activation_checkpointing"]
    if any(key in given for key in SAVING):
        del defaults["save_total_limit"]
    try:
        with runtime.quiet():
            args = config(
                **{**defaults, **given},
                output_dir=str(output / CHECKPOINTS),
                seed=file.seed,
                optim=OPTIM[file.optimizer.name],
                disable_tqdm=True,
            )
    except (ValueError, TypeError, ImportError) as error:
        raise SettingsError(f"trainer: {' '.join(str(error).split())}") from error
    steps_per_round = algorithm.steps_per_round(args)
    _save_between_rounds(args, steps_per_round, "save_steps" in given)
    if file.mask == "auto" and file.auto.probe == "adamw":
        _check_exploration(file.auto, args.max_steps, steps_per_round)
    return args


def _save_between_rounds(args: Any, steps_per_round: int, is_given: bool) -> None:
    """Let checkpoints lie where a run that goes on ends in the same weights."""
    if args.save_steps < 1 or args.save_steps % steps_per_round == 0:
        return
    if is_given:
        raise SettingsError(
            f"trainer.save_steps is {args.save_steps}, and samples serve {steps_per_round} steps: "
            f"expected a multiple of {steps_per_round}"
        )
    args.save_steps = -(-args.save_steps // steps_per_round) * steps_per_round


def _check_exploration(auto: AutoTable, max_steps: int, steps_per_round: int) -> None:
    """Check that the probe ends before the run, and where a run can go on."""
    problems = [
        f"auto.{name} is {value}, and samples serve {steps_per_round} steps: expected a multiple "
        f"of {steps_per_round}"
        for name, value in (("steps", auto.steps), ("every", auto.every))
        if value % steps_per_round
    ]
    if 0 < max_steps <= auto.steps:
        problems.append(
            f"auto.steps is {auto.steps} and trainer.max_steps {max_steps}: nothing would be left "
            "to train with the mask"
        )
    if problems:
        raise SettingsError("; ".join(problems))


def _reward(file: RunFile, algorithm: Algorithm) -> Reward | None:
    table = file.reward
    if not algorithm.takes_reward:
        return None
    if file.data.task is not None:
        return task_reward()
    assert table is not None, "the run file was checked for it"
    if table.function is not None:
        return load_function(table.function, file.path.parent)
    assert table.kind is not None
    return comparison(table.kind, table.column, table.pattern)


def _rows(file: RunFile, algorithm: Algorithm, reward: Reward | None) -> Rows:
    columns = (*algorithm.columns, *(reward.columns if reward else ()))
    if file.data.task is not None:
        return addition_rows(columns, file.seed)
    assert file.data.file is not None
    return read_rows(file.resolve(file.data.file), columns)


def _mask(file: RunFile, base: BaseModel) -> Mask | None:
    if file.mask in ("none", "auto"):
        return None
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
