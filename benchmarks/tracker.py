"""What `UpdateTracker` costs a training step, and how much memory it takes.

A Llama of the shape of SmolLM2-135M, with random weights, takes steps like those of the demo: 32
short sequences, AdamW on fp32 weights under bf16 autocast; and the same with `SparseAdamW` on bf16
weights and a mask. Two parts:

- `speed`: one process takes steps in pairs, one of them tracked, in turn the first or the second.
- `memory`: processes of their own take a few optimizer steps, tracked or not; peaks of resident
  memory.

Run `make bench-tracker`, or `python -m benchmarks.tracker --help`. A part that runs replaces what
the output file holds of it; the other stays.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median, median_low
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.contestants import random_mask
from benchmarks.processes import in_own_process, peak_resident, reset_peak, resident_after_trim
from benchmarks.provenance import provenance
from trimtab.training import SparseAdamW
from trimtab.training.tracker.run import KindTotals, Session, TrackerSettings

PARTS = ("speed", "memory")
WARM_UP = 3
PROCESSES = 3
"""For each peak; where the allocator leaves holes differs between them."""

STEPS = 3
DENSITY = 0.2
SEED = 0

LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.0
MAX_GRAD_NORM = 1.0
SEQUENCES = 32
"""Of a step, as in the demo."""

SEQUENCE = 20
"""Tokens of a sequence: the demo's 17 of the prompt and, mostly, 3 of the answer."""

SMOLLM2: dict[str, Any] = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "initializer_range": 1 / 24,
    "tie_word_embeddings": True,
}
"""The config of SmolLM2-135M as far as it decides the shape and the size of the weights."""


class Training(NamedTuple):
    """A model and what trains it.

    Attributes:
        model: The model.
        optimizer: Its optimizer.
        clips: Whether gradients are clipped before the step; else the optimizer does.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    clips: bool


def new_model(dtype: torch.dtype, shape: dict[str, Any]) -> nn.Module:
    """A Llama whose random weights are bf16 numbers, alike every time."""
    torch.manual_seed(SEED)
    config = LlamaConfig(**shape, use_cache=False)
    model: nn.Module = LlamaForCausalLM._from_config(config, dtype=torch.float32)
    return model.bfloat16().to(dtype).train()


def dense(shape: dict[str, Any]) -> Training:
    """The demo's way: everything, in fp32."""
    model = new_model(torch.float32, shape)
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    return Training(model, optimizer, clips=True)


def masked(shape: dict[str, Any]) -> Training:
    """A mask, on bf16 weights with exact masters."""
    model = new_model(torch.bfloat16, shape)
    optimizer = SparseAdamW(
        model.named_parameters(),
        random_mask(model, DENSITY),
        lr=LEARNING_RATE,
        max_grad_norm=MAX_GRAD_NORM,
        check_base=False,
    )
    return Training(model, optimizer, clips=False)


TRAININGS: dict[str, Callable[[dict[str, Any]], Training]] = {
    "AdamW, fp32 weights": dense,
    "SparseAdamW, 20 %, bf16 weights": masked,
}


def batch(step: int) -> Tensor:
    """Sequences of random tokens."""
    generator = torch.Generator().manual_seed(step)
    size = (SEQUENCES, SEQUENCE)
    return torch.randint(SMOLLM2["vocab_size"], size, generator=generator)


def take_step(training: Training, number: int, session: Session | None, point: int) -> list[float]:
    """Take a step, and a point of it if there is a session.

    Returns:
        Seconds of the whole step, and those in which the tracker saw gradients and took a point.
    """
    tokens = batch(number)
    times = [perf_counter()]
    with torch.autocast("cpu", torch.bfloat16):
        loss = training.model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    if training.clips:
        clip_grad_norm_(training.model.parameters(), MAX_GRAD_NORM)
    times.append(perf_counter())
    if session is not None:
        session.count_gradients(training.optimizer)
    times.append(perf_counter())
    training.optimizer.step()
    times.append(perf_counter())
    if session is not None:
        session.take_point(point, training.optimizer)
    times.append(perf_counter())
    training.model.zero_grad()
    whole = perf_counter() - times[0]
    return [whole, times[2] - times[1], times[4] - times[3]]


