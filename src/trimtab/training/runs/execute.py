"""Train a prepared run, or go on with it, in a folder of its own.

::

    out/resolved.json    every setting, written before the first step
    out/mask.safetensors the mask that was found, with mask = "auto"
    out/checkpoints/     the Trainer's; removed at the end unless the run file asks for some
    out/model/           the trained checkpoint: the files of the base with other weights
    out/result.json      what came of it; written last, so it marks a finished run
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trimtab.errors import CheckpointError, OutputExistsError
from trimtab.masks import extract_mask
from trimtab.training import runtime
from trimtab.training.folders import last_checkpoint, new_folder, read_json, write_json
from trimtab.training.masked_checkpoint import write_beside_weights
from trimtab.training.masked_training import MaskedTraining
from trimtab.training.memory import PeakMemory
from trimtab.training.progress import stage
from trimtab.training.runs.base_model import FILES, BaseModel
from trimtab.training.runs.explore import EXPLORED, FOUND, find_mask
from trimtab.training.runs.prepare import CHECKPOINTS, PreparedRun
from trimtab.training.runs.trainers import Stop, build_trainer, follow

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["MODEL", "RESOLVED", "RESULT", "execute"]

RESOLVED = "resolved.json"
RESULT = "result.json"
MODEL = "model"

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""Running means of AdamW and SGD, in the state of torch's optimizers and of trimtab's."""


def execute(run: PreparedRun, bars: Progress, *, stop: Stop = lambda: False) -> dict[str, Any]:
    """Train until the end, or until asked to stop.

    A run that was stopped goes on with the same call, and ends in the same weights as one that was
    not (on one machine, where its arithmetic is deterministic): weights, optimizer state, order of
    the data and random state are those of its last checkpoint.

    Args:
        run: From `prepare`.
        bars: A running progress display.
        stop: Asked after every step whether to stop; a checkpoint is written first.

    Returns:
        The content of `result.json`.

    Raises:
        OutputExistsError: The folder holds another run, or a finished one, or something else.
        CheckpointError: The folder holds a damaged run.
        KeyboardInterrupt: It was asked to stop.
    """
    _claim(run)
    runtime.start(offline=False)
    started = perf_counter()
    with runtime.quiet():
        if run.file.mask == "auto":
            write_json(run.output / RESOLVED, run.describe())
            run = replace(run, mask=find_mask(run, bars, stop))
        checkpoint = last_checkpoint(run.output / CHECKPOINTS)
        resolved = run.describe()
        with stage(bars, f"{run.algorithm.name}: train") as line:
            trainer, training = build_trainer(
                run, run.mask, run.output / CHECKPOINTS, [follow(run, line, stop)]
            )
            resolved["optimizer"] = _optimizer(run, training)
            write_json(run.output / RESOLVED, resolved)
            peak = PeakMemory(trainer.args.device)
            loaded = perf_counter()
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.state.global_step < trainer.state.max_steps and stop():
                raise KeyboardInterrupt
    trained = perf_counter()
    peak_memory = peak.read()
    # Both are read from tensors that saving rounds to the dtypes of the base.
    precision, optimizer = _precision(run, trainer), _optimizer(run, training)
    shutil.rmtree(run.output / MODEL, ignore_errors=True)  # left by a call that ended just here
    with new_folder(run.output / MODEL) as draft:
        if training is not None:
            write_beside_weights(draft, training.mask, training.describe())
        _save(trainer.model, run.base, draft)
    result = {
        **{key: resolved[key] for key in ("format", "format_version")},
        "steps": trainer.state.global_step,
        "resumed_from_step": int(checkpoint.name.rpartition("-")[2]) if checkpoint else None,
        "precision": precision,
        "optimizer": optimizer,
        "update": _update(run),
        "peak_memory": peak_memory,
        "history": [log for log in trainer.state.log_history if "loss" in log],
        "seconds": {
            "load": loaded - started,
            "train": trained - loaded,
            "save": perf_counter() - trained,
        },
        "versions": runtime.versions(),
        "device": _device(trainer.args.device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run.output / RESULT, result)
    if not run.keeps_checkpoints:
        shutil.rmtree(run.output / CHECKPOINTS, ignore_errors=True)
    return result


def _claim(run: PreparedRun) -> None:
    """Make the folder of the run, or check that what it holds is this run, begun."""
    output = run.output
    if (output / RESULT).exists():
        raise OutputExistsError(
            f"output: {output} holds a finished run: choose another folder, or delete this one"
        )
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        try:
            found = read_json(output / RESOLVED)["settings"]
        except (FileNotFoundError, NotADirectoryError):
            raise OutputExistsError(
                f"output: {output} exists and holds no run: choose another folder"
            ) from None
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"{output / RESOLVED} cannot be read ({error!r}): delete the folder to start anew"
            ) from None
        begun = [last_checkpoint(output / folder) for folder in (CHECKPOINTS, EXPLORED)]
        if any(begun) or (output / FOUND).exists():
            _refuse_other(found, run.settings(), output)
    output.mkdir(parents=True, exist_ok=True)


