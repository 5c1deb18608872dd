"""Identity checks made by hand, with the shape and the look of real ones and no checkpoint."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from tests.report.factory import make_record, tensor_shapes
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.elements.three_way import Agreement, SplitAgreement
from trimtab.masks.identity import Identity, IdentityCoverage, TensorIdentity
from trimtab.results.records import MaskRecord


def make_agreement(num: int, num_sub: int, num_base: int, *, num_strays: int = 0) -> Agreement:
    """Of `num` elements so many are equal to FULL, and more the wider the tolerance."""
    keys = [criterion.key for criterion in DEFAULT_CRITERIA]
    num_moved = num - num_base
    return Agreement(
        num_elements=num,
        num_sub_equal={key: min(num, num_sub + place) for place, key in enumerate(keys)},
        num_base_equal={key: min(num, num_base + place) for place, key in enumerate(keys)},
        num_sub_moved=num_strays or num_moved,
        difference_sum_squares=(num - num_sub) * 1e-10,
        full_update_sum_squares=num_moved * 4e-10,
        sub_update_sum_squares=num_moved * 4e-10,
        update_dot=num_moved * 3e-10,
        difference_max_abs=1e-4 if num_sub < num else 0.0,
        full_update_max_abs=2e-4 if num_moved else 0.0,
    )


def make_identity(
    num_layers: int = 2, seed: int = 0, *, num_strays: int = 0, num_missed: int = 0, **fields: Any
) -> Identity:
    """A check of a small model with a mask of 10 % of it.

    Args:
        num_layers: Of the model.
        seed: Of the counts.
        num_strays: Elements outside the mask, in each tensor, in which SUB moved.
        num_missed: The same for FULL.
        fields: Of `Identity`, in place of the defaults.
    """
    rng = np.random.default_rng(seed)
    tensors = []
    for name, (layer, kind, shape) in tensor_shapes(num_layers, hidden=32, ffn=48, kv=16).items():
        num = prod(shape)
        inside = num // 10
        num_equal = int(rng.binomial(inside, 0.8))
        outside = make_agreement(
            num - inside,
            num - inside - max(num_strays, num_missed),
            num - inside - num_missed,
            num_strays=num_strays,
        )
        if not num_strays:
            outside = Agreement(**{**outside.__dict__, "num_sub_moved": 0})
        split = SplitAgreement(make_agreement(inside, num_equal, 0), outside)
        tensors.append(TensorIdentity(name, layer, kind, shape, "BF16", split))
    num_elements = sum(tensor.agreement.all.num_elements for tensor in tensors)
    defaults: dict[str, Any] = {
        "base": make_record("demo/base", len(tensors), num_elements),
        "full": make_record("demo/full", len(tensors), num_elements),
        "sub": make_record("demo/sub", len(tensors), num_elements),
        "mask": MaskRecord(
            id="m.safetensors",
            digest="0123456789abcdef0123456789abcdef",
            num_tensors=len(tensors),
            num_elements=num_elements,
            num_selected=sum(tensor.agreement.inside.num_elements for tensor in tensors),
            num_checked=len(tensors),
            provenance={"steps": [{"step": "extract", "criterion": "bits"}]},
        ),
        "coverage": IdentityCoverage(num_elements, num_elements, num_elements, num_elements),
        "provenance": {
            "trimtab_version": "0.1.0",
            "command": "trimtab identity demo/base demo/full demo/sub --mask m.safetensors",
            "date": "2026-11-21T10:00:00+00:00",
            "threads": 2,
        },
    }
    return Identity(tensors=tuple(tensors), **(defaults | fields))
