"""Do two runs of the demo change the same weights? The figures of `docs/overlap.md`.

Takes the folder of `trimtab demo --controls`: what each of its runs changed (criterion: bits)
becomes a mask, and masks are set against each other and against random controls.

Run `python -m benchmarks.demo_overlap demo --output benchmarks/results/overlap.json`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.overlap import overlap
from trimtab.masks.selection.quotas import random_matched

RUNS = ("grpo", "grpo-seed-1", "sft")

CONTROL_SEED = 1

PAIRS = (
    ("grpo", "grpo-seed-1"),
    ("grpo", "sft"),
    ("grpo-seed-1", "sft"),
    ("as grpo, at random in each tensor", "grpo-seed-1"),
    ("as grpo, at random at each magnitude", "grpo-seed-1"),
)


def figures(folder: Path) -> dict[str, Any]:
    """Overlaps of every pair, and what the three runs agree on."""
    base_folder = folder / "base"
    masks: dict[str, Mask] = {
        run: extract_mask(base_folder, folder / run / "model") for run in RUNS
    }
    with open_checkpoint(base_folder) as base:
        masks["as grpo, at random in each tensor"] = masks["grpo"].random_like(CONTROL_SEED)
        masks["as grpo, at random at each magnitude"] = random_matched(
            masks["grpo"], base, CONTROL_SEED
        )
        dtypes = sorted({tensor.dtype.name for tensor in base.tensors.values()})
        pairs = []
        for first, second in PAIRS:
            result = overlap(masks[first], masks[second], base=base)
            by_kind = {kind: shared.to_dict() for kind, shared in result.by_kind().items()}
            total = result.total().to_dict()
            pairs.append({"first": first, "second": second, "total": total, "by_kind": by_kind})
        consensus = overlap(*(masks[run] for run in RUNS), base=base).consensus()
    return {
        "criterion": "bits",
        "dtypes": dtypes,
        "control_seed": CONTROL_SEED,
        "digests": {name: mask.digest for name, mask in masks.items()},
        "pairs": pairs,
        "consensus": consensus.to_dict(),
    }


def main() -> None:
    """Write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of `trimtab demo --controls`")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    report = {"provenance": provenance("numpy"), **figures(options.folder)}
    text = json.dumps(report, indent=1)
    print(text)
    if options.output is not None:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
