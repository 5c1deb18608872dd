"""Train a prepared run, or resume it, in a folder of its own.

::

    out/resolved.json    every setting, written before anything else
    out/samples.jsonl    samples of the model, if it is trained on them
    out/mask.safetensors the mask that the run found, with mask = "auto"
    out/updates.trimtab  the changes of every step, with track = 1
    out/rollouts.jsonl   the version that each sample is from, with [rollouts]
    out/evaluations.jsonl  the evaluations during training, with [evaluate]
    out/tensorboard/     the logs, with report_to = "tensorboard"
    out/checkpoints/     of the Trainer; removed at the end unless the run file requests some
    out/model/           the trained checkpoint: the files of the base with other weights
    out/result.json      the results; written last, so it marks a finished run
    out/.lock            locked while a process trains the run
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from trimtab.deltas.hub import push_folder
from trimtab.elements.counts import percent
from trimtab.errors import CheckpointError, OutputExistsError, TrimtabError
from trimtab.outputs import ensure_same_settings, explain_no_room, is_draft, lock, new_folder
from trimtab.processes import Interrupted
from trimtab.progress import Stage, stage
from trimtab.training import runtime
from trimtab.training.evaluation.while_training import evaluate_while_training, evaluations_in
from trimtab.training.folders import (
    complete_checkpoints,
    last_unfinished,
    read_json,
    write_json,
)
from trimtab.training.masked_checkpoint import check_complete, load_converted, write_beside_weights
from trimtab.training.masked_training import MaskedTraining
from trimtab.training.runs.base_model import count_update, save_weights, saved_dtypes
from trimtab.training.runs.explore import EXPLORED, FOUND, find_mask, notes_of
from trimtab.training.runs.prepare import Run, Stop, build_trainer, follow
from trimtab.training.runs.samples import SAMPLES, UNFINISHED, sampled_rows
from trimtab.training.runs.trainer_arguments import CHECKPOINTS
from trimtab.training.runtime import PeakMemory
from trimtab.words import plural

if TYPE_CHECKING:
    from rich.progress import Progress

RESOLVED = "resolved.json"
RESULT = "result.json"
UPDATES = "updates.trimtab"
ROLLOUTS = "rollouts.jsonl"
EVALUATIONS = "evaluations.jsonl"
TENSORBOARD = "tensorboard"
DTYPES_OF_WEIGHTS = ("BF16", "F16", "F32")
MODEL = "model"
LOCK = ".lock"

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
"""State entries of AdamW and SGD that are moments, in torch and in trimtab."""


def execute(
    run: Run, bars: Progress, *, stop: Stop = lambda: False, waits: bool = False
) -> dict[str, Any]:
    """Train until the end, or until `stop` returns True.

    The same call resumes an interrupted run from its last checkpoint, which has weights, optimizer
    state, data order and random state. On one machine, with deterministic arithmetic, it ends in
    the same weights as an uninterrupted run.

    Args:
        run: From `prepare`.
        bars: A running progress display.
        stop: Called after every step; on True, a checkpoint is written and training ends.
        waits: If another process trains this run, wait for it to end and resume from there.

    Returns:
        The content of `result.json`.

    Raises:
        OutputExistsError: The folder has another run, a finished run, or something else; or another
            process trains this run.
        CheckpointError: The folder has a damaged run.
        WriteError: The disk is full.
        Interrupted: `stop` returned True.
    """
    check_output(run)
    with explain_no_room(run.output):
        run.output.mkdir(parents=True, exist_ok=True)
    with lock(run.output / LOCK, wait=lambda: waits and not stop()) as is_locked:
        if not is_locked:
            if waits:
                raise Interrupted("another process trains the run")
            raise OutputExistsError(
                f"output: another process trains the run in {run.output}: wait for it to end"
            )
        if waits and (run.output / RESULT).exists():
            finished: dict[str, Any] = read_json(run.output / RESULT)
            return finished
        check_output(run)  # it may have changed while we waited
        try:
            with explain_no_room(run.output, "make room, and the same command resumes"):
                return _execute(run, bars, stop)
        except KeyboardInterrupt:
            raise Interrupted(f"the same command resumes {resume_point(run.output)}") from None


def resume_point(output: Path) -> str:
    """Where a run resumes, in words."""
    if steps := complete_checkpoints(output / CHECKPOINTS):
        return f"from step {max(steps)}"
    if steps := complete_checkpoints(output / EXPLORED):
        return f"from step {max(steps)} of the search for the mask"
    if (output / FOUND).exists():
        return "with the mask that was found"
    if any((output / name).exists() for name in (SAMPLES, UNFINISHED)):
        return "with the samples that were drawn"
    return "from the beginning"


def _execute(run: Run, bars: Progress, stop: Stop) -> dict[str, Any]:
    """Train, in a folder that this process has locked."""
    write_json(run.output / RESOLVED, run.describe())
    runtime.start(offline=False)
    from trimtab.training.bf16_products import bf16_products

    started = perf_counter()
    device = run.args.device
    how, products = bf16_products(device, is_bf16=run.args.bf16 or run.dtype == "bf16")
    with runtime.quiet(), products:
        if run.file.samples is not None:
            run = replace(run, rows=sampled_rows(run, bars, stop))
        if run.file.mask == "auto":
            run = replace(run, mask=find_mask(run, bars, stop))
        checkpoint = last_unfinished(run.output / CHECKPOINTS)
        resolved = run.describe()
        with stage(bars, f"{run.algorithm.name}: train") as line:
            trainer, training = build_trainer(
                run, run.mask, run.output / CHECKPOINTS, [follow(run, line, stop)]
            )
            _track(run, trainer)
            _sync(run, trainer)
            _evaluate(run, trainer, bars)
            resolved["optimizer"] = _optimizer(run, training)
            _log_to_tensorboard(run, trainer, _step_of(checkpoint), resolved)
            write_json(run.output / RESOLVED, resolved)
            peak = PeakMemory(device)
            loaded = perf_counter()
            if checkpoint is not None:
                check_complete(checkpoint)
                load_converted(checkpoint, trainer.model)
            with explain_no_room(
                run.output / CHECKPOINTS, "make room, and the same command resumes"
            ):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
                load_converted(Path(trainer.state.best_model_checkpoint), trainer.model)
            if trainer.state.global_step < trainer.state.max_steps and stop():
                raise KeyboardInterrupt
    trained = perf_counter()
    peak_memory = peak.read()
    # Read both before saving, which rounds tensors to the dtypes of the base.
    # After `load_best_model_at_end` the Trainer has no sparse optimizer any more.
    moments = _moments(trainer.optimizer if training is None else training.optimizer)
    precision = _precision(run, trainer, moments)
    optimizer = _optimizer(run, training, trainer, moments)
    shutil.rmtree(run.output / MODEL, ignore_errors=True)  # left by an interrupted call
    with new_folder(run.output / MODEL) as draft:
        if training is not None:
            write_beside_weights(draft, training.mask, training.describe())
        save_weights(trainer.model, run.base, run.file.save_dtype, draft)
        if trainer.args.push_to_hub:
            trainer.create_model_card(model_name=trainer.hub_model_id.rpartition("/")[2])
            shutil.copy2(Path(trainer.args.output_dir, "README.md"), draft)
    result = {
        **{key: resolved[key] for key in ("format", "format_version")},
        "steps": trainer.state.global_step,
        "resumed_from_step": _step_of(checkpoint),
        "precision": precision,
        "optimizer": optimizer,
        "notes": [] if run.mask is None else notes_of(run.mask, run.file),
        "update": count_update(run.base, run.output / MODEL, run.file.save_dtype, run.trained),
        "peak_memory": peak_memory,
        "num_input_tokens": int(trainer.state.num_input_tokens_seen) or None,
        "history": [log for log in trainer.state.log_history if "loss" in log],
        **({"evaluations": evaluations_in(run.output / EVALUATIONS)} if run.file.evaluate else {}),
        "seconds": {
            "load": loaded - started,
            "train": trained - loaded,
            "save": perf_counter() - trained,
        },
        "versions": runtime.versions(),
        "device": {**runtime.device(device), "bf16_products": how},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(run.output / RESULT, result)
    if run.file.track is not None:
        from trimtab.training.tracker.file import base_path

        base_path(run.output / UPDATES, 0, 1).unlink(missing_ok=True)
    if not run.keeps_checkpoints:
        shutil.rmtree(run.output / CHECKPOINTS, ignore_errors=True)
    if (args := trainer.args).push_to_hub:
        where = {"token": args.hub_token, "revision": args.hub_revision}
        push_folder(run.output / MODEL, trainer.hub_model_id, **where)
    return result


def _track(run: Run, trainer: Any) -> None:
    """Attach an `UpdateTracker`, if the run file has `track`."""
    if run.file.track is None:
        return
    from trimtab.training.tracker.callback import UpdateTracker

    dtype = "float32" if run.file.save_dtype == "fp32" else None
    # `force`: the tracker continues a usable file of an earlier call, and replaces any other.
    tracker = UpdateTracker(
        run.output / UPDATES,
        every=run.file.track,
        stored_dtype=dtype,
        force=True,
        keep_base=True,  # needed to resume, until there is a result
    )
    tracker.attach(trainer)


def _sync(run: Run, trainer: Any) -> None:
    """Publish the run, and sample from the engine that follows it, if the run file says so."""
    publish, rollouts = run.file.publish, run.file.rollouts
    if publish is None:
        return
    from trimtab.training.sync.publisher import DeltaPublisher
    from trimtab.training.sync.rollouts import EngineRollouts

    place = publish.to if "://" in publish.to else run.file.resolve(publish.to)
    dtypes = [dtype for dtype in run.base.record.dtypes if dtype in DTYPES_OF_WEIGHTS]
    is_one = len(dtypes) == 1 and run.file.save_dtype != "fp32"
    publisher = DeltaPublisher(
        place,
        every=publish.every,
        base=None if publish.whole else run.base.folder,
        stored_dtype=dtypes[0] if is_one else None,
        mask=None if run.mask is None else True,
    ).attach(trainer)
    if rollouts is not None:
        EngineRollouts(
            rollouts.engine,
            publisher,
            max_staleness=rollouts.max_staleness,
            follower=rollouts.follower,
            model=rollouts.model,
            timeout=rollouts.timeout,
            importance_cap=rollouts.importance_cap or None,
            record=run.output / ROLLOUTS,
        ).attach(trainer)


def _evaluate(run: Run, trainer: Any, bars: Progress) -> None:
    """Evaluate during training, if the run file has `[evaluate]`."""
    if (table := run.file.evaluate) is None:
        return
    line = Stage(bars, bars.add_task("evaluate", total=1, note=""), 1)
    evaluate_while_training(
        trainer,
        run.held_out,
        every=table.every,
        batch_size=table.batch_size,
        path=run.output / EVALUATIONS,
        progress=line.follow,
    )


def _step_of(checkpoint: Path | None) -> int | None:
    return None if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def _log_to_tensorboard(
    run: Run, trainer: Any, resumed_from: int | None, resolved: Mapping[str, Any]
) -> None:
    """Let the callback of TensorBoard write beside the checkpoints, which do not stay.

    Steps after the checkpoint of a resumed run are marked as outdated. The record of the run is
    logged as text. The variable TENSORBOARD_LOGGING_DIR still names another folder.
    """
    from transformers.integrations import TensorBoardCallback

    if (callback := trainer.pop_callback(TensorBoardCallback)) is None:
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(
        callback.logging_dir or run.output / TENSORBOARD,
        purge_step=0 if resumed_from is None else resumed_from + 1,
    )
    shown = {key: resolved[key] for key in ("model", "mask", "data", "optimizer", "settings")}
    writer.add_text("trimtab", textwrap.indent(json.dumps(shown, indent=1), "    "))
    trainer.add_callback(TensorBoardCallback(writer))


def state_of(run: Run) -> Literal["new", "begun", "finished"]:
    """The state of a run, from the content of its folder.

    Raises:
        OutputExistsError: The folder has another run, or something else.
        CheckpointError: The folder has a damaged run.
    """
    output = run.output
    is_finished = (output / RESULT).exists()
    if not output.exists() or (output.is_dir() and not any(map(_counts, output.iterdir()))):
        return "new"
    try:
        settings = read_json(output / RESOLVED)["settings"]
        if not isinstance(settings, dict):
            raise TypeError("it has no settings")
    except (OSError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError) and not is_finished:
            raise OutputExistsError(
                f"output: {output} exists and holds no run: choose another folder"
            ) from None
        raise CheckpointError(
            f"{output / RESOLVED} cannot be read ({error!r}): delete {output} to train again"
        ) from None
    checkpoints = [complete_checkpoints(output / folder) for folder in (CHECKPOINTS, EXPLORED)]
    files = (FOUND, SAMPLES, UNFINISHED)
    if not (is_finished or any(checkpoints) or any((output / file).exists() for file in files)):
        return "new"  # interrupted before anything was saved
    ensure_same_settings(
        settings,
        run.settings(),
        holds=f"output: {output} holds {'a finished' if is_finished else 'an unfinished'} run",
        cure="use the same settings, or choose another folder",
    )
    return "finished" if is_finished else "begun"


def check_output(run: Run) -> None:
    """Check that a run can be started or resumed in its folder.

    Raises:
        OutputExistsError: The folder has another run, a finished run, or something else.
        CheckpointError: The folder has a damaged run.
    """
    if state_of(run) == "finished":
        raise OutputExistsError(
            f"output: {run.output} holds a finished run: choose another folder, or delete this one"
        )


def _counts(path: Path) -> bool:
    """Whether a file is more than a leftover of a run that was killed at its start."""
    is_empty = path.name == CHECKPOINTS and path.is_dir() and not any(path.iterdir())
    return not (path.name == LOCK or is_draft(path) or is_empty)


def _optimizer(
    run: Run, training: MaskedTraining | None, trainer: Any = None, moments: Sequence[Any] = ()
) -> dict[str, Any]:
    """Record of the optimizer; with the size of its state, if `trainer` has trained."""
    if training is not None:
        optimizer: dict[str, Any] = training.describe()["optimizer"]
        return optimizer
    if trainer is None:
        return {"optimizer": run.args.optim}
    num_elements = sum(parameter.numel() for parameter in trainer.model.parameters())
    return {
        "optimizer": run.args.optim,
        "num_selected": num_elements,
        "num_elements": num_elements,
        "index_bytes": 0,
        "state_bytes": sum(moment.nbytes for moment in moments),
    }


def _moments(optimizer: Any) -> list[Any]:
    states = optimizer.state.values()
    return [state[key] for state in states for key in MOMENTS if key in state]


def _precision(run: Run, trainer: Any, moments: Sequence[Any]) -> dict[str, str]:
    """The actual dtypes of a run, read from the trainer before saving."""
    weights = _dtypes(trainer.model.parameters())
    return {
        "base": ", ".join(sorted(run.base.record.dtypes)),
        "weights": weights,
        "compute": "bfloat16 autocast" if trainer.args.bf16 else weights,
        "optimizer_state": _dtypes(moments),
        "saved": saved_dtypes(run.base, run.file.save_dtype),
    }


def _dtypes(tensors: Any) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))


def overview(run: Run) -> str:
    """Describe a run for the terminal, one paragraph per topic."""
    rows = {
        "run": f"{run.algorithm.name} of {run.base.record.id}, seed {run.file.seed}",
        "trains": _trained(run),
        "data": _data(run),
        "steps": _steps(run),
        **_synced(run),
        **_evaluated(run),
        "output": f"{run.output} ({_state(run)})",
        "writes": ", ".join(_written(run)),
        "stopped": "on Ctrl-C the current step is finished and saved, and the same command "
        f"resumes; checkpoints {_saving(run.args)}",
    }
    return "\n".join(
        textwrap.fill(
            text, 100, initial_indent=f"{name:8}", subsequent_indent=" " * 8, break_on_hyphens=False
        )
        for name, text in rows.items()
    )


def _trained(run: Run) -> str:
    total, optimizer = sum(map(prod, run.base.shapes.values())), run.file.optimizer.name
    weights = f"weights in {run.dtype}, saved in "
    weights += "fp32" if run.file.save_dtype == "fp32" else "the dtypes of the base"
    if run.file.mask == "auto":
        return f"a mask that it finds first (probe: {run.file.auto.probe}), of {total:,} parameters"
    if run.mask is None:
        return f"all {total:,} parameters, by torch's {optimizer}; {weights}"
    num, whole = run.mask.num_selected(), run.mask.num_elements()
    return (
        f"{num:,} of {whole:,} parameters ({percent(num, whole)}, mask {run.file.mask}), by "
        f"trimtab's sparse {optimizer}; {weights}"
    )


def _data(run: Run) -> str:
    data = run.data.describe()
    text = f"{plural(data['num_rows'], 'row')} of {data['source']} ({', '.join(data['columns'])})"
    if run.file.samples is not None:
        text += f", and {plural(run.file.samples.num, 'sample')} of the model to each, drawn first"
    if run.reward is not None:
        judges = ", ".join(f"{key} {value}" for key, value in run.reward.record.items())
        text += f"; judged by {judges}"
    return text


def _steps(run: Run) -> str:
    args = run.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    each = f"{plural(per_step, 'sequence')} in each"
    if num := getattr(args, "num_generations", None):
        each += f", {num} to a prompt"
    if args.max_steps > 0:
        return f"{args.max_steps:,}, {each}; learning rate {args.learning_rate:g}"
    return (
        f"those of {args.num_train_epochs:g} epochs, {each}; learning rate {args.learning_rate:g}"
    )


def _synced(run: Run) -> dict[str, str]:
    publish, rollouts = run.file.publish, run.file.rollouts
    lines = {}
    if publish is not None:
        lines["publish"] = f"to {publish.to}, every {plural(publish.every, 'step')}"
    if rollouts is not None:
        behind = plural(rollouts.max_staleness, "version")
        lines["samples"] = f"by {rollouts.engine}, at most {behind} behind"
    return lines


def _evaluated(run: Run) -> dict[str, str]:
    if run.file.evaluate is None:
        return {}
    what = []
    if run.held_out_rows is not None:
        rows = run.held_out_rows
        what.append(f"the loss on {plural(len(rows.rows), 'row')} of {rows.source}")
    if run.held_out is not None:
        what.append(f"{plural(len(run.held_out), 'question')} of {run.held_out.rows.source}")
    every = plural(run.file.evaluate.every, "step")
    return {"tests": f"{' and '.join(what)}, at the start, every {every}, and last"}


def _state(run: Run) -> str:
    if not run.output.exists():
        return "new"
    try:
        check_output(run)
    except TrimtabError as error:
        return f"training would be refused: {error}"
    return f"the same command resumes {resume_point(run.output)}"


def _written(run: Run) -> Iterator[str]:
    yield f"{MODEL}/ (the trained checkpoint)"
    yield f"{RESULT} (the results)"
    yield f"{RESOLVED} (every setting)"
    if run.file.mask == "auto":
        yield f"{FOUND} (the mask that it finds)"
    if run.file.samples is not None:
        yield f"{SAMPLES} (the samples)"
    if run.file.rollouts is not None:
        yield f"{ROLLOUTS} (the version that each sample is from)"
    if "tensorboard" in run.args.report_to:
        yield f"{TENSORBOARD}/ (the logs)"
    if run.file.evaluate is not None:
        yield f"{EVALUATIONS} (the evaluations during training)"
    if run.file.track is not None:
        yield f"{UPDATES} (the changes of each step)"
    if run.keeps_checkpoints:
        yield f"{CHECKPOINTS}/ (kept)"


def _saving(args: Any) -> str:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "steps":
        return f"every {args.save_steps:g} steps"
    return "none but that one" if strategy == "no" else f"by strategy {strategy}"
