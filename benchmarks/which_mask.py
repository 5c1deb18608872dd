"""Which mask learns best with no earlier run: kinds of mask × density × learning rate.

Each cell teaches a model of `benchmarks.mask_tasks` a task, as a script with
`train_only(trainer, kind, density=…, seed=…)` does, and asks it what it has not seen. The seed
decides the split, the order of the data and the mask. The learning rate of an arm (a kind and a
density) is the one with the best mean over the seeds for choosing; the result is that of the seeds
that are reported, which took no part in the choice.

Beside the kinds stand: training everything; the elements that such a run of the same seed moved
most, which needs that run (the ceiling); those with the largest gradients over the training data;
and LoRA on all linear layers, of the largest rank that takes no more memory than the mask.

Run `python -m benchmarks.which_mask --work FOLDER`. Every finished cell is kept there, and the
output file is written after each arm; the same command, or one with that output file alone, goes
on from there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.mask_tasks import TASKS, Row, Task, as_tensors, make_base
from benchmarks.provenance import provenance
from trimtab import ArrayScores, Mask, Quotas, select
from trimtab.training import mask_from_model, runtime, train_only

ALL, OWN, GRADIENTS, LORA = "everything", "own run", "gradients", "LoRA"

Arm = tuple[str, str, float]
"""A task, a kind and a density."""


@dataclass(frozen=True)
class Plan:
    """What is measured of a model.

    Attributes:
        tasks: Keys of `TASKS`, of one base.
        arms: In the order in which they run; training everything comes before them.
        rates: Learning rates of a kind, or of a density, or (None) of other masks.
        choosing: Seeds on which learning rates are chosen.
        reported: Seeds that are reported.
    """

    tasks: tuple[str, ...]
    arms: tuple[Arm, ...]
    rates: Mapping[str | float | None, tuple[float, ...]]
    choosing: tuple[int, ...]
    reported: tuple[int, ...]


KINDS = ("random", "low-magnitude", "high-magnitude")

OTHERS = (OWN, GRADIENTS, LORA)

LAST = ("off-principal", "principal")
"""Further kinds of `train_only`. `safe` and `absorption` are left out: they are nearly
`low-magnitude`."""

DENSITIES = (0.05, 0.01, 0.2, 0.005)


def _arms(task: str, kinds: Iterable[str], densities: Iterable[float]) -> tuple[Arm, ...]:
    return tuple((task, kind, density) for density in densities for kind in kinds)


PLANS = {
    "letters": Plan(
        ("rotate", "backwards"),
        (
            *_arms("rotate", (*KINDS, *OTHERS), (0.05,)),
            *_arms("rotate", KINDS, (0.01, 0.2, 0.005)),
            *_arms("backwards", ("random",), DENSITIES),
            *_arms("rotate", OTHERS, (0.2, 0.01, 0.005)),
            *_arms("backwards", (*KINDS[1:], *OTHERS), DENSITIES),
            *(arm for task in ("rotate", "backwards") for arm in _arms(task, LAST, DENSITIES)),
        ),
        {
            ALL: (3e-4, 1e-3, 3e-3, 1e-2),
            LORA: (1e-3, 3e-3, 1e-2, 3e-2),
            0.2: (1e-3, 3e-3, 1e-2, 3e-2),
            0.05: (3e-3, 1e-2, 3e-2, 1e-1),
            None: (3e-2, 1e-1, 3e-1),
        },
        choosing=(100, 101),
        reported=(0, 1, 2, 3),
    ),
    "sums": Plan(
        ("sums",),
        (
            *_arms("sums", ("random", "low-magnitude", LORA), (0.05,)),
            *_arms("sums", ("random",), (0.01, 0.2)),
            *_arms("sums", ("high-magnitude", OWN), (0.05,)),
        ),
        {
            ALL: (3e-5, 1e-4, 3e-4),
            LORA: (3e-4, 1e-3, 3e-3),
            0.2: (3e-4, 1e-3, 3e-3),
            None: (1e-3, 3e-3, 1e-2),
        },
        choosing=(100,),
        reported=(0, 1, 2),
    ),
}

BYTES_OF_MASK, BYTES_OF_LORA = 18, 16
"""Bytes for an element of a mask of bf16 weights (4 position, 4 gradient, 8 moments, 2 remainder),
which are 14 by now, and for a weight of an adapter (4 weight, 4 gradient, 8 moments)."""

OUTPUT = Path(__file__).parent / "results" / "which_mask.json"


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        task: A key of `TASKS`.
        kind: A kind of mask, `everything`, `own run`, `gradients` or `LoRA`.
        density: Share of the weights; for LoRA that of the mask whose memory it may take.
        rate: Learning rate.
        seed: Seed of split, order and mask.
    """

    task: str
    kind: str
    density: float
    rate: float
    seed: int


Result = dict[str, float]
Done = dict[Cell, Result]


