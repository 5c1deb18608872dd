"""Open and check everything that a run file names, and build its trainer.

`prepare` finds errors before training starts: it hashes the base, compares the mask with it, checks
every row of the data, loads the reward, and creates the configuration of TRL. All problems are
reported together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError, Problems, SettingsError, TrimtabError
from trimtab.masks.makers.kinds import RANDOM, kinds_hint, make_mask, random_mask
from trimtab.masks.mask import Mask
from trimtab.progress import Stage
from trimtab.training import runtime
from trimtab.training.evaluation.questions import Questions, questions_of_table
from trimtab.training.masked_training import MaskedTraining, train_only
from trimtab.training.runs.algorithms import ALGORITHMS, Algorithm
from trimtab.training.runs.base_model import DTYPES, BaseModel, open_base
from trimtab.training.runs.data import Rows, check_lengths, read_rows
from trimtab.training.runs.rewards import Reward, comparison, load_function, model_reward
from trimtab.training.runs.settings import ADDITION, Settings
from trimtab.training.runs.tasks import (
    addition_reward,
    addition_rows,
    gym_questions,
    gym_reward,
    gym_rows,
)
from trimtab.training.runs.trainer_arguments import CHECKPOINTS, SAVING, trainer_arguments

FORMAT = "trimtab.run"
FORMAT_VERSION = 1

WITHOUT_EFFECT = {"output_dir", "hub_token", "run_name", "logging_dir"}
"""Fields of TRL's configuration that do not affect the result of a run."""


