"""Create TRL's configuration from `[trainer]` and our defaults."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import inf
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError
from trimtab.results.tables import check_table, shown
from trimtab.training import runtime
from trimtab.training.runs.algorithms import DEFAULTS, Algorithm
from trimtab.training.runs.settings import AutoTable, Settings

CHECKPOINTS = "checkpoints"
"""Folder of the Trainer's checkpoints, in the folder of the run."""

SET_ELSEWHERE = {
    "output_dir": "output",
    "seed": "seed",
    "optim": "name in [optimizer]",
    "model_init_kwargs": "model and dtype",
    "resume_from_checkpoint": "nothing: an interrupted run resumes automatically",
    "save_only_model": "nothing: an interrupted run could not resume from its checkpoints",
    "eval_on_start": "[evaluate], which asks before the first step",
    "disable_tqdm": "nothing: trimtab shows the progress",
}
"""Keys that `[trainer]` must not have -> where the run file sets them."""

LEAST: dict[str, float] = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "gradient_accumulation_steps", "pad_to_multiple_of"), 1
    ),
    **dict.fromkeys(("learning_rate", "warmup_steps", "weight_decay", "num_train_epochs"), 0),
    **dict.fromkeys(("neftune_noise_alpha", "dataloader_num_workers"), 0),
}
"""Numbers that TRL does not check before training -> their minimum."""

OPTIM = {"adamw": "adamw_torch_fused", "sgd": "sgd"}
"""`optimizer.name` -> `optim` of TRL's configuration."""

SAVING = ("save_strategy", "save_steps", "save_total_limit")
"""Keys that request checkpoints to be kept after the run."""


def trainer_arguments(file: Settings, algorithm: Algorithm, output: Path) -> Any:
    """Create TRL's configuration from `[trainer]` and the defaults.

    Raises:
        SettingsError: A key is unknown, has a wrong value, or is set elsewhere.
    """
    import torch

    problems = [
        f"trainer.{key} is set by {where}"
        for key, where in SET_ELSEWHERE.items()
        if key in file.trainer
    ]
    problems += [
        f"trainer.{key} is {json.dumps(file.trainer[key])}, and {algorithm.name} is "
        f"{algorithm.trainer.rpartition(':')[2]} with {json.dumps(value)}: leave the key out"
        for key, value in algorithm.fixed.items()
        if file.trainer.get(key, value) != value
    ]
    given = {key: value for key, value in file.trainer.items() if key not in SET_ELSEWHERE}
    config = algorithm.config_class()
    given = check_table(config, given, "trainer.", problems)
    problems += [
        f"trainer.{key} is {shown(given[key])}, expected a finite number of at least {least}"
        for key, least in LEAST.items()
        if isinstance(given.get(key), int | float) and not least <= given[key] < inf
    ]
    if problems:
        raise SettingsError("; ".join(problems))
    defaults = {
        **DEFAULTS,
        **algorithm.defaults,
        **algorithm.fixed,
        "use_cpu": not torch.accelerator.is_available(),
    }
    if "gradient_checkpointing" in given:  # the older name of activation_checkpointing
        del defaults["activation_checkpointing"]
    if any(key in given for key in SAVING):
        del defaults["save_total_limit"]

    def made(given: dict[str, Any]) -> tuple[Any, int]:
        with runtime.quiet():
            args = config(
                **{**defaults, **given},
                output_dir=str(output / CHECKPOINTS),
                seed=file.seed,
                optim=OPTIM[file.optimizer.name],
                disable_tqdm=True,
            )
        steps_per_round = algorithm.steps_per_round(args)
        if steps_per_round < 1:
            raise ArithmeticError(f"samples would be used for {steps_per_round} steps")
        return args, steps_per_round

    try:
        args, steps_per_round = made(given)
    except (ValueError, TypeError, ImportError) as error:
        raise SettingsError(f"trainer: {' '.join(str(error).split())}") from error
    except Exception as error:  # a value of the user can cause any error in TRL
        raise SettingsError(_culprit(given, made, error)) from error
    if problems := list(algorithm.problems(args)):
        raise SettingsError("; ".join(problems))
    _save_between_rounds(args, steps_per_round, "save_steps" in given)
    if file.mask == "auto" and file.auto.probe == "adamw":
        _check_exploration(file.auto, args.max_steps, steps_per_round)
    return args


def _culprit(
    given: Mapping[str, Any], made: Callable[[dict[str, Any]], Any], error: Exception
) -> str:
    """Find the key whose value makes the configuration fail: without it, the error changes."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for key in given:
        try:
            made({name: value for name, value in given.items() if name != key})
        except Exception as other:
            if repr(other) == repr(error):
                continue
        return f"trainer.{key} is {shown(given[key])}, which the configuration fails on ({reason})"
    return f"trainer: the configuration fails on these keys ({reason})"


def _save_between_rounds(args: Any, steps_per_round: int, is_given: bool) -> None:
    """Save checkpoints only where a resumed run ends in the same weights."""
    if args.save_steps < 1 or args.save_steps % steps_per_round == 0:
        return
    if is_given:
        raise SettingsError(
            f"trainer.save_steps is {args.save_steps}, and samples are used for "
            f"{steps_per_round} steps: expected a multiple of {steps_per_round}"
        )
    args.save_steps = -(-args.save_steps // steps_per_round) * steps_per_round


def _check_exploration(auto: AutoTable, max_steps: int, steps_per_round: int) -> None:
    """Check that the probe ends before the run, and where the run can resume."""
    problems = [
        f"auto.{name} is {value}, and samples are used for {steps_per_round} steps: expected a "
        f"multiple of {steps_per_round}"
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
