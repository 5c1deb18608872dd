"""Overlaps made by hand, with the shape and the look of real ones and no mask behind."""

from __future__ import annotations

from itertools import combinations
from math import prod
from typing import Any

import numpy as np

from tests.report.factory import make_record, tensor_shapes
from trimtab.masks.overlap_result import MagnitudeBins, Overlap, OverlapCoverage, TensorOverlap
from trimtab.results.records import MaskRecord


def make_tensor(
    name: str, layer: int | None, kind: str, shape: tuple[int, ...], sets: Any, bins: Any
) -> TensorOverlap:
    """Counted by NumPy: `sets` is bool `[masks, elements]`, `bins` of each element or None."""
    of_bins = None
    if bins is not None:
        found = np.unique(bins)
        of_bins = MagnitudeBins(
            tuple(map(int, found)),
            tuple(int((bins == place).sum()) for place in found),
            tuple(tuple(int(item[bins == place].sum()) for place in found) for item in sets),
        )
    return TensorOverlap(
        name=name,
        layer=layer,
        kind=kind,
        shape=shape,
        num_selected=tuple(int(item.sum()) for item in sets),
        num_shared=tuple(int((one & other).sum()) for one, other in combinations(sets, 2)),
        num_by_count=tuple(map(int, np.bincount(sets.sum(axis=0), minlength=len(sets) + 1))),
        bins=of_bins,
    )


def make_overlap(
    num_masks: int = 2,
    *,
    num_layers: int = 2,
    with_base: bool = True,
    density: float = 0.2,
    **fields: Any,
) -> Overlap:
    """Masks that prefer the same half of each tensor, and small weights.

    Args:
        num_masks: How many.
        num_layers: Of the model.
        with_base: Whether magnitudes are known.
        density: Of each mask, about.
        fields: Of `Overlap`, in place of the defaults.
    """
    rng = np.random.default_rng(0)
    tensors = []
    for name, (layer, kind, shape) in tensor_shapes(num_layers, hidden=16, ffn=24, kv=8).items():
        num = prod(shape)
        bins = 100 + rng.integers(0, 5, num)
        likely = density * np.where(np.arange(num) < num // 2, 1.5, 0.5) * (106 - bins) / 4
        sets = rng.random((num_masks, num)) < likely
        tensors.append(make_tensor(name, layer, kind, shape, sets, bins if with_base else None))
    num_elements = sum(tensor.num_elements for tensor in tensors)
    masks = tuple(
        MaskRecord(
            id=f"runs/seed-{place}.safetensors",
            digest=f"{place:032x}",
            num_tensors=len(tensors),
            num_elements=num_elements,
            num_selected=sum(tensor.num_selected[place] for tensor in tensors),
            num_checked=len(tensors) if with_base else 0,
            provenance={"steps": [{"step": "extract", "criterion": "bits"}]},
        )
        for place in range(num_masks)
    )
    defaults: dict[str, Any] = {
        "masks": masks,
        "coverage": OverlapCoverage(num_elements),
        "tensors": tuple(tensors),
        "base": make_record("demo/base", len(tensors), num_elements) if with_base else None,
        "provenance": {
            "trimtab_version": "0.1.0",
            "command": "trimtab mask overlap runs/seed-0.safetensors runs/seed-1.safetensors",
            "date": "2026-11-21T10:00:00+00:00",
            "threads": 2,
        },
    }
    return Overlap(**(defaults | fields))