class Bench:
    """Trains and asks one base.

    Attributes:
        options: Keyword arguments of `train_only`.
    """

    def __init__(self, base: str, folder: Path, dtype: str = "float32") -> None:
        from torch import nn
        from transformers import AutoModelForCausalLM

        make_base(base, folder)
        self.folder = folder
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self.options: dict[str, Any] = {}
        self.num_elements = sum(p.numel() for p in self.model.parameters())
        self.per_rank = sum(
            module.in_features + module.out_features
            for name, module in self.model.named_modules()
            if isinstance(module, nn.Linear) and name != "lm_head"
        )
        self._moved: tuple[Cell, dict[str, Any]] | None = None
        self._mask: tuple[Cell, Mask] | None = None

    def rank(self, density: float) -> int:
        """The largest rank of LoRA that takes no more bytes than a mask of a density; may be 0."""
        allowed = BYTES_OF_MASK * density * self.num_elements / BYTES_OF_LORA
        return int(allowed // self.per_rank)

    def examples(self, task: str, seed: int) -> tuple[list[Row], list[Row]]:
        """Rows to train on, and rows to ask."""
        return TASKS[task].examples(seed, self.folder)

    def run(self, cell: Cell, rate_of_all: float) -> Result:
        """Train a cell and ask; `rate_of_all` is that of the run behind an own mask."""
        started = perf_counter()
        train, heldout = self.examples(cell.task, cell.seed)
        model = deepcopy(self.model)
        mask = None
        if cell.kind == LORA:
            model = self._with_lora(model, cell)
        elif cell.kind != ALL:
            mask = self._mask_of(cell, train, rate_of_all)
        selected = self._train(model, cell, train, mask)
        seconds = round(perf_counter() - started, 2)
        return {**self.ask(model, heldout), "selected": selected, "seconds": seconds}

    def ask(self, model: Any, rows: Sequence[Row]) -> Result:
        """Shares of right answers: `greedy`, and `sampled`, the expectation at temperature 1.

        The second is computed from the probabilities of the tokens of the right answer.
        """
        import torch

        model.eval()
        batch = as_tensors(rows)
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1].double()
        is_answer, safe = labels != -100, labels.clamp(min=0)
        logs = logits.log_softmax(-1).gather(-1, safe[..., None])[..., 0]
        right = (logits.argmax(-1) == safe) | ~is_answer
        return {
            "sampled": round(float((logs * is_answer).sum(1).exp().mean()), 5),
            "greedy": round(float(right.all(1).double().mean()), 5),
        }

    def _train(self, model: Any, cell: Cell, rows: Sequence[Row], mask: Mask | None) -> int:
        """Train a model in place; returns the number of weights that are trained."""
        from transformers import PrinterCallback, Trainer, TrainingArguments

        task = TASKS[cell.task]
        with tempfile.TemporaryDirectory() as out, runtime.quiet():
            args = TrainingArguments(
                out,
                max_steps=task.steps,
                per_device_train_batch_size=task.batch,
                learning_rate=cell.rate,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                max_grad_norm=1.0,
                seed=cell.seed,
                use_cpu=True,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                logging_steps=task.steps,
                dataloader_pin_memory=False,
            )
            trainer = Trainer(model, args, train_dataset=list(rows))
            trainer.remove_callback(PrinterCallback)
            if mask is not None:
                train_only(trainer, mask, **self.options)
            trainer.train()
        if mask is not None:
            return mask.num_selected()
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def _mask_of(self, cell: Cell, rows: Sequence[Row], rate_of_all: float) -> Mask:
        """The mask of a cell, which does not depend on its learning rate."""
        key = replace(cell, rate=0.0)
        if self._mask is None or self._mask[0] != key:
            if cell.kind == OWN:
                everything = replace(cell, kind=ALL, density=1.0, rate=rate_of_all)
                mask = self._own(everything, rows, cell.density)
            elif cell.kind == GRADIENTS:
                mask = self._gradients(cell, rows)
            else:  # what train_only makes of the kind
                mask = mask_from_model(self.model, cell.kind, density=cell.density, seed=cell.seed)
            self._mask = key, mask
        return self._mask[1]

    def _own(self, cell: Cell, rows: Sequence[Row], density: float) -> Mask:
        """What training everything moves most, over all tensors together."""
        if self._moved is None or self._moved[0] != cell:
            model = deepcopy(self.model)
            self._train(model, cell, rows, None)
            pairs = zip(model.named_parameters(), self.model.parameters(), strict=True)
            self._moved = cell, {name: (p - q).detach().abs().numpy() for (name, p), q in pairs}
        return _largest(self._moved[1], density, cell.seed)

    def _gradients(self, cell: Cell, rows: Sequence[Row]) -> Mask:
        """The largest gradients of the base over the training data, summed by batch."""
        model = deepcopy(self.model)
        batch = TASKS[cell.task].batch
        sums = {name: np.zeros(p.shape, np.float32) for name, p in model.named_parameters()}
        for start in range(0, len(rows), batch):
            model.zero_grad()
            model(**as_tensors(rows[start : start + batch])).loss.backward()
            for name, parameter in model.named_parameters():
                sums[name] += parameter.grad.abs().numpy()
        return _largest(sums, cell.density, cell.seed)

    def _with_lora(self, model: Any, cell: Cell) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(cell.seed)
        rank = self.rank(cell.density)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
        return get_peft_model(model, config)


