"""Time to turn a model in memory into another fine-tune of its base, beside other ways to do so.

    python -m benchmarks.swap demo/base demo/grpo/model demo/sft/model --output result.json

Two fine-tunes take turns in one model. Figures are medians for each gigabyte of weights: time, and
processor time, on which other programs have less influence. After every swap the weights are
compared bit for bit with the checkpoint. Files are in the page cache. Two LoRA adapters of PEFT on
the same base, with random weights, take turns beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.provenance import provenance
from trimtab import make_delta
from trimtab.training import load_delta

LORA_RANK = 16


class Way(NamedTuple):
    """A way to swap. The model is the second fine-tune at first.

    Attributes:
        swap: Turns the model into a fine-tune, given its number: 0, 1, 0, 1, ...
        check: Raises if the model is not that fine-tune.
        num_bytes: What a further fine-tune keeps in memory, beside the model.
    """

    swap: Callable[[int], object]
    check: Callable[[int], object]
    num_bytes: int


def model_of(folder: str) -> nn.Module:
    """A checkpoint in memory, in the dtypes of its files."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.requires_grad_(False)


def weights_of(folder: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint in its file."""
    return load_file(Path(folder) / "model.safetensors")


def num_different(model: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """Elements of a model that do not have the bits of a checkpoint."""
    values = {name.replace(".base_layer", ""): t for name, t in model.state_dict().items()}
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return sum(
        int((values[name].view(integers[t.itemsize]) != t.view(integers[t.itemsize])).sum())
        for name, t in weights.items()
    )


def checker(model: nn.Module, folders: Sequence[str]) -> Callable[[int], None]:
    """Compares a model with one of the checkpoints."""
    expected = [weights_of(folder) for folder in folders]

    def check(number: int) -> None:
        if num := num_different(model, expected[number]):
            raise RuntimeError(f"{num} elements are not those of {folders[number]}")

    return check


def kept_changes(base: str, tuned: Sequence[str], deltas: Sequence[Path], threads: int) -> Way:
    """Our way for fine-tunes that are often needed: their changes stay in memory."""
    model, handles = model_of(base), []
    for delta in deltas:
        handles.append(load_delta(model, delta))
        handles[-1].revert(keep=True)
    handles[1].apply()

    def swap(number: int) -> None:
        handles[1 - number].revert(keep=True, threads=threads)
        handles[number].apply(threads=threads)

    num_bytes = sum(handle.num_bytes for handle in handles) // len(handles)
    return Way(swap, checker(model, tuned), num_bytes)


def decoded_deltas(base: str, tuned: Sequence[str], deltas: Sequence[Path], threads: int) -> Way:
    """Our way for any number of fine-tunes: deltas are read and decoded."""
    model = model_of(base)
    loaded = load_delta(model, deltas[1])

    def swap(number: int) -> None:
        nonlocal loaded
        loaded.revert(threads=threads)
        loaded = load_delta(model, deltas[number], threads=threads)

    return Way(swap, checker(model, tuned), 0)


def loaded_checkpoints(base: str, tuned: Sequence[str]) -> Way:
    """The whole checkpoint is read into the model's own memory."""
    model = model_of(tuned[1])

    def swap(number: int) -> None:
        model.load_state_dict(weights_of(tuned[number]), strict=False)

    return Way(swap, checker(model, tuned), 0)


def copied_weights(base: str, tuned: Sequence[str]) -> Way:
    """Both checkpoints are in memory: nothing is quicker than copying them."""
    model = model_of(tuned[1])
    weights = [{n: t.clone() for n, t in weights_of(folder).items()} for folder in tuned]

    def swap(number: int) -> None:
        model.load_state_dict(weights[number], strict=False)

    num_bytes = sum(t.nbytes for t in weights[0].values())
    return Way(swap, checker(model, tuned), num_bytes)


def lora(base: str) -> Any:
    """The base with two adapters on all linear layers but the head; the second is active."""
    import peft

    config = peft.LoraConfig(r=LORA_RANK, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    model = peft.get_peft_model(model_of(base), config, adapter_name="0")
    model.add_adapter("1", config)
    model.set_adapter("1")
    return model


def adapter_bytes(model: nn.Module) -> int:
    return sum(t.nbytes for name, t in model.named_parameters() if name.endswith(".0.weight"))


def active_adapters(base: str) -> Way:
    """PEFT's own swap: which adapter is active; its products are added for every token."""
    model = lora(base)
    weights = weights_of(base)

    def check(number: int) -> None:
        if model.active_adapter != str(number) or num_different(model.get_base_model(), weights):
            raise RuntimeError("PEFT changed the base, or not the adapter")

    return Way(lambda number: model.set_adapter(str(number)), check, adapter_bytes(model))


def merged_adapters(base: str) -> tuple[Way, Callable[[], int]]:
    """PEFT's adapters merged into the weights; and counts what unmerging leaves of the base."""
    model = lora(base)
    model.merge_adapter()

    def swap(number: int) -> None:
        model.unmerge_adapter()
        model.set_adapter(str(number))
        model.merge_adapter()

    def check(number: int) -> None:
        if model.active_adapter != str(number):
            raise RuntimeError("PEFT did not change the adapter")

    def num_left_different() -> int:
        model.unmerge_adapter()
        return num_different(model.get_base_model(), weights_of(base))

    return Way(swap, check, adapter_bytes(model)), num_left_different


def timed(way: Way, rounds: int, gigabytes: float) -> dict[str, float]:
    """Swap to and fro. The first time, code is compiled and files are read from the disk."""
    times, processor_times = [], []
    for turn in range(2 * (rounds + 1)):
        start, processor_start = perf_counter(), process_time()
        way.swap(turn % 2)
        processor_times.append(process_time() - processor_start)
        times.append(perf_counter() - start)
        way.check(turn % 2)
    return {
        "milliseconds_per_gigabyte": 1000 * median(times[2:]) / gigabytes,
        "processor_milliseconds_per_gigabyte": 1000 * median(processor_times[2:]) / gigabytes,
        "percent_in_memory": 100 * way.num_bytes / (1e9 * gigabytes),
    }


def measure(base: str, tuned: Sequence[str], threads: int, rounds: int) -> dict[str, Any]:
    """Time every way."""
    num_bytes = sum(tensor.nbytes for tensor in weights_of(base).values())
    ways: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        deltas = [Path(folder) / f"{number}.delta" for number in range(len(tuned))]
        for path, delta in zip(tuned, deltas, strict=True):
            make_delta(base, path, delta)
        makers: dict[str, Callable[[], Way]] = {
            "changes in memory": lambda: kept_changes(base, tuned, deltas, threads),
            "delta files": lambda: decoded_deltas(base, tuned, deltas, threads),
            "checkpoint files": lambda: loaded_checkpoints(base, tuned),
            "checkpoints in memory": lambda: copied_weights(base, tuned),
            "PEFT, active adapter": lambda: active_adapters(base),
        }
        for name, make in makers.items():
            ways[name] = timed(make(), rounds, num_bytes / 1e9)
        percent_of_files = [100 * delta.stat().st_size / num_bytes for delta in deltas]
    way, num_left_different = merged_adapters(base)
    ways["PEFT, merged adapter"] = timed(way, rounds, num_bytes / 1e9)
    num_elements = sum(tensor.numel() for tensor in weights_of(base).values())
    return {
        "num_bytes": num_bytes,
        "threads": threads,
        "rounds": rounds,
        "lora_rank": LORA_RANK,
        "percent_of_delta_files": percent_of_files,
        "percent_of_base_changed_by_merging": 100 * num_left_different() / num_elements,
        "ways": ways,
    }


def main() -> None:
    """Measure one base and two fine-tunes, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned", nargs=2)
    parser.add_argument("--threads", type=int, default=1, help="of deltas and of torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {
        "provenance": provenance("torch", "numpy", "numba", "safetensors", "peft"),
        **measure(options.base, options.tuned, options.threads, options.rounds),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
