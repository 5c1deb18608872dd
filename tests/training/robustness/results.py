"""A robustness probe as it comes out, with chosen figures."""

from __future__ import annotations

from typing import Any

from trimtab.results.records import CheckpointRecord, MaskRecord
from trimtab.results.robustness import Cell, Robustness

KL = {"mask": 0.2, "outside": 0.1, "random": 0.2, "magnitude": 0.4}
RIGHT = {"mask": 4, "outside": 6, "random": 5, "magnitude": 3}


def make_probe(*, num_seeds: int = 3, asked: bool = True, **changes: Any) -> Robustness:
    """Two kinds of noise, two levels, four sets; the second level is ten times as bad."""
    cells = tuple(
        Cell(
            noise=noise,
            level=level,
            arm=arm,
            seed=seed,
            num_chosen=100,
            num_in_mask={"mask": 100, "outside": 0, "random": 10, "magnitude": 60}[arm],
            num_changed=90 + seed,
            relative_norm=level,
            num_correct=RIGHT[arm] - seed % 2 if asked else None,
            # Seeds differ, and the ratio of two sets differs from seed to seed.
            kl=KL[arm] * level * (1 + seed / 10) * (1.01 if arm == "mask" and seed else 1.0),
        )
        for seed in range(num_seeds)
        for noise in ("gaussian", "sign")
        for level in (0.1, 1.0)
        for arm in KL
    )
    record = CheckpointRecord("tuned", None, "Llama", 2, 1000, {"BF16": 1000}, "a" * 32)
    values: dict[str, Any] = {
        "checkpoint": record,
        "base": CheckpointRecord("base", None, "Llama", 2, 1000, {"BF16": 1000}, "b" * 32),
        "mask": MaskRecord("m.safetensors", "c" * 32, 2, 1000, 100, 2, {}),
        "questions": {"num_questions": 8, "source": "addition"} if asked else None,
        "num_correct": 7 if asked else None,
        "text": {"source": "a text", "xxh3_128": "e" * 32, "num_passages": 2, "num_tokens": 50},
        "arms": tuple(KL),
        "cells": cells,
        "settings": {
            "noises": ["gaussian", "sign"],
            "levels": [0.1, 1.0],
            "seeds": list(range(num_seeds)),
            "dtype": "bf16",
            "batch_size": 32,
        },
        "provenance": {"trimtab_version": "0.1.0", "command": None, "date": "2026-11-21"},
    }
    return Robustness(**{**values, **changes})
