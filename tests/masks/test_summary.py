from __future__ import annotations

import json

import numpy as np

from tests.masks.masks import SHAPES, example_mask
from trimtab.masks.mask import Mask, summarise


def test_counts_add_up() -> None:
    mask = example_mask()
    data = summarise(mask)
    assert [tensor["name"] for tensor in data["tensors"]] == list(SHAPES)
    for tensor in data["tensors"]:
        name = tensor["name"]
        assert tensor["shape"] == list(SHAPES[name])
        assert tensor["num_selected"] == mask.array(name).sum()
        assert tensor["base"] == mask.base[name]._asdict()
    for key in ("num_elements", "num_selected", "num_tensors"):
        assert sum(group[key] for group in data["by_kind"].values()) == data["total"][key]
    assert data["total"]["num_selected"] == mask.num_selected()
    assert data["total"]["density"] == mask.density
    assert data["digest"] == mask.digest
    assert data["provenance"] == mask.provenance
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_kinds_and_layers_follow_from_names() -> None:
    data = summarise(example_mask())
    places = [(tensor["kind"], tensor["layer"]) for tensor in data["tensors"]]
    assert places == [
        *(("embed", None), ("q_proj", 0), ("up_proj", 0)),
        *(("norm", None), ("other", None), ("other", None)),
    ]
    assert data["by_kind"]["other"] == {
        "num_tensors": 2,
        "num_elements": 1,
        "num_selected": example_mask().num_selected("scalar"),
        "density": float(example_mask().num_selected("scalar")),
    }


def test_a_ratio_of_nothing_is_null() -> None:
    data = summarise(Mask.from_arrays({"w": np.zeros((0, 3), dtype=np.bool_)}))
    assert data["total"]["density"] is None
    assert summarise(Mask.from_arrays({}))["total"]["density"] is None
