"""What changed between two tensors in memory: our functions beside torch's, and beside copying all.

    python -m benchmarks.live_deltas --base demo/base --delta run.delta --output result.json

Runs on a GPU if there is one, where tensors are compared by Triton kernels, else on the CPU. Of
torch's operations the bytes that they read and write are counted too. With a base and a delta of
it, the delta is applied to a model in memory, reverted, and made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.provenance import provenance
from trimtab.deltas import changes as host
from trimtab.deltas.changes import ROW, WIDE, Changes
from trimtab.elements.dtypes import DTYPES
from trimtab.training import load_delta, save_delta

BF16 = DTYPES["BF16"]
DENSITIES = (0.003, 0.09, 0.56)
"""Of a step of RL, of the demo's GRPO run, and of a model of which most weights move."""


class Moved(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes that operations read and write; of what they index, only what they take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **kwargs or {})
        given = [arg for arg in args if isinstance(arg, Tensor)]
        if "index" in str(function):
            given = [*args[1], result]
        addresses = {tensor.untyped_storage().data_ptr() for tensor in given}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in addresses:
            self.num_bytes += result.nbytes
        elif "index" not in str(function):
            return result  # a view
        self.num_bytes += sum(tensor.nbytes for tensor in given)
        return result


def by_torch(before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The changes of bf16 by operations of torch."""
    changed = before != after
    counts = changed.view(-1, ROW).sum(1, dtype=torch.int16)
    at = changed.nonzero().view(-1)
    old, new = (bits[at] for bits in (before, after))
    old, new = (bits ^ ((bits >> 15) & 0x7FFF) for bits in (old, new))
    distance = new - old
    is_wide = (distance > 127) | (distance < -127)
    places, steps = (at % ROW).to(torch.uint8), distance.masked_fill(is_wide, WIDE).to(torch.int8)
    return counts, places, steps, distance[is_wide]


def pair(size: int, density: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights of bf16, as bits, and others of which a share moved, 3 % of them far."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(size, np.float32) * np.float32(0.02)
    before = BF16.encode(values)
    after = before.copy()
    moved = random.random(size) < density
    num = int(moved.sum())
    far = random.random(num) < 0.03
    steps = np.where(far, random.integers(200, 2000, num), random.integers(1, 9, num))
    after[moved] += steps.astype(np.uint16)
    return torch.from_numpy(before.view(np.int16)), torch.from_numpy(after.view(np.int16))


def timed(work: Callable[[], Any], rounds: int, device: str) -> float:
    """Median seconds of a call, after one that does not count."""
    seconds = []
    for _ in range(1 + rounds):
        _wait(device)
        start = perf_counter()
        work()
        _wait(device)
        seconds.append(perf_counter() - start)
    return median(seconds[1:])


def compare(size: int, density: float, rounds: int, device: str) -> dict[str, Any]:
    """Find, apply and check the changes of one tensor.

    Args:
        size: Elements of bf16, a multiple of `ROW`.
        density: Share of them that changes.
        rounds: Calls of which the median is taken.
        device: `cuda` or `cpu`.
    """
    old, new = pair(size, density)
    if device == "cuda":
        from trimtab.training.deltas import cuda_kernels

        old, new = old.to(device), new.to(device)

        def find() -> Changes:
            return cuda_kernels.find_changes(old, new, BF16)

        def apply(bits: Tensor, *, back: bool) -> None:
            cuda_kernels.apply_changes(bits, found, is_float=True, back=back)

        def fingerprint() -> int:
            return cuda_kernels.fingerprint(new)

    else:

        def find() -> Changes:
            return host.find_changes(_bits(old), _bits(new), BF16)

        def apply(bits: Tensor, *, back: bool) -> None:
            host.apply_changes(_bits(bits), found, BF16, back=back)

        def fingerprint() -> int:
            return host.fingerprint(_bits(new))

    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = find()
    peak = torch.cuda.max_memory_allocated() - before if device == "cuda" else None
    with Moved() as moved:
        expected = by_torch(old, new)
    for name, tensor in zip(Changes._fields, expected, strict=True):
        array = getattr(found, name)
        if array.tobytes() != tensor.cpu().numpy().tobytes():
            raise RuntimeError(f"{name} at a density of {density} is not what torch finds")
    bits = old.clone()
    apply(bits, back=False)
    if not torch.equal(bits, new):
        raise RuntimeError(f"the changes at a density of {density} do not make the other tensor")
    gigabytes = new.nbytes / 1e9

    def there_and_back() -> None:
        apply(bits, back=False)
        apply(bits, back=True)

    apply(bits, back=True)
    seconds = {
        "find": timed(find, rounds, device),
        "find by torch": timed(lambda: [t.cpu() for t in by_torch(old, new)], rounds, device),
        "copy to the host": timed(
            lambda: new.cpu() if device == "cuda" else new.clone(), rounds, device
        ),
        "apply": timed(there_and_back, rounds, device) / 2,
        "fingerprint": timed(fingerprint, rounds, device),
    }
    return {
        "density": density,
        "percent_that_crosses": 100 * found.num_bytes / new.nbytes,
        # Both tensors once, and the changes; the second reading of a chunk comes from the cache.
        "bytes_moved_per_element": {
            "find": (old.nbytes + new.nbytes + found.num_bytes) / size,
            "find by torch": moved.num_bytes / size,
        },
        "device_bytes_of_find": peak,
        "milliseconds_per_gigabyte": {n: 1000 * s / gigabytes for n, s in seconds.items()},
    }


def in_model(base: str, delta: str, rounds: int, device: str) -> dict[str, Any]:
    """Apply a delta to a model in memory, revert it, and make it again."""
    from transformers import AutoModelForCausalLM

    model, reference = (
        AutoModelForCausalLM.from_pretrained(base, dtype="auto").to(device) for _ in range(2)
    )
    gigabytes = sum(p.nbytes for p in model.parameters()) / 1e9
    seconds: dict[str, list[float]] = {"load_delta": [], "revert": [], "save_delta": []}
    with TemporaryDirectory() as folder:
        for _ in range(1 + rounds):
            start = perf_counter()
            loaded = load_delta(model, delta)
            seconds["load_delta"].append(perf_counter() - start)
            start = perf_counter()
            save_delta(model, base, Path(folder) / "x.delta", reference=reference, force=True)
            seconds["save_delta"].append(perf_counter() - start)
            start = perf_counter()
            loaded.revert()
            seconds["revert"].append(perf_counter() - start)
    return {
        "gigabytes": gigabytes,
        "percent_to_revert": 100 * loaded.num_bytes / (1e9 * gigabytes),
        "milliseconds_per_gigabyte": {
            name: 1000 * median(values[1:]) / gigabytes for name, values in seconds.items()
        },
    }


def _bits(tensor: Tensor) -> Any:
    return tensor.numpy().view(np.uint16)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--elements", type=int, help="of bf16, a multiple of 256")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--base", help="a checkpoint")
    parser.add_argument("--delta", help="a delta of it")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = options.elements or (1 << 28 if device == "cuda" else 1 << 24)
    report: dict[str, Any] = {
        "provenance": provenance("torch", "numba")
        | {"device": torch.cuda.get_device_name() if device == "cuda" else "cpu"},
        "elements": size,
        "tensors": [compare(size, density, options.rounds, device) for density in DENSITIES],
    }
    if options.base is not None and options.delta is not None:
        report["model"] = in_model(options.base, options.delta, options.rounds, device)
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