def time_pairs(name: str, rounds: int) -> dict[str, Any]:
    """Steps in pairs, one of each tracked, after some that warm up."""
    training = TRAININGS[name](SMOLLM2)
    pairs: list[tuple[list[float], list[float]]] = []
    sizes, stepped = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "updates"
        started = perf_counter()
        session = Session(TrackerSettings(path, 1, None, False), training.model, 0)
        begun = perf_counter() - started
        for number in range(WARM_UP + rounds):
            before = path.stat().st_size
            took: dict[bool, list[float]] = {}
            for is_tracked in (True, False) if number % 2 else (False, True):
                step = 2 * number + is_tracked
                one = session if is_tracked else None
                took[is_tracked] = take_step(training, step, one, number + 1)
            total = KindTotals.sum_of(session.totals.values())
            if number >= WARM_UP:
                pairs.append((took[True], took[False]))
                sizes.append(path.stat().st_size - before)
                stepped.append(total.figures.stepped / total.num_elements)
        base = (Path(folder) / "updates.base").stat().st_size
        session.close(finished=True)
    return {
        "num_elements": total.num_elements,
        "step": median(plain[0] for _, plain in pairs),
        "tracked / step": median(tracked[0] / plain[0] for tracked, plain in pairs),
        "tracker / step": median(sum(tracked[1:]) / plain[0] for tracked, plain in pairs),
        "gradients": median(tracked[1] for tracked, _ in pairs),
        "point": median(tracked[2] for tracked, _ in pairs),
        "beginning": begun,
        "stepped": median(stepped),
        "changed": total.changed / total.num_elements,
        "bytes of a point": median(sizes),
        "bytes of the base": base,
    }


def measure_peak(name: str, is_tracked: bool) -> dict[str, int]:
    """Peak resident memory of a few optimizer steps, for a process of its own.

    Gradients are random: what a forward and a backward pass need is gone when a point is taken.
    """
    small = SMOLLM2 | {"num_hidden_layers": 1}
    for one in (small, SMOLLM2):  # compiled kernels and libraries are resident before
        training = TRAININGS[name](one)
        with tempfile.TemporaryDirectory() as folder:
            optimize(training, None, 0)  # the optimizer has its state from here on
            gc.collect()
            before = resident_after_trim()
            reset_peak()
            # After a step the weights no longer tell that the base was bf16.
            settings = TrackerSettings(Path(folder) / "updates", 1, "BF16", False)
            session = Session(settings, training.model, 0) if is_tracked else None
            for number in range(1, 1 + STEPS):
                optimize(training, session, number)
            found = {"before": before, "peak": peak_resident()}
            found["after"] = resident_after_trim()
            if session is not None:
                session.close(finished=True)
        del training, session
    return found


def optimize(training: Training, session: Session | None, point: int) -> None:
    """Take an optimizer step, and a point of it if there is a session."""
    for parameter in training.model.parameters():
        parameter.grad = torch.randn_like(parameter)
    if session is not None:
        session.count_gradients(training.optimizer)
    training.optimizer.step()
    if session is not None:
        session.take_point(point, training.optimizer)
    training.model.zero_grad()


def memory(rounds: int) -> dict[str, Any]:
    """Peaks with and without the tracker, above the memory of the training at rest."""

    def peaks(name: str, is_tracked: bool) -> dict[str, int]:
        runs = [in_own_process(measure_peak, name, is_tracked) for _ in range(PROCESSES)]
        return {
            "peak": median_low(run["peak"] - run["before"] for run in runs),
            "at rest": median_low(run["after"] - run["before"] for run in runs),
        }

    by_training = {}
    for name in TRAININGS:
        plain, tracked = peaks(name, False), peaks(name, True)
        extra = {key: tracked[key] - plain[key] for key in plain}
        by_training[name] = {"plain": plain, "tracked": tracked, "extra": extra}
    return {"processes": PROCESSES, "by_training": by_training}


def speed(rounds: int) -> dict[str, Any]:
    """Times of all trainings."""
    by_training = {name: in_own_process(time_pairs, name, rounds) for name in TRAININGS}
    return {"rounds": rounds, "threads": torch.get_num_threads(), "by_training": by_training}


def main() -> None:
    """Run the parts that are asked for, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="timed pairs (default 15)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default both")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        report = json.loads(options.output.read_text("utf-8"))
    report["sequences"], report["tokens"] = SEQUENCES, SEQUENCE
    for part, measure in zip(PARTS, (speed, memory), strict=True):
        if part in options.parts:
            print(f"measuring {part}", file=sys.stderr)
            result = provenance("torch", "transformers")
            report[part] = {"provenance": result, **measure(options.rounds)}
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