def _largest(arrays: Mapping[str, Any], density: float, seed: int) -> Mask:
    scores = ArrayScores(arrays)
    quotas = Quotas.of_density(density, scores.shapes, match="total")
    return select(scores, quotas, seed=seed, provenance={"step": "largest"})


def best_rate(done: Done, arm: Arm, choosing: Sequence[int]) -> float:
    """The learning rate of an arm with the best mean over the seeds for choosing."""
    values: dict[float, list[float]] = {}
    for cell, result in done.items():
        is_of_arm = (cell.task, cell.kind, cell.density) == arm
        if is_of_arm and cell.seed in choosing:
            values.setdefault(cell.rate, []).append(result["sampled"])
    return max(values, key=lambda rate: fmean(values[rate]))


def measure(bench: Bench, plan: Plan, work: Path, known: Done) -> Iterator[Done]:
    """Run the cells that are neither known nor in the folder, arm by arm.

    Yields:
        All cells that are done: at the start, and after each arm.
    """
    path = work / "cells.jsonl"
    lines = path.read_text().splitlines() if path.exists() else ()
    done = {**known, **{Cell(**cell): result for cell, result in map(json.loads, lines)}}
    yield done

    def run(cell: Cell) -> None:
        if cell in done:
            return
        everything = (cell.task, ALL, 1.0)
        of_all = 0.0 if cell.kind == ALL else best_rate(done, everything, plan.choosing)
        done[cell] = bench.run(cell, of_all)
        with path.open("a") as file:
            file.write(json.dumps([asdict(cell), done[cell]]) + "\n")
        print(*asdict(cell).values(), done[cell], flush=True)

    everything = tuple((task, ALL, 1.0) for task in plan.tasks)
    for arm in (*everything, *plan.arms):
        task, kind, density = arm
        if kind == LORA and not bench.rank(density):
            continue
        key = next(key for key in (kind, density, None) if key in plan.rates)
        for seed in plan.choosing:
            for rate in plan.rates[key]:
                run(Cell(task, kind, density, rate, seed))
        rate = best_rate(done, arm, plan.choosing)
        for seed in plan.reported:
            run(Cell(task, kind, density, rate, seed))
        yield done


def report(bench: Bench, plan: Plan, done: Done) -> dict[str, Any]:
    """What the output file holds of a base: every cell, and what they were measured with."""
    task: Task = TASKS[plan.tasks[0]]
    train, heldout = bench.examples(plan.tasks[0], 0)
    base = {
        name: [bench.ask(bench.model, bench.examples(name, s)[1])["sampled"] for s in plan.reported]
        for name in plan.tasks
    }
    return {
        "provenance": provenance("torch", "transformers", "peft"),
        "num_elements": bench.num_elements,
        "num_train": len(train),
        "num_heldout": len(heldout),
        "steps": task.steps,
        "batch": task.batch,
        "choosing": plan.choosing,
        "reported": plan.reported,
        "ranks": {str(density): bench.rank(density) for density in DENSITIES},
        "base": base,
        "columns": ["task", "kind", "density", "rate", "seed", "sampled", "greedy", "selected"],
        "cells": [
            [*asdict(cell).values(), result["sampled"], result["greedy"], int(result["selected"])]
            for cell, result in done.items()
        ],
    }


def recorded(path: Path, base: str) -> Done:
    """The cells of a base in the output file."""
    every = json.loads(path.read_text()) if path.exists() else {}
    results = "sampled", "greedy", "selected"
    return {
        Cell(*cell[:5]): dict(zip(results, cell[5:], strict=True))
        for cell in every.get(base, {}).get("cells", ())
    }


def write(path: Path, base: str, content: Mapping[str, Any]) -> None:
    """Write the part of a base into the output file, a line for each cell."""
    every = json.loads(path.read_text()) if path.exists() else {}
    every[base] = content
    parts = []
    for name, part in every.items():
        head = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items() if k != "cells"]
        cells = ",\n".join(f"   {json.dumps(cell)}" for cell in part["cells"])
        body = ",\n".join([*head, f'  "cells": [\n{cells}\n  ]'])
        parts.append(f" {json.dumps(name)}: {{\n{body}\n }}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def main() -> None:
    """Measure, and write the output file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of finished cells")
    parser.add_argument("--bases", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args()
    runtime.start()
    for base in args.bases:
        work = args.work / base
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(base, work / "base")
        for done in measure(bench, PLANS[base], work, recorded(args.output, base)):
            write(args.output, base, report(bench, PLANS[base], done))


if __name__ == "__main__":
    main()
