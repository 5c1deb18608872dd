"""Size and speed of coded updates, with copying and hashing of the same bytes beside them.

    python -m benchmarks.deltas demo/base demo/grpo/model --output result.json

Speeds are bytes of the tuned tensors a second. Every tensor is decoded and compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import xxhash

from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import Bits, DType
from trimtab.elements.update_coding import decode_tensor, encode_tensor, read_predictor


def measure(base_path: str, tuned_path: str, max_rank: int, threads: int) -> dict[str, Any]:
    """Code every tensor that both checkpoints have, some tensors at a time."""
    tally = np.zeros(3)
    ranks: Counter[int] = Counter()
    pairs: list[tuple[str, Bits, Bits, DType]] = []
    with open_checkpoint(base_path) as base, open_checkpoint(tuned_path) as tuned:
        for name, after in tuned.tensors.items():
            pairs.append((name, base.tensors[name].read().copy(), after.read().copy(), after.dtype))
    _, before, bits, dtype = pairs[0]  # compiled, if that was not done on this machine yet
    decode_tensor(before[:2], encode_tensor(before[:2], bits[:2], dtype), dtype)
    seconds, processor_seconds = {}, {}

    def timed(name: str, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        start, processor_start = perf_counter(), process_time()
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(work, items))
        seconds[name] = perf_counter() - start
        processor_seconds[name] = process_time() - processor_start
        return results

    timed("copy", lambda pair: pair[2].copy(), pairs)
    timed("xxh3_128", lambda pair: xxhash.xxh3_128_digest(pair[2].data), pairs)
    coded = timed(
        "encode",
        lambda pair: encode_tensor(*pair[1:], max_rank=max_rank, tally=tally),
        pairs,
    )
    tensors = timed(
        "decode",
        lambda item: decode_tensor(item[0][1], item[1], item[0][3]),
        list(zip(pairs, coded, strict=True)),
    )
    for (name, _, bits, _), frames, again in zip(pairs, coded, tensors, strict=True):
        if again.tobytes() != bits.tobytes():
            raise RuntimeError(f"{name}: {tuned_path} did not come back bit for bit")
        ranks[read_predictor(frames[0], bits.shape).rank] += bits.size
    num_bytes = sum(bits.nbytes for _, _, bits, _ in pairs)
    sizes = dict(zip(("positions", "signs", "distances"), tally / 8, strict=True))
    sizes["predictors"] = sum(len(frames[0]) for frames in coded)
    return {
        "max_rank": max_rank,
        "threads": threads,
        "num_bytes": num_bytes,
        "percent": {
            "all": 100 * sum(map(len, chain.from_iterable(coded))) / num_bytes,
            **{name: 100 * size / num_bytes for name, size in sizes.items()},
        },
        "elements_by_rank": {str(rank): ranks[rank] for rank in sorted(ranks)},
        "gigabytes_per_second": {name: num_bytes / s / 1e9 for name, s in seconds.items()},
        "gigabytes_per_processor_second": {
            name: num_bytes / s / 1e9 for name, s in processor_seconds.items()
        },
    }


def main() -> None:
    """Measure one pair and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned")
    parser.add_argument("--max-ranks", type=int, nargs="+", default=[0, 16])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report = {
        "provenance": provenance("numpy", "numba"),
        "measured": [
            measure(options.base, options.tuned, max_rank, threads)
            for max_rank in options.max_ranks
            for threads in options.threads
        ],
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
