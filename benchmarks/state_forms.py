"""What 8-bit states and 24-bit masters cost in learning: accuracy of each form minus the default's.

Trains the models of `benchmarks.mask_tasks`, loaded in bf16, with `train_only` and a random mask. A
form keeps running means and masters of `SparseAdamW` in fewer bits. All forms of a task and a
density share one learning rate, the best of the default form on seeds of its own; every reported
seed decides split, order and mask, and is trained in each form, so that differences are of pairs.

Run `python -m benchmarks.state_forms --work FOLDER`. Every finished cell is kept there; the same
command goes on, and writes the output file after each task and density.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.provenance import provenance
from benchmarks.which_mask import Bench, Cell, Result
from trimtab.training import runtime

DEFAULT = "fp32 means"

FORMS: Mapping[str, Mapping[str, Any]] = {
    DEFAULT: {},
    "bf16 means": {"state_dtype": torch.bfloat16},
    "8-bit means": {"state_dtype": torch.int8},
    "8-bit means, 24-bit masters": {"state_dtype": torch.int8, "master": "lo8"},
}
"""Name -> options of `train_only`."""


@dataclass(frozen=True)
class Plan:
    """What is measured of a base.

    Attributes:
        tasks: Keys of `TASKS`.
        densities: Of the random masks.
        rates: Learning rates to choose from.
        choosing: Seeds on which one is chosen.
        reported: Seeds that are reported.
    """

    tasks: tuple[str, ...]
    densities: tuple[float, ...]
    rates: tuple[float, ...]
    choosing: tuple[int, ...]
    reported: tuple[int, ...]


PLANS = {
    "letters": Plan(
        ("rotate", "backwards"), (0.05, 0.2), (3e-3, 1e-2, 3e-2, 1e-1), (100, 101), (*range(8),)
    ),
    "sums": Plan(("sums",), (0.05,), (3e-4, 1e-3), (100,), (0, 1, 2)),
}

OUTPUT = Path(__file__).parent / "results" / "state_forms.json"

Row = tuple[str, Cell, Result]
"""Form, cell and what it gave."""


def measure(bench: Bench, plan: Plan, work: Path) -> Iterator[list[Row]]:
    """Run the missing cells; yields all that are reported after each task and density."""
    path = work / "cells.jsonl"
    lines = path.read_text().splitlines() if path.exists() else ()
    done = {(form, Cell(**cell)): result for form, cell, result in map(json.loads, lines)}
    reported: list[Row] = []

    def run(form: str, cell: Cell) -> Result:
        key = form, cell
        if key not in done:
            bench.options = dict(FORMS[form])
            done[key] = bench.run(cell, 0.0)
            with path.open("a") as file:
                file.write(json.dumps([form, asdict(cell), done[key]]) + "\n")
            print(form, *asdict(cell).values(), done[key], flush=True)
        return done[key]

    for task in plan.tasks:
        for density in plan.densities:
            start = Cell(task, "random", density, 0.0, 0)

            def mean(rate: float, start: Cell = start) -> float:
                cells = [replace(start, rate=rate, seed=seed) for seed in plan.choosing]
                return fmean(run(DEFAULT, cell)["sampled"] for cell in cells)

            rate = max(plan.rates, key=mean)
            for seed in plan.reported:
                for form in FORMS:
                    cell = replace(start, rate=rate, seed=seed)
                    reported.append((form, cell, run(form, cell)))
            yield reported


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
        bench = Bench(base, work / "base", dtype="bfloat16")
        for done in measure(bench, PLANS[base], work):
            every = json.loads(args.output.read_text()) if args.output.exists() else {}
            every[base] = {
                "provenance": provenance("torch", "transformers"),
                "num_elements": bench.num_elements,
                "columns": ["form", "task", "density", "rate", "seed", "sampled", "greedy"],
                "cells": [
                    [form, c.task, c.density, c.rate, c.seed, result["sampled"], result["greedy"]]
                    for form, c, result in done
                ],
            }
            args.output.write_text(json.dumps(every, indent=1) + "\n")


if __name__ == "__main__":
    main()
