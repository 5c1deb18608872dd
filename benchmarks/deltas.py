"""Size and speed of coded updates, on one thread, with copying and hashing of the same bytes.

    python -m benchmarks.deltas demo/base demo/grpo/model --output result.json

Speeds are bytes of the tuned tensors a second. Every tensor is decoded and compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import xxhash

from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.update_coding import decode, encode


def measure(base_path: str, tuned_path: str) -> dict[str, Any]:
    """Code every tensor that both checkpoints have."""
    seconds: dict[str, float] = defaultdict(float)
    num_bytes = num_coded = 0

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = perf_counter()
        result = work()
        seconds[name] += perf_counter() - start
        return result

    with open_checkpoint(base_path) as base, open_checkpoint(tuned_path) as tuned:
        for number, (name, after) in enumerate(tuned.tensors.items()):
            before, bits, dtype = base.tensors[name].read(), after.read(), after.dtype
            if number == 0:  # compiled, if that was not done on this machine yet
                decode(before[:1], encode(before[:1], bits[:1], dtype), dtype)
            timed("copy", bits.copy)
            timed("xxh3_128", partial(xxhash.xxh3_128_digest, bits.reshape(-1).view("u1").data))
            coded = timed("encode", partial(encode, before, bits, dtype))
            again = timed("decode", partial(decode, before, coded, dtype))
            if again.tobytes() != bits.tobytes():
                raise RuntimeError(f"{name}: {tuned_path} did not come back bit for bit")
            num_bytes += bits.nbytes
            num_coded += len(coded)
    return {
        "num_bytes": num_bytes,
        "num_coded_bytes": num_coded,
        "share": num_coded / num_bytes,
        "gigabytes_per_second": {name: num_bytes / s / 1e9 for name, s in seconds.items()},
    }


def main() -> None:
    """Measure one pair and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base")
    parser.add_argument("tuned")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report = {
        "provenance": provenance("numpy", "numba"),
        **measure(options.base, options.tuned),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
