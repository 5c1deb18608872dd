"""Runs of RL whose steps `benchmarks.sync` measures, each step left as a delta.

    python -m benchmarks.sync_runs steps-out --demo demo --models deltas-out --only bf16-1e-6

GRPO on one-digit addition, as in the demo: 32 samples a step, a constant learning rate. It tunes
SmolLM2-135M by `trimtab train`, and the native model of `benchmarks.delta_models` by its own loop.
The weights of most runs, their gradients and AdamW's moments are bf16, as where memory is scarce;
`fp32` is the demo's recipe, whose weights are rounded to bf16 when they are saved.

What a run leaves: `000001.delta`, ... (without predictors), each against the step before, and
`history.json`. What is finished is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from time import perf_counter
from typing import Any

import trimtab
from benchmarks import delta_models

SMOLLM2, NATIVE = "SmolLM2-135M", "native"
"""Bases: that of the demo, and one that was trained here in its dtype."""

SEED = 0

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
"""Dtype -> its name in torch."""


@dataclass(frozen=True)
class Steps:
    """A run, every step of which counts.

    Attributes:
        base: `SMOLLM2` or `NATIVE`.
        learning_rate: Of AdamW, constant.
        num_steps: How many.
        mask: What is trained, as in a run file; `train_only` trains a mask, with 16 more bits for
            each of its elements.
        dtype: Of the weights while they are trained: `bf16` or `fp32`.
    """

    base: str
    learning_rate: float
    num_steps: int
    mask: str = "none"
    dtype: str = "bf16"


RUNS: Mapping[str, Steps] = {
    "bf16-1e-6": Steps(SMOLLM2, 1e-6, 50),
    "bf16-1e-5": Steps(SMOLLM2, 1e-5, 50),
    "native-1e-6": Steps(NATIVE, 1e-6, 50),
    "native-1e-5": Steps(NATIVE, 1e-5, 50),
    "fp32-1e-5": Steps(SMOLLM2, 1e-5, 8, dtype="fp32"),
    "mask-20-1e-5": Steps(SMOLLM2, 1e-5, 8, mask="random:0.2"),
    "mask-5-1e-5": Steps(SMOLLM2, 1e-5, 8, mask="random:0.05"),
}


class Chain:
    """Steps of a run as deltas in a folder; the last checkpoint lies beside them meanwhile."""

    def __init__(self, base: Path, folder: Path) -> None:
        """Begin, with nothing of an earlier attempt."""
        self.folder, self._last, self.num_steps = folder, base, 0
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def add(self, save: Callable[[Path], Any]) -> None:
        """Add a step, saved as a checkpoint by a function."""
        self.num_steps += 1
        saved = self.folder / f"step-{self.num_steps}"
        save(saved)
        trimtab.make_delta(
            self._last, saved, self.folder / f"{self.num_steps:06}.delta", max_rank=0, threads=1
        )
        self._forget()
        self._last = saved

    def finish(self, history: Any) -> None:
        """Leave what happened, and no checkpoint."""
        self._forget()
        (self.folder / "history.json").write_text(json.dumps(history, indent=1) + "\n")

    def _forget(self) -> None:
        if self._last.parent == self.folder:
            shutil.rmtree(self._last)


def run_file(steps: Steps, base: Path) -> dict[str, Any]:
    """The run file of the demo, with what a run changes in it."""
    text = files("trimtab.training").joinpath("demo_runs", "grpo.toml").read_text("utf-8")
    content = tomllib.loads(text)
    trainer = content["trainer"] | {
        "learning_rate": steps.learning_rate,
        "max_steps": steps.num_steps,
        "save_strategy": "no",
    }
    whole = {"model": str(base), "mask": steps.mask, "dtype": steps.dtype, "seed": SEED}
    return {**content, **whole, "trainer": trainer}


def mask_of(steps: Steps, base: Path) -> Any:
    """The mask that a run trains; None for everything."""
    if steps.mask == "none":
        return None
    from trimtab.training.runs.prepare import prepare
    from trimtab.training.runs.settings import Settings

    return prepare(Settings.of(base.parent / "run.toml", run_file(steps, base.resolve()))).mask


def train(
    steps: Steps, base: Path, folder: Path, callbacks: Sequence[Any], publisher: Any = None
) -> Any:
    """Tune the demo's model by what `trimtab train` is made of.

    Args:
        steps: The run.
        base: The model.
        folder: Of the run file, which is not written.
        callbacks: Of the Trainer.
        publisher: A `DeltaPublisher` to attach.

    Returns:
        The Trainer's log.
    """
    from rich.progress import Progress

    from trimtab.progress import stage
    from trimtab.training import runtime
    from trimtab.training.bf16_products import bf16_products
    from trimtab.training.runs.prepare import build_trainer, follow, prepare
    from trimtab.training.runs.settings import Settings

    run = prepare(Settings.of(folder / "run.toml", run_file(steps, base.resolve())))
    _, products = bf16_products(run.args.device)
    with runtime.quiet(), products, stage(Progress(disable=True), "grpo") as line:
        every = [follow(run, line, lambda: False), *callbacks]
        trainer, _ = build_trainer(run, run.mask, run.output, every)
        if publisher is not None:
            publisher.attach(trainer)
        trainer.train()
    shutil.rmtree(run.output, ignore_errors=True)  # the Trainer's own, empty
    return trainer.state.log_history


def smollm2(steps: Steps, base: Path, chain: Chain) -> None:
    """Tune the demo's model."""
    chain.finish(train(steps, base, chain.folder, [each_step(chain)]))


