"""One arm of the demo: train a copy of the base, or only a mask of it, and save it beside it.

The weights are fp32 while they are trained (the compute is bf16 by autocast) and are rounded to
bf16 once, when they are saved. What the comparison then sees is the update that survives this
rounding; the record therefore states every dtype on the way. An arm that trains only a mask does
the same: its fp32 weights need no further master, and those outside the mask stay at the base's
value, which rounding gives back bit for bit.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from trimtab.errors import CheckpointError
from trimtab.masks.mask import Mask
from trimtab.outputs import ensure_same_settings, new_folder
from trimtab.training import grpo, runtime, sft
from trimtab.training.addition import Split
from trimtab.training.folders import (
    WEIGHTS,
    last_checkpoint,
    read_json,
    read_record,
    seal,
    write_json,
)
from trimtab.training.masked_training import MaskedTraining, train_only
from trimtab.training.recipe import Recipe, trainer_arguments
from trimtab.training.runs.prepare import order_by_epoch

__all__ = ["ALGORITHMS", "CHECKPOINT_EVERY", "RUN", "check_settings", "train_arm"]

ALGORITHMS = {"grpo": grpo, "sft": sft}

RUN = "run.json"
"""The record in the folder of a finished arm."""

CHECKPOINT_EVERY = 10
"""Steps between two checkpoints of an unfinished arm (SmolLM2: 1.6 GB, as long as a step)."""

CLIP_BY: Literal["full"] = "full"
"""Arms with a mask clip by the norm of the whole gradient, as the arm without one does."""

_SETTINGS = "settings.json"

OnStep = Callable[[int, Mapping[str, Any]], None]


def check_settings(
    algorithm: str,
    recipe: Recipe,
    base: Mapping[str, Any],
    folder: Path,
    work: Path,
    *,
    mask: Mask | None = None,
) -> dict[str, Any]:
    """Refuse to mix runs: a finished or begun arm must have the settings that are asked for now.

    An arm that was stopped before its first checkpoint left nothing to mix.

    Args:
        algorithm: A key of `ALGORITHMS`.
        recipe: The settings asked for.
        base: The record of the base checkpoint.
        folder: Where the finished arm lies, or will.
        work: Where its unfinished state lies.
        mask: The mask, of an arm that trains only one.

    Returns:
        The settings as they are recorded.

    Raises:
        OutputExistsError: The arm was trained, or partly trained, with other settings.
        CheckpointError: The finished arm is not complete.
    """
    wanted = recipe.settings(algorithm, ALGORITHMS[algorithm].SETTINGS)
    wanted["base"] = base["weights"]["xxh3_128"]
    if mask is not None:
        wanted |= {"optimizer": "SparseAdamW", "clip_by": CLIP_BY, "mask": mask.digest}
    record = read_record(folder, RUN)
    if record is not None:
        _refuse_other(record.get("settings", {}), wanted, folder)
    elif last_checkpoint(work) is not None:
        _refuse_other(read_json(work / _SETTINGS), wanted, work)
    return wanted


def train_arm(
    algorithm: str,
    recipe: Recipe,
    base_folder: Path,
    base: Mapping[str, Any],
    folder: Path,
    work: Path,
    *,
    mask: Mask | None = None,
    on_step: OnStep | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
) -> dict[str, Any]:
    """Train one arm, or go on where an earlier call stopped, or return what it finished.

    A resumed run takes the same steps as an uninterrupted one: weights, optimizer state, order of
    the questions and random state are restored.

    Args:
        algorithm: A key of `ALGORITHMS`.
        recipe: The settings.
        base_folder: The base checkpoint.
        base: Its record.
        folder: Becomes the trained checkpoint: the files of the base with other weights.
        work: Holds the Trainer's checkpoints until the arm is finished.
        mask: Train only this; None to train every weight.
        on_step: Called after each step with the number of steps done and the step's metrics.
        checkpoint_every: Steps between two checkpoints.

    Returns:
        The record of the arm.

    Raises:
        OutputExistsError: The arm was trained, or begun, with other settings.
        CheckpointError: A folder is not what an earlier call wrote.
    """
    settings = check_settings(algorithm, recipe, base, folder, work, mask=mask)
    record = read_record(folder, RUN)
    if record is not None:
        shutil.rmtree(work, ignore_errors=True)  # an earlier call may have stopped just before
        return record
    runtime.start()
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / _SETTINGS, settings)
    checkpoint = last_checkpoint(work)
    started = perf_counter()
    with runtime.quiet():
        trainer, num_prompt_tokens = _trainer(
            algorithm, recipe, base_folder, work, on_step, checkpoint_every
        )
        masked = None if mask is None else train_only(trainer, mask, master="none", clip_by=CLIP_BY)
        loaded = perf_counter()
        with runtime.fast_products():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    trained = perf_counter()
    with new_folder(folder) as draft:
        _save(trainer.model, base_folder, draft)
        record = {
            "algorithm": algorithm,
            "settings": settings,
            "precision": _precision(trainer),
            "optimizer": _optimizer(trainer, masked),
            "tokens": _tokens(trainer.state, recipe, num_prompt_tokens),
            "history": _history(trainer.state),
            "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
            "seconds": {
                "load": loaded - started,
                "train": trained - loaded,
                "save": perf_counter() - trained,
            },
            "versions": runtime.versions(),
            "device": runtime.device(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        record = seal(draft, RUN, record)
    shutil.rmtree(work)
    return record


def _trainer(
    algorithm: str,
    recipe: Recipe,
    base_folder: Path,
    work: Path,
    on_step: OnStep | None,
    checkpoint_every: int,
) -> tuple[Any, int]:
    """A TRL trainer of an fp32 copy of the base, and the number of tokens of every prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    split = recipe.split()
    trainer = ALGORITHMS[algorithm].build_trainer(
        model,
        tokenizer,
        split,
        recipe,
        trainer_arguments(recipe, work),
        [_follow(on_step, checkpoint_every)],
    )
    trainer.remove_callback(PrinterCallback)
    order_by_epoch(trainer)
    return trainer, _num_prompt_tokens(tokenizer, split)