@dataclass(frozen=True)
class Run:
    """A run that can start.

    Attributes:
        file: The run file.
        output: Its output folder.
        algorithm: The algorithm.
        base: The model that it starts from.
        dtype: Dtype of the weights during training.
        data: The data that was read, or the prompts for samples.
        rows: The training rows: the data, or rows made from samples once they are drawn.
        reward: The reward; None if the run has none.
        args: TRL's configuration.
        mask: The mask; None for everything, or if the run has yet to find it.
        held_out: Questions that are asked during training; None for none.
        held_out_rows: Rows whose loss is evaluated during training; None for none.
    """

    file: Settings
    output: Path
    algorithm: Algorithm
    base: BaseModel
    dtype: str
    data: Rows
    rows: Rows
    reward: Reward | None
    args: Any
    mask: Mask | None
    held_out: Questions | None = None
    held_out_rows: Rows | None = None

    @property
    def keeps_checkpoints(self) -> bool:
        """Whether checkpoints are kept after the run."""
        return any(key in self.file.trainer for key in SAVING)

    @property
    def trained(self) -> Mask | None:
        """The mask, with the parameters that are trained in full."""
        from trimtab.training.layout import names_of_whole, with_whole

        if self.mask is None:
            return None
        shapes = self.base.shapes
        return with_whole(self.mask, shapes, names_of_whole(self.file.also, shapes))

    def settings(self) -> dict[str, Any]:
        """All settings that determine the result, as plain data; resuming needs the same."""
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
            **self._rollouts_setting(),
            **self._evaluate_setting(),
            "optimizer": (
                {"name": self.file.optimizer.name}
                if self.file.mask == "none"
                else asdict(self.file.optimizer)
            ),
            "trainer": trainer,
        }
        plain: dict[str, Any] = json.loads(json.dumps(settings, default=str))
        return plain

    def _rollouts_setting(self) -> dict[str, Any]:
        """What of `[rollouts]` changes the result; the engine may be another one."""
        if (table := self.file.rollouts) is None:
            return {}
        capped = {"importance_cap": table.importance_cap}
        return {"rollouts": {"max_staleness": table.max_staleness, **capped}}

    def _evaluate_setting(self) -> dict[str, Any]:
        """What is evaluated when; a resumed run adds to the same file."""
        if (table := self.file.evaluate) is None:
            return {}
        questions, rows = self.held_out, self.held_out_rows
        return {
            "evaluate": {
                "every": table.every,
                "batch_size": table.batch_size,
                "questions": None if questions is None else questions.describe(),
                "data": None if rows is None else rows.digest,
            }
        }

    def _mask_setting(self) -> Any:
        if self.file.mask == "auto":
            return asdict(self.file.auto)
        return None if self.mask is None else self.mask.digest

    def describe(self) -> dict[str, Any]:
        """The record of the run before it starts."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "run_file": str(self.file.path),
            "output": str(self.output),
            "set": {
                key: "(hidden)" if key.endswith("_token") else value
                for key, value in self.file.overrides.items()
            },
            "factors": dict(self.file.factors),
            "settings": self.settings(),
            "model": self.base.record.to_dict(),
            "mask": _describe_mask(self.file.mask, self.mask),
            "data": self.data.describe(),
            "samples": None if self.rows is self.data else self.rows.describe(),
            "versions": runtime.versions(),
            "prepared": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def prepare(file: Settings, bases: dict[Path, BaseModel] | None = None) -> Run:
    """Open and check everything that a run file names.

    Args:
        file: The run file.
        bases: Cache of opened and hashed models by path, for many runs of the same model.

    Raises:
        SettingsError: Some settings cannot be used, or there are several problems.
        CheckpointError: The model cannot be used.
        MaskError: The mask cannot be used.
        MissingExtraError: A package of the train extra is missing.
    """
    if (num_processes := os.environ.get("WORLD_SIZE", "1")) not in ("0", "1"):
        raise SettingsError(
            f"trimtab train runs in one process, and WORLD_SIZE is {num_processes}: use train_only "
            "in your own script"
        )
    runtime.start(offline=False)
    from trimtab.training.layout import names_of_whole

    algorithm = ALGORITHMS[file.algorithm]
    output = file.resolve(file.output)
    problems = Problems()
    args = problems.result(trainer_arguments, file, algorithm, output)
    questions = problems.result(_questions, file)
    is_open = questions is not None or not file.data.is_gym
    reward = problems.result(_reward, file, algorithm, questions) if is_open else None
    data = problems.result(_data, file, algorithm, reward, questions) if is_open else None
    base = problems.result(_base, file, {} if bases is None else bases)
    held_out = problems.result(_held_out, file)
    held_out_rows = problems.result(_held_out_rows, file, algorithm, data)
    dtype, mask = None, None
    if base is not None:
        dtype = problems.result(base.training_dtype, file.dtype)
        mask = problems.result(_mask, file, base)
        problems.result(names_of_whole, file.also, base.shapes)
        if held_out is not None:
            problems.result(held_out.check, base)
        if args is not None:
            problems.result(_check_dropout, file, base, args)
        if file.save_dtype == "fp32" and dtype == "bf16":
            problems.add(
                SettingsError(
                    'save_dtype is "fp32", and the weights are trained in bf16: set dtype = "fp32"'
                )
            )
        for rows in (data, held_out_rows):
            if rows is not None and rows.has_messages and not base.has_chat_template:
                problems.add(
                    SettingsError(
                        f"data has messages, and the tokenizer of {base.record.id} has no chat "
                        "template: write prompts as text, or use a model with one"
                    )
                )
            elif rows is not None and args is not None:
                problems.result(_check_lengths, file, algorithm, rows, base, args)
    problems.raise_all(f"{file.named}: ")
    assert base is not None and data is not None and dtype is not None
    return Run(
        file,
        output,
        algorithm,
        base,
        dtype,
        data,
        data,
        reward,
        args,
        mask,
        held_out,
        held_out_rows,
    )


def _base(file: Settings, bases: dict[Path, BaseModel]) -> BaseModel:
    path = file.resolve(file.model)
    if path not in bases:
        bases[path] = open_base(file.model, file.path.parent)
    return bases[path]


def _questions(file: Settings) -> Any:
    return gym_questions(file.data, file.task_seed) if file.data.is_gym else None


def _reward(file: Settings, algorithm: Algorithm, questions: Any) -> Reward | None:
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


def _data(file: Settings, algorithm: Algorithm, reward: Reward | None, questions: Any) -> Rows:
    either = (algorithm.columns, algorithm.or_columns) if file.samples is None else (("prompt",),)
    sets = [columns for columns in either if columns is not None]
    of_reward = reward.columns if reward else ()
    if file.data.task == ADDITION:
        return addition_rows((*sets[-1], *of_reward), file.task_seed)
    if file.data.is_gym:
        return gym_rows(questions, file.data, (*sets[0], *of_reward))
    assert file.data.file is not None
    return read_rows(file.resolve(file.data.file), *sets, reward=reward)


def _held_out(file: Settings) -> Questions | None:
    if file.evaluate is None or not file.evaluate.asks:
        return None
    return questions_of_table(file.evaluate, file, file.path.parent)


def _held_out_rows(file: Settings, algorithm: Algorithm, data: Rows | None) -> Rows | None:
    """The rows of `[evaluate]` without those that are also in the training data."""
    if file.evaluate is None or file.evaluate.data is None:
        return None
    if algorithm.takes_reward or file.samples is not None:
        raise SettingsError(
            f"evaluate.data: {algorithm.name} trains on samples, and has no loss on given rows: "
            "ask questions instead"
        )
    sets = [columns for columns in (algorithm.columns, algorithm.or_columns) if columns is not None]
    rows = read_rows(file.resolve(file.evaluate.data), *sets)
    trained = set() if data is None else {json.dumps(row, sort_keys=True) for row in data.rows}
    left = [row for row in rows.rows if json.dumps(row, sort_keys=True) not in trained]
    if not left:
        raise SettingsError(f"{rows.source}: every row is in the training data")
    return replace(rows, rows=left)


def _check_lengths(
    file: Settings, algorithm: Algorithm, data: Rows, base: BaseModel, args: Any
) -> None:
    """Check that prompts leave room for completions."""
    if algorithm.takes_reward:
        check_lengths(data, base, args.max_completion_length or 1, None)
        return
    room = 1 if file.samples is None else file.samples.max_completion_length
    check_lengths(data, base, room, args.max_length)


def _check_dropout(file: Settings, base: BaseModel, args: Any) -> None:
    """Check that the model has dropout, and that TRL does not disable it."""
    if file.dropout is None:
        return
    base.with_dropout(file.dropout)
    if file.dropout and getattr(args, "disable_dropout", False):
        raise SettingsError(
            f"dropout is {file.dropout}, and trainer.disable_dropout is true: set it to false"
        )


def _mask(file: Settings, base: BaseModel) -> Mask | None:
    if file.mask in ("none", "auto"):
        return None
    if file.mask == "all":
        from trimtab.training.auto_mask import nearly_all

        return nearly_all(base.shapes)
    if file.made_mask is not None:
        return made_mask(base, *file.made_mask, file.seed)
    path = file.resolve(file.mask)
    if not path.exists():
        raise MaskError(f"mask: {path}: no such file, and no kind of mask: {kinds_hint(file.mask)}")
    return base.fitted(Mask.load(path))


def made_mask(base: BaseModel, kind: str, density: float, seed: int) -> Mask:
    """A mask of the base that follows from its weights, or is random."""
    if kind == RANDOM:  # the base is hashed already, so it is not read again
        origin = {"base": {"id": base.record.id, "revision": base.record.revision}}
        return random_mask(base.shapes, base.tensors, density=density, seed=seed, origin=origin)
    with open_checkpoint(base.folder) as checkpoint:
        names = [name for name in base.shapes if name in base.tensors]
        return make_mask(checkpoint, kind, density=density, seed=seed, names=names)


def _describe_mask(source: str, mask: Mask | None) -> Mapping[str, Any]:
    if mask is None:
        return {"source": source}
    return {
        "source": source,
        "digest": mask.digest,
        "density": mask.density,
        "num_selected": mask.num_selected(),
        "num_elements": mask.num_elements(),
        "provenance": dict(mask.provenance),
    }


Stop = Callable[[], bool]
"""Called after every step; returns whether to stop."""


def build_trainer(
    run: Run, mask: Mask | None, output: Path, callbacks: Sequence[Any]
) -> tuple[Any, MaskedTraining | None]:
    """Load the model and create its trainer.

    Args:
        run: The run.
        mask: The mask; None to train everything with torch's own optimizer.
        output: Folder for the Trainer's checkpoints.
        callbacks: Trainer callbacks.
    """
    import torch
    from transformers import AutoTokenizer, PrinterCallback

    tokenizer = AutoTokenizer.from_pretrained(run.base.folder)
    dropout = {} if run.file.dropout is None else run.base.with_dropout(run.file.dropout)
    model = run.base.load(run.dtype, **dropout)
    args = copy(run.args)  # the Trainer modifies it
    args.output_dir = str(output)
    args.push_to_hub = args.push_to_hub and output.name == CHECKPOINTS  # no search for a mask
    try:
        trainer = run.algorithm.build(
            model, tokenizer, run.rows, run.reward, args, callbacks, run.held_out_rows
        )
    except TrimtabError:
        raise
    except Exception as error:  # settings, data or model can cause any error in TRL
        is_plain = isinstance(error, ValueError | TypeError | ImportError)
        kind = "" if is_plain else f"{type(error).__name__}: "
        raise SettingsError(
            f"{run.algorithm.trainer.rpartition(':')[2]}: {kind}{' '.join(str(error).split())}"
        ) from error
    run.base.check()  # TRL may have loaded a reference model from the same folder
    trainer.remove_callback(PrinterCallback)
    order_by_epoch(trainer)
    if mask is None:
        return trainer, None
    table = run.file.optimizer
    training = train_only(
        trainer,
        mask,
        also=run.file.also,
        master=table.master,
        state_dtype=getattr(torch, DTYPES.get(table.state_dtype, table.state_dtype)),
        clip_by=table.clip_by,
        nonfinite=table.nonfinite,
        check_base=False,  # `BaseModel.fitted` has compared it with the checkpoint
    )
    return trainer, training


def order_by_epoch(trainer: Any) -> None:
    """Make the order of the prompts depend only on seed and epoch, so that runs can resume.

    For GRPO and RLOO, TRL draws the orders of all epochs from one generator, which is reset when a
    run is resumed: the second epoch would use the order of the first. Trainers with other samplers
    are not changed.
    """
    import torch
    from trl.trainer.utils import RepeatSampler

    make = trainer._get_train_sampler

    def made(*args: Any, **more: Any) -> Any:
        sampler = make(*args, **more)
        if not isinstance(sampler, RepeatSampler) or not sampler.shuffle:
            return sampler

        def set_epoch(epoch: int) -> None:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        sampler.set_epoch = set_epoch  # the Trainer calls it before every epoch
        return sampler

    trainer._get_train_sampler = made


def follow(run: Run, line: Stage, stop: Stop, num_steps: int | None = None) -> Any:
    """A Trainer callback that shows each step, and stops where the run can resume.

    Args:
        run: The run.
        line: Progress line of the steps.
        stop: Returns whether to stop.
        num_steps: Total number of steps to show; None for that of the Trainer.
    """
    from transformers import TrainerCallback

    steps_per_round = run.algorithm.steps_per_round(run.args)

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line.expect(num_steps or state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step
            if done >= state.max_steps:
                # The model itself is saved next; avoid an additional checkpoint.
                control.should_save = control.should_save and run.keeps_checkpoints
            elif done % steps_per_round == 0 and stop():
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line.step(state.global_step, logs)

    return Follow()
