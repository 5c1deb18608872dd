"""Memory and time of `SparseAdamW`, as ratios to dense training measured in the same run.

Every contestant trains the same bf16 Llama, built in code, on one short sequence. Three parts:

- `memory`: each contestant in a process of its own: its peak resident memory above the weights.
- `large`: the same for a model of 1.1 B weights and a mask of 5 %.
- `speed`: all contestants in one process, in turn, round by round.

Run `make bench`, or `python -m benchmarks.optimizer --help`. A part that runs replaces what the
output file holds of it; the others stay.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from statistics import median, median_low
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.contestants import (
    BASELINES,
    FULL,
    LARGE,
    MASKED,
    NOTHING,
    SEQUENCE,
    SMALL,
    Contestant,
    Nothing,
    make_model,
    random_mask,
    tokens,
)
from benchmarks.processes import in_own_process, peak_resident, reset_peak, resident_after_trim
from benchmarks.provenance import provenance
from trimtab import Mask
from trimtab.training.bf16_products import fast_bf16, is_slow

PARTS = ("memory", "large", "speed")
DENSITIES = (0.05, 0.2)
THREADS = (1, 2)
LARGE_SEQUENCE = 8
"""Tokens for the large model; a CPU without products in bf16 takes seconds for each."""

LARGE_CONTESTANTS = (
    "SparseAdamW, 8-bit states",
    "SparseAdamW",
    "dense AdamW, bf16",
    "PEFT LoRA, rank 16",
)
STEPS = 3
PROCESSES = 3
"""For each peak; where the allocator leaves holes differs between them."""

GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
"""Environment in which glibc gives every block of at least 128 KiB back when it is freed."""

MaskFiles = Mapping[float, Path]
"""Density -> file of a mask of that density."""

Phases = dict[str, list[float]]
"""Phase of a step -> the seconds it took in each round."""


def enter(name: str, model: nn.Module, mask: Mask | None) -> Contestant:
    """A contestant by name; those without a mask train everything, or nothing."""
    warnings.filterwarnings("ignore", module="peft|transformers")
    if name == NOTHING:
        return Nothing(model)
    if mask is None:
        return BASELINES[name](model)
    return MASKED[name](model, mask)


def train(contestant: Contestant, sequence: Tensor) -> None:
    """Take one step."""
    contestant.model(input_ids=sequence, labels=sequence).loss.backward()
    contestant.optimize()
    contestant.clear()


def measure_peak(
    name: str, mask_file: Path | None, shape: dict[str, int] = FULL, length: int = SEQUENCE
) -> dict[str, int]:
    """Peak resident memory of a contestant, for a process of its own.

    Libraries and compiled kernels are resident before the model is built, because the contestant
    trains a small model first. All that comes after the model counts: the mask, what the optimizer
    makes of it, its state, gradients, activations.

    Returns:
        What the model added to the process, which should be the size of its weights; how far above
        that the process was at most, while the optimizer was made and during three steps; what the
        optimizer says that it keeps, if it does. In bytes.
    """
    torch.set_num_threads(THREADS[0])
    sequence = tokens(length)
    small = make_model(SMALL)
    small_mask = random_mask(small, Mask.load(mask_file).density) if mask_file else None
    contestant = enter(name, small, small_mask)
    for _ in range(STEPS):
        train(contestant, sequence)
    del contestant, small, small_mask
    gc.collect()
    without_model = resident_after_trim()
    model = make_model(shape)
    with_model = resident_after_trim()
    reset_peak()
    contestant = enter(name, model, Mask.load(mask_file) if mask_file else None)
    peak_made = peak_resident()
    reset_peak()
    for _ in range(STEPS):
        train(contestant, sequence)
    return {
        "num_trained": contestant.num_trained,
        "model": with_model - without_model,
        "making": peak_made - with_model,
        "steps": peak_resident() - with_model,
        "kept": contestant.num_bytes_kept,
    }


def measure_peak_in_use(*args: Any) -> int:
    """The same during the steps, with an allocator that gives large blocks back when freed.

    Otherwise it keeps much of that for later, in holes that may never be used again.
    """
    with patch.dict(os.environ, GIVE_BACK):
        return in_own_process(measure_peak, *args)["steps"]


def memory(masks: MaskFiles, rounds: int) -> dict[str, Any]:
    """Peaks of all contestants, by density."""

    def peaks(name: str, mask: Path | None) -> dict[str, int]:
        runs = [in_own_process(measure_peak, name, mask) for _ in range(PROCESSES)]
        usual = {key: median_low(run[key] for run in runs) for key in runs[0]}
        return {**usual, "in_use": measure_peak_in_use(name, mask)}

    by_density = {
        f"{density:.0%}": {name: peaks(name, masks[density]) for name in MASKED}
        for density in DENSITIES
    }
    return {
        "processes": PROCESSES,
        "by_density": {
            "0%": {NOTHING: peaks(NOTHING, None)},
            "100%": {name: peaks(name, None) for name in BASELINES},
            **by_density,
        },
    }


def large(masks: MaskFiles, rounds: int) -> dict[str, Any]:
    """Peaks with a model of more than a billion weights, each in one process."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        mask_file = Path(folder) / "mask.safetensors"
        num_elements = in_own_process(save_large_mask, mask_file)
        peaks = {}
        for name in LARGE_CONTESTANTS:
            mask = mask_file if name in MASKED else None
            peaks[name] = in_own_process(measure_peak, name, mask, LARGE, LARGE_SEQUENCE)
            print(name, peaks[name], file=sys.stderr)
    return {
        "num_elements": num_elements,
        "density": DENSITIES[0],
        "sequence": LARGE_SEQUENCE,
        "peaks": peaks,
    }