def _follow(on_step: OnStep | None, checkpoint_every: int) -> Any:
    """A Trainer callback that reports each step and asks for checkpoints between them."""
    from transformers import TrainerCallback

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step
            control.should_save = done % checkpoint_every == 0 and done < state.max_steps

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_step is not None and logs and "loss" in logs:
                on_step(state.global_step, logs)

    return Follow()


def _num_prompt_tokens(tokenizer: Any, split: Split) -> int:
    lengths = {len(tokenizer(question.prompt)["input_ids"]) for question in split.train}
    if len(lengths) != 1:
        raise CheckpointError(
            f"the tokenizer gives the prompts {min(lengths)} to {max(lengths)} tokens: "
            "expected one token for each digit"
        )
    return lengths.pop()


def _save(model: Any, base_folder: Path, folder: Path) -> None:
    """Save the weights as bf16 under the tensor names of the base, with the base's other files."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in base_folder.iterdir():
        if file.name.endswith((".json", ".jinja")) and file.name not in (RUN, "origin.json"):
            shutil.copy2(file, folder / file.name)
    with safe_open(base_folder / WEIGHTS, framework="pt") as stored:
        names = list(stored.keys())
    weights = model.state_dict()
    save_file(
        {name: weights[name].to(torch.bfloat16).contiguous() for name in names},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )


def _precision(trainer: Any) -> dict[str, str]:
    """The dtypes that a run really had, read from the trainer."""
    states = trainer.optimizer.state.values()
    return {
        "base": "bfloat16",
        "weights": _dtypes(parameter for parameter in trainer.model.parameters()),
        "compute": "bfloat16 autocast" if trainer.args.bf16 else "float32",
        "optimizer_state": _dtypes(state["exp_avg"] for state in states),
        "saved": "bfloat16",
    }


def _optimizer(trainer: Any, masked: MaskedTraining | None) -> dict[str, Any]:
    """What was trained and what that kept in memory, in the words of the sparse optimizers."""
    if masked is not None:
        described: dict[str, Any] = masked.describe()["optimizer"]
        return described
    num_elements = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "optimizer": "AdamW",
        "num_selected": num_elements,
        "num_elements": num_elements,
        "index_bytes": 0,
        "state_bytes": sum(
            state[key].nbytes
            for state in trainer.optimizer.state.values()
            for key in ("exp_avg", "exp_avg_sq")
        ),
    }


def _dtypes(tensors: Any) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def _tokens(state: Any, recipe: Recipe, num_prompt_tokens: int) -> dict[str, int]:
    """Count the tokens of all steps; the Trainer's state carries them over an interruption."""
    num_sequences = recipe.steps * recipe.sequences_per_step
    forward = int(state.num_input_tokens_seen)
    return {
        "num_sequences": num_sequences,
        "num_prompt_tokens_each": num_prompt_tokens,
        "num_forward": forward,
        "num_loss": forward - num_sequences * num_prompt_tokens,
    }


def _history(state: Any) -> list[dict[str, Any]]:
    """Metrics of each step; `groups_without_signal` is the share of GRPO groups of equal reward."""
    names = {
        "loss": "loss",
        "grad_norm": "grad_norm",
        "reward": "reward",
        "frac_reward_zero_std": "groups_without_signal",
        "completions/mean_length": "mean_completion_tokens",
        "entropy": "entropy",
        "mean_token_accuracy": "token_accuracy",
    }
    return [
        {
            "step": log["step"],
            **{ours: log[theirs] for theirs, ours in names.items() if theirs in log},
        }
        for log in state.log_history
        if "loss" in log
    ]


def _refuse_other(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    ensure_same_settings(
        found,
        wanted,
        holds=f"{folder} belongs to a run",
        cure="use the same settings to go on, or another output folder",
    )
