"""A result is read back as it was written, and a damaged one is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.masks.structure.models import config_folder, llama_shapes, random_mask
from trimtab.errors import ResultFormatError
from trimtab.masks.structure import structure
from trimtab.masks.structure_result import Structure


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    config = config_folder(tmp_path_factory.mktemp("config"))
    masks = [random_mask(llama_shapes(), seed=seed) for seed in (0, 1)]
    return structure(*masks, config=config).to_dict()


def test_a_round_trip_through_json(data: dict[str, Any]) -> None:
    text = json.dumps(data, allow_nan=False)
    again = Structure.from_dict(json.loads(text))
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    assert data["format"] == "trimtab.structure"
    assert data["format_version"] == 1
    assert data["false_discovery_rate"] == 0.05


def test_results_of_one_run_differ_only_in_their_date(tmp_path: Path) -> None:
    mask = random_mask(llama_shapes())
    first, second = (structure(mask, threads=threads).to_dict() for threads in (1, 4))
    assert first.pop("provenance").keys() == second.pop("provenance").keys()
    assert first == second


def damaged(data: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(data))
    at: Any = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("masks",), 3, "masks is 3, expected a list"),
        (
            ("masks", 0, "control_seed"),
            "x",
            r"masks\[0\].control_seed is 'x', expected a",
        ),
        (("masks", 0, "control_seed"), True, r"control_seed is true, expected a whole number"),
        (("masks", 0, "mask"), [], r"masks\[0\].mask is \[\], expected an object"),
        (("masks", 0, "mask", "digest"), None, "mask.digest is null, expected a string"),
        (("masks", 0, "families", 0, "units", 1, "z"), "0", "z is '0', expected a finite number"),
        (
            ("masks", 0, "families", 0, "units", 1, "expected"),
            float("nan"),
            "expected a finite number",
        ),
        (
            ("masks", 0, "families", 0, "null", "num_up"),
            1.5,
            "num_up is 1.5, expected a whole number",
        ),
        (("masks", 1, "map", "counts", 0), {}, r"map.counts\[0\] is {}, expected a list"),
        (("shared", 0, "more"), 1, r"shared\[0\].more is an unknown key"),
        (("provenance",), 1, "provenance is 1, expected an object"),
    ],
)
def test_damage_is_told_by_its_place(
    data: dict[str, Any], path: tuple[str | int, ...], value: Any, message: str
) -> None:
    with pytest.raises(ResultFormatError, match=f"damaged structure result: .*{message}"):
        Structure.from_dict(damaged(data, path, value))


def test_another_format_or_version(data: dict[str, Any]) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab structure result"):
        Structure.from_dict({"format": "trimtab.identity"})
    with pytest.raises(ResultFormatError, match=r"version 2: .*trimtab mask structure"):
        Structure.from_dict(data | {"format_version": 2})
