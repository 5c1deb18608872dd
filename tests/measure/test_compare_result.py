"""The result: JSON and back, the dataframe, and files that are no result."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.errors import ResultFormatError
from trimtab.measure.compare_result import Comparison


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    base = llama_tensors()
    tuned = moved(base)
    tuned["extra.weight"] = tuned["model.norm.weight"].clone()
    folder = tmp_path_factory.mktemp("pair")
    return trimtab.compare(save(folder / "b", base), save(folder / "t", tuned), lr=1e-5, steps=3)


def test_json_and_back(comparison: Comparison) -> None:
    data = comparison.to_dict()
    again = Comparison.from_dict(json.loads(json.dumps(data, allow_nan=False)))
    assert again.to_dict() == data
    assert again.total == comparison.total
    assert again.coverage == Comparison.from_dict(data).coverage


def test_derived_figures_are_not_trusted_from_a_file(comparison: Comparison) -> None:
    data = copy.deepcopy(comparison.to_dict())
    for group in (data["total"], *data["tensors"]):
        group["sparsity"] = dict.fromkeys(group["sparsity"], 0.5)
    assert Comparison.from_dict(data).to_dict() == comparison.to_dict()


def test_dataframe(comparison: Comparison) -> None:
    frame = comparison.to_dataframe()
    assert list(frame["name"]) == [tensor.name for tensor in comparison.tensors]
    assert frame["num_changed[bits]"].sum() == comparison.total.num_changed["bits"]
    by_kind = frame.groupby("kind")["num_elements"].sum()
    assert by_kind["norm"] == comparison.by_kind()["norm"].num_elements


def test_sparsity_is_that_of_the_criterion(comparison: Comparison) -> None:
    total = comparison.total
    assert comparison.criterion == "bits"
    assert comparison.sparsity == 1 - total.num_changed["bits"] / total.num_elements


def _without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    data = copy.deepcopy(data)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return data


@pytest.mark.parametrize(
    "path",
    [("coverage",), ("criterion",), ("provenance", "base"), ("tensors",), ("coverage", "tied")],
)
def test_a_damaged_result_is_refused(comparison: Comparison, path: tuple[str, ...]) -> None:
    with pytest.raises(ResultFormatError, match=f"damaged comparison.*{path[-1]}"):
        Comparison.from_dict(_without(comparison.to_dict(), *path))


@pytest.mark.parametrize("data", [None, [], 3, {}, {"format": "other"}])
def test_what_is_no_result_is_refused(data: Any) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab comparison"):
        Comparison.from_dict(data)


def test_two_runs_differ_in_the_date_alone(tmp_path: Path) -> None:
    base = llama_tensors()
    pair = save(tmp_path / "b", base), save(tmp_path / "t", moved(base))
    one, two = (trimtab.compare(*pair).to_dict() for _ in range(2))
    for data in (one, two):
        data["provenance"].pop("date")
    assert one == two