def _refuse_other(found: Any, wanted: Mapping[str, Any], folder: Path) -> None:
    before, now = dict(_flat(found)), dict(_flat(wanted))
    differences = [
        f"{name} {before.get(name)!r} (now {now.get(name)!r})"
        for name in {**now, **before}
        if before.get(name) != now.get(name)
    ]
    if differences:
        raise OutputExistsError(
            f"output: {folder} holds an unfinished run with {', '.join(differences)}: go on with "
            "the same settings, or choose another folder"
        )


def _flat(settings: Any, prefix: str = "") -> Any:
    if not isinstance(settings, dict):
        yield prefix, settings
        return
    for key, value in settings.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)


def _save(model: Any, base: BaseModel, folder: Path) -> None:
    """Save the weights in the dtypes of the base, with the base's other files."""
    import torch

    dtypes = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (stored := base.stored_dtype(name)) in dtypes and tensor.is_floating_point():
            tensor.data = tensor.data.to(dtypes[stored])
    with runtime.quiet():
        model.save_pretrained(folder)
    for file in base.folder.iterdir():
        is_wanted = any(fnmatch(file.name, pattern) for pattern in FILES)
        if is_wanted and not file.name.endswith(".index.json"):
            shutil.copy2(file, folder / file.name)


def _optimizer(run: PreparedRun, training: MaskedTraining | None) -> dict[str, Any]:
    if training is None:
        return {"optimizer": run.args.optim}
    optimizer: dict[str, Any] = training.describe()["optimizer"]
    return optimizer


def _precision(run: PreparedRun, trainer: Any) -> dict[str, str]:
    """The dtypes that a run really had, read from the trainer before it is saved."""
    states = trainer.optimizer.state.values()
    moments = [state[key] for state in states for key in MOMENTS if key in state]
    weights = _dtypes(trainer.model.parameters())
    return {
        "base": ", ".join(sorted(run.base.record.dtypes)),
        "weights": weights,
        "compute": "bfloat16 autocast" if trainer.args.bf16 else weights,
        "optimizer_state": _dtypes(moments),
        "saved": ", ".join(sorted(run.base.record.dtypes)),
    }


def _dtypes(tensors: Any) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def _update(run: PreparedRun) -> dict[str, Any]:
    """What the saved weights differ in from the base, bit for bit, in the mask and outside."""
    changed = extract_mask(run.base.folder, run.output / MODEL)
    inside = 0
    for name in changed:
        if run.mask is None:
            inside += changed.num_selected(name)
        elif name in run.mask:
            inside += int((changed.array(name) & run.mask.array(name)).sum())
    return {
        "criterion": "bits",
        "num_elements": changed.num_elements(),
        "num_changed": changed.num_selected(),
        "num_changed_outside_mask": changed.num_selected() - inside,
    }


def _device(device: Any) -> dict[str, Any]:
    """Where the run computed."""
    import torch

    if device.type == "cpu":
        return runtime.device()
    return {"type": device.type, "name": torch.cuda.get_device_name(device)}