def save_large_mask(file: Path) -> int:
    """Save a random mask of the large model; the number of its weights."""
    with torch.device("meta"):
        model = make_model(LARGE)
    random_mask(model, DENSITIES[0]).save(file)
    return sum(p.numel() for p in model.parameters())


def time_contestants(mask_file: Path, threads: int, rounds: int) -> dict[str, Phases]:
    """Step all contestants in turn, and keep all rounds but the first, which warms up."""
    torch.set_num_threads(threads)
    sequence = tokens()
    mask = Mask.load(mask_file)
    contestants = {name: enter(name, make_model(FULL), None) for name in BASELINES}
    contestants |= {name: enter(name, make_model(FULL), mask) for name in MASKED}
    seconds: dict[str, Phases] = {name: {} for name in contestants}
    for number in range(1 + rounds):
        for name, contestant in contestants.items():
            for phase, took in time_step(contestant, sequence).items():
                if number:
                    seconds[name].setdefault(phase, []).append(took)
    return seconds


def time_step(contestant: Contestant, sequence: Tensor) -> dict[str, float]:
    """Seconds of the phases of one step.

    `hooks` are part of `backward`. `optimizer` is all that turns gradients into stepped weights:
    hooks, casting, masking, clipping and the step. `bare step` is clipping and torch's fused step
    alone, of the contestants that use these. Where torch is slow at products in bf16, these are
    computed by kernels for fp32, as in `trimtab train`.
    """
    hooks, bare = contestant.hook_seconds, contestant.step_seconds
    times = [perf_counter()]
    with fast_bf16() if is_slow(sequence.device) else nullcontext():
        loss = contestant.model(input_ids=sequence, labels=sequence).loss
        times.append(perf_counter())
        loss.backward()
        times.append(perf_counter())
    contestant.optimize()
    times.append(perf_counter())
    contestant.clear()
    times.append(perf_counter())
    forward, backward, optimizer, _ = (end - start for start, end in pairwise(times))
    hooks = contestant.hook_seconds - hooks
    return {
        "forward": forward,
        "backward": backward,
        "hooks": hooks,
        "optimizer": hooks + optimizer,
        "bare step": contestant.step_seconds - bare,
        "whole": times[-1] - times[0],
    }


def compared(seconds: Mapping[str, Phases]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, of the phases and of their ratios to the dense contestants."""
    result = {}
    for name, phases in seconds.items():
        result[name] = {phase: median(values) for phase, values in phases.items()}
        for peer in BASELINES:
            for phase, of_peer in (("optimizer", "bare step"), ("whole", "whole")):
                ratio = median_ratio(phases[phase], seconds[peer][of_peer])
                result[name][f"{phase} / {peer}"] = ratio
    return result


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Median of the ratios within a round, so that a slow minute hits both sides."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def speed(masks: MaskFiles, rounds: int) -> dict[str, Any]:
    """Times of all contestants, by number of threads and density."""

    def times(threads: int, density: float) -> dict[str, dict[str, float]]:
        return compared(in_own_process(time_contestants, masks[density], threads, rounds))

    return {
        "rounds": rounds,
        "products": "by kernels for fp32" if is_slow(torch.device("cpu")) else "bf16",
        "by_threads": {
            str(threads): {f"{density:.0%}": times(threads, density) for density in DENSITIES}
            for threads in THREADS
        },
    }


def model_facts(model: nn.Module) -> dict[str, Any]:
    """What is trained."""
    sizes = [p.numel() for p in model.parameters()]
    return {**FULL, "sequence": SEQUENCE, "num_elements": sum(sizes), "largest_tensor": max(sizes)}


def main() -> None:
    """Run the parts that are asked for, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default all")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        report = json.loads(options.output.read_text("utf-8"))
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        model = make_model(FULL)
        report["model"] = model_facts(model)
        masks = {density: Path(folder) / f"{density:g}.safetensors" for density in DENSITIES}
        for density, file in masks.items():
            random_mask(model, density).save(file)
        del model
        for part, measure in zip(PARTS, (memory, large, speed), strict=True):
            if part in options.parts:
                print(f"measuring {part}", file=sys.stderr)
                result = provenance("torch", "transformers", "peft")
                report[part] = {"provenance": result, **measure(masks, options.rounds)}
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
