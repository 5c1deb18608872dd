"""Speed and memory of training by `trimtab train`, as ratios to TRL's own trainers in the same run.

Every algorithm trains the same bf16 Llama, built in code, on as many tokens a step: whole, and with
random masks of 20 % and 5 %; where TRL has the algorithm, its bare trainer does the same work
beside them. Each of these is a process of its own, and they take a few steps in turn, round by
round. RFT is left out: it trains as SFT does once its samples are drawn.

Run `make bench-training`, or `python -m benchmarks.training --help`. An algorithm that runs
replaces what the output file holds of it; the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import in_own_process
from benchmarks.provenance import provenance
from benchmarks.runs import (
    BARE,
    COMPLETION,
    FULL,
    NAMES,
    PROMPT,
    SEQUENCES,
    WHOLE,
    contest,
    contestants_of,
    write_folder,
)
from benchmarks.turns import Played, in_turn

LIBRARIES = ("torch", "transformers", "trl")

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""For all contestants alike: nothing is asked of a network, and little is said."""


def measure(name: str, folder: Path, steps: int, rounds: int) -> dict[str, Any]:
    """Let the contestants of an algorithm train in turn."""
    contestants = {
        contestant: (name, contestant, folder, steps, rounds) for contestant in contestants_of(name)
    }
    result = provenance(*LIBRARIES)
    played = in_turn(contest, contestants, rounds)
    return {
        "provenance": result,
        "rounds": rounds,
        "steps": steps,
        "contestants": compared(played, steps * SEQUENCES * (PROMPT + COMPLETION)),
    }


def compared(played: Mapping[str, Played], num_tokens: int) -> dict[str, dict[str, Any]]:
    """Tokens per second, peaks, and both as ratios to those that train everything.

    Args:
        played: What came of the contestants.
        num_tokens: Of a turn.
    """
    peers = [peer for peer in (BARE, WHOLE) if peer in played]

    def figures(one: Played) -> dict[str, Any]:
        result = {"peak": one.result, "tokens per second": num_tokens / median(one.seconds)}
        for peer in peers:
            theirs = played[peer]
            # within a round, so that a slow minute hits both sides
            pairs = zip(theirs.seconds, one.seconds, strict=True)
            result[f"speed / {peer}"] = median(their_time / time for their_time, time in pairs)
            result[f"peak / {peer}"] = one.result / theirs.result
        return result

    return {name: figures(one) for name, one in played.items()}


def main() -> None:
    """Measure the algorithms that are asked for, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--algorithms", nargs="+", choices=NAMES, default=NAMES, help="default all")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds (default 15)")
    parser.add_argument("--steps", type=int, default=1, help="steps of a round (default 1)")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    report: dict[str, Any] = {}
    if options.output is not None and options.output.exists():
        report = json.loads(options.output.read_text("utf-8"))
    by_algorithm = report.get("by_algorithm", {})
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as temporary:
        folder = Path(temporary)
        num_elements = in_own_process(write_folder, folder)["base"]
        for name in options.algorithms:
            print(f"measuring {name}", file=sys.stderr)
            by_algorithm[name] = measure(name, folder, options.steps, options.rounds)
    report = {
        "model": {**FULL, "num_elements": num_elements},
        "sequences": SEQUENCES,
        "prompt": PROMPT,
        "completion": COMPLETION,
        "by_algorithm": {name: by_algorithm[name] for name in NAMES if name in by_algorithm},
    }
    text = json.dumps(report, indent=2)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
