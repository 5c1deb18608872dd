"""Deltas of which only a mask is trained, coded over the mask's elements and over all.

    python -m benchmarks.masked_deltas demo/base --mask demo/mask.safetensors out -o masked.json

A base is tuned on one-digit sums, 32 to a step, eight steps for each mask: fp32 weights, torch's
AdamW at 1e-5, gradients outside of the mask set to 0, and every step saved as its rounding to bf16.
Masks are the given one, and random ones of 20 % and 5 % of each tensor. Bytes are those of the
frames, and times those of one thread in the coder, medians of several runs: what else a delta costs
(reading, hashing, its header and manifest) is the same for both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from statistics import median
from time import thread_time
from typing import Any, NamedTuple

import numpy as np

import trimtab
from trimtab.deltas.masked import Selection
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.update_coding import decode_tensor, encode_tensor

PAIRS = ((0, 1), (7, 8), (0, 8))
"""Steps between which deltas are measured."""

DENSITIES = (0.2, 0.05)
"""Of the random masks."""

LEARNING_RATE, SAMPLES, RUNS = 1e-5, 32, 5


class Pair(NamedTuple):
    """A tensor before and after, and what the mask selects of it."""

    before: Bits
    after: Bits
    dtype: DType
    selection: Selection


def random_mask(like: trimtab.Mask, density: float, path: Path) -> Path:
    """Save a mask of random elements of the same tensors, unless it is there."""
    if not path.exists():
        rng = np.random.default_rng(0)
        arrays = {n: rng.random(like.shape(n), np.float32) < density for n in like}
        trimtab.Mask.from_arrays(arrays).save(path)
    return path


def train(base: Path, mask: Path, folder: Path) -> None:
    """Tune the elements of a mask, and save the weights after the steps of `PAIRS`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trimtab.training.addition import split_questions

    saved = {step for pair in PAIRS for step in pair} - {0}
    if (folder / f"step-{max(saved)}").exists():
        return
    torch.manual_seed(0)
    random, questions = Random(0), split_questions(0).train
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    chosen = trimtab.Mask.load(mask)
    selected = {n: torch.from_numpy(chosen.array(n)) for n, _ in model.named_parameters()}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    for step in range(1, max(saved) + 1):
        rows = [random.choice(questions) for _ in range(SAMPLES)]
        batch = tokenizer([r.prompt + r.gold for r in rows], return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(**batch, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, parameter in model.named_parameters():
            parameter.grad.mul_(selected[name])
        optimizer.step()
        optimizer.zero_grad()
        if step in saved:
            weights = {n: p.detach().to(torch.bfloat16) for n, p in model.named_parameters()}
            model.save_pretrained(folder / f"step-{step}", state_dict=weights)


def measure(before: Path, after: Path, mask: Path) -> dict[str, Any]:
    """Bytes and seconds of one delta, over the elements of a mask and over all."""
    chosen = trimtab.Mask.load(mask)
    pairs = []
    with trimtab.open_checkpoint(before) as old, trimtab.open_checkpoint(after) as new:
        for name, tensor in old.tensors.items():
            selection = Selection(chosen.tensor(name, tensor.shape))
            pairs.append(Pair(tensor.read(), new.tensors[name].read(), tensor.dtype, selection))
    num = sum(pair.before.size for pair in pairs)
    outside = sum(
        pair.selection.count_changes(pair.before.reshape(-1), pair.after.reshape(-1))[1]
        for pair in pairs
    )
    assert not outside, f"{outside} elements changed outside of the mask"
    return {
        "density": chosen.num_selected() / num,
        "changed": sum(int((p.before != p.after).sum()) for p in pairs) / num,
        "dense_bytes": sum(pair.before.nbytes for pair in pairs),
        "all": _coded(pairs, over_mask=False),
        "mask": _coded(pairs, over_mask=True),
    }


def _coded(pairs: list[Pair], *, over_mask: bool) -> dict[str, float]:
    def vectors(pair: Pair) -> tuple[Bits, Bits]:
        before, after = pair.before.reshape(-1), pair.after.reshape(-1)
        if not over_mask:
            return before, after
        return pair.selection.gather(before), pair.selection.gather(after)

    def encode() -> list[list[bytes]]:
        return [encode_tensor(*vectors(pair), pair.dtype, max_rank=0) for pair in pairs]

    def decode() -> None:
        for pair, frames in zip(pairs, coded, strict=True):
            before = pair.before.reshape(-1)
            if not over_mask:
                decode_tensor(before, frames, pair.dtype)
                continue
            values = decode_tensor(pair.selection.gather(before), frames, pair.dtype)
            result = before.copy()
            pair.selection.scatter(values, result)

    coded = encode()
    return {
        "bytes": sum(len(frame) for frames in coded for frame in frames),
        "encode_seconds": _seconds(encode),
        "decode_seconds": _seconds(decode),
    }


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = thread_time()
        run()
        times.append(thread_time() - start)
    return median(times)


def main() -> None:
    """Train and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mask", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, help="a checkpoint of which only the mask changed")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    given = trimtab.Mask.load(options.mask)
    masks: Mapping[str, Path] = {"given": options.mask} | {
        f"random {density:.0%}": random_mask(
            given, density, options.folder / f"random-{density}.safetensors"
        )
        for density in DENSITIES
    }
    rows: dict[str, Any] = {}
    if options.tuned is not None:
        rows["given: base to tuned"] = measure(options.base, options.tuned, options.mask)
    for name, mask in masks.items():
        folder = options.folder / name.replace(" ", "-").rstrip("%")
        train(options.base, mask, folder)
        steps = {0: options.base} | {step: folder / f"step-{step}" for _, step in PAIRS}
        steps[7] = folder / "step-7"
        for start, stop in PAIRS:
            rows[f"{name}: step {start} to {stop}"] = measure(steps[start], steps[stop], mask)
    text = json.dumps(rows, indent=1) + "\n"
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
