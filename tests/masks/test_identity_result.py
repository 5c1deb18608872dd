"""The result of `identity` as data: read back, and refused where it is damaged."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.masks.conftest import Three, saved
from trimtab.errors import (
    ResultFormatError,
)
from trimtab.masks.identity import Identity, identity


@pytest.fixture
def result(three: Three, tmp_path: Path) -> Identity:
    three.sub["only.sub"] = torch.zeros(3)
    return identity(*saved(three, tmp_path), three.mask)


def test_json_and_back(result: Identity) -> None:
    data = result.to_dict()
    again = Identity.from_dict(json.loads(json.dumps(data, allow_nan=False)))
    assert again.to_dict() == data
    assert again.total == result.total
    assert again.coverage == result.coverage


def test_derived_figures_are_not_trusted_from_a_file(result: Identity) -> None:
    data = copy.deepcopy(result.to_dict())
    for group in (data["total"], *data["tensors"]):
        for side in ("inside", "outside", "all"):
            group[side] |= {"relative_l2": 0.0, "cosine": 1.0, "num_full_moved": 0}
    assert Identity.from_dict(data).to_dict() == result.to_dict()


def _spoil(*path: Any, value: Any = ...) -> Callable[[dict[str, Any]], None]:
    def spoil(data: dict[str, Any]) -> None:
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        if value is ...:
            del inner[path[-1]]
        else:
            inner[path[-1]] = value

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        _spoil("coverage"),
        _spoil("coverage", "tied"),
        _spoil("coverage", "num_compared"),
        _spoil("coverage", "not_compared", value=3),
        _spoil("provenance", "full"),
        _spoil("provenance", "mask"),
        _spoil("provenance", "mask", "digest"),
        _spoil("provenance", value=[]),
        _spoil("tensors"),
        _spoil("tensors", value=None),
        _spoil("tensors", 0, "outside"),
        _spoil("tensors", 0, "kind", value=["q_proj"]),
        _spoil("tensors", 0, "layer", value="0"),
        _spoil("tensors", 0, "shape", value=["x"]),
        _spoil("tensors", 0, "inside", "num_elements", value=-1),
        _spoil("tensors", 0, "inside", "num_sub_equal", value={"sometimes": 1}),
        _spoil("tensors", 0, "inside", "update_dot", value="much"),
    ],
)
def test_a_damaged_result_is_refused(
    result: Identity, spoil: Callable[[dict[str, Any]], None]
) -> None:
    data = copy.deepcopy(result.to_dict())
    spoil(data)
    with pytest.raises(ResultFormatError, match="damaged identity result"):
        Identity.from_dict(data)


@pytest.mark.parametrize("data", [None, [], 3, {}, {"format": "trimtab.comparison"}])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab identity result"):
        Identity.from_dict(data)


def test_another_version_is_refused() -> None:
    data = {"format": Identity.FORMAT, "format_version": 99}
    with pytest.raises(ResultFormatError, match="format version 99"):
        Identity.from_dict(data)
