"""What a person wants to know of a run before it starts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from trimtab.elements.counts import percent
from trimtab.errors import TrimtabError
from trimtab.training.runs.execute import MODEL, RESOLVED, RESULT, check_output, goes_on
from trimtab.training.runs.explore import FOUND
from trimtab.training.runs.own_samples import SAMPLES
from trimtab.training.runs.prepare import PreparedRun
from trimtab.training.runs.trainer_arguments import CHECKPOINTS
from trimtab.words import plural

__all__ = ["overview"]


def overview(run: PreparedRun) -> str:
    """What the run is, a line for each thing that one wants to know."""
    rows = {
        "run": f"{run.algorithm.name} of {run.base.record.id}, seed {run.file.seed}",
        "trains": _trained(run),
        "data": _data(run),
        "steps": _steps(run),
        "output": f"{run.output} ({_state(run)})",
        "writes": ", ".join(_written(run)),
        "stopped": "on Ctrl-C the step under way is finished and saved, and the same command goes "
        f"on; checkpoints {_saving(run.args)}",
    }
    return "\n".join(
        textwrap.fill(
            told, 100, initial_indent=f"{name:8}", subsequent_indent=" " * 8, break_on_hyphens=False
        )
        for name, told in rows.items()
    )


def _trained(run: PreparedRun) -> str:
    sizes = [_size(shape) for shape in run.base.shapes.values()]
    total, optimizer = sum(sizes), run.file.optimizer.name
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


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _data(run: PreparedRun) -> str:
    data = run.data.describe()
    told = f"{plural(data['num_rows'], 'row')} of {data['source']} ({', '.join(data['columns'])})"
    if run.file.samples is not None:
        told += f", and {plural(run.file.samples.num, 'sample')} of the model to each, drawn first"
    if run.reward is not None:
        what = ", ".join(f"{key} {value}" for key, value in run.reward.record.items())
        told += f"; judged by {what}"
    return told


def _steps(run: PreparedRun) -> str:
    args = run.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
    each = f"{plural(per_step, 'sequence')} in each"
    if num := getattr(args, "num_generations", None):
        each += f", {num} to a prompt"
    if args.max_steps > 0:
        return f"{args.max_steps:,}, {each}; learning rate {args.learning_rate:g}"
    return (
        f"as many as {args.num_train_epochs:g} epochs take, {each}; learning rate "
        f"{args.learning_rate:g}"
    )


def _state(run: PreparedRun) -> str:
    if not run.output.exists():
        return "new"
    try:
        check_output(run)
    except TrimtabError as error:
        return f"training would be refused: {error}"
    return f"the same command goes on {goes_on(run.output)}"


def _written(run: PreparedRun) -> Iterator[str]:
    yield f"{MODEL}/ (the trained checkpoint)"
    yield f"{RESULT} (what came of it)"
    yield f"{RESOLVED} (every setting)"
    if run.file.mask == "auto":
        yield f"{FOUND} (the mask that it finds)"
    if run.file.samples is not None:
        yield f"{SAMPLES} (the samples)"
    if run.file.track is not None:
        yield "updates.trimtab (what steps changed)"
    if run.keeps_checkpoints:
        yield f"{CHECKPOINTS}/ (kept)"


def _saving(args: Any) -> str:
    strategy = str(getattr(args.save_strategy, "value", args.save_strategy))
    if strategy == "steps":
        return f"every {args.save_steps:g} steps"
    return "none but that one" if strategy == "no" else f"by strategy {strategy}"