def each_step(chain: Chain) -> Any:
    """A Trainer callback that adds every step to a chain."""
    import torch
    from transformers import TrainerCallback

    class EachStep(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            model = more["model"]
            weights = model.state_dict()
            once = {value.data_ptr(): value.to(torch.bfloat16) for value in weights.values()}
            rounded = {name: once[value.data_ptr()] for name, value in weights.items()}  # tied
            chain.add(lambda path: model.save_pretrained(path, state_dict=rounded))
            seconds = state.log_history[-1].get("step_time") if state.log_history else None
            print(f"step {chain.num_steps}, {seconds}", flush=True)

    return EachStep()


def native(steps: Steps, base: Path, chain: Chain) -> None:
    """Tune a model of `benchmarks.delta_models`."""
    import torch
    from transformers import LlamaForCausalLM

    from trimtab.training.addition import split_questions
    from trimtab.training.bf16_products import bf16_products

    model = LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, DTYPES[steps.dtype]))
    training = delta_models.Training(model, steps.learning_rate, chain.folder)
    questions = split_questions(SEED).train
    _, products = bf16_products(torch.device("cpu"))
    with products:
        while training.step < steps.num_steps:
            delta_models.rl_step(training, questions)
            chain.add(lambda path: training.save_weights(path.name))
    chain.finish(training.history)


def bases_of(demo: Path, models: Path) -> dict[str, Path]:
    """The bases, in the folder of `trimtab demo` and in the cache of `benchmarks.delta_models`."""
    return {SMOLLM2: demo / "base", NATIVE: models / "native" / "base" / "model"}


def make(folder: Path, bases: Mapping[str, Path], names: Sequence[str]) -> None:
    """Train what is not there yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    tune = {SMOLLM2: smollm2, NATIVE: native}
    for name in names:
        run = RUNS[name]
        if (folder / name / "history.json").exists():
            continue
        if run.base == NATIVE and not bases[NATIVE].exists():
            delta_models.make(bases[NATIVE].parents[2], [NATIVE])
        start = perf_counter()
        tune[run.base](run, bases[run.base], Chain(bases[run.base], folder / name))
        print(f"{name}: {perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Train them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--demo", type=Path, required=True, help="folder of `trimtab demo`")
    parser.add_argument("--models", type=Path, required=True, help="cache of `benchmarks.deltas`")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    options = parser.parse_args()
    make(options.folder, bases_of(options.demo, options.models), options.only)


if __name__ == "__main__":
    main()
