"""A split is read back as it was written, and a damaged one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.building import tensors_bytes
from trimtab.errors import ResultFormatError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask
from trimtab.masks.split import Split, part_files, share


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    """By hand: 4 elements in [1, 2) and 6 in [2, 4)."""
    weights = np.array([0x3F80] * 4 + [0x4000] * 6, dtype=np.uint16)
    (tmp_path / "base.safetensors").write_bytes(tensors_bytes({"w": weights}))
    first = Mask.from_arrays({"w": np.isin(np.arange(10), [0, 1, 4, 5, 6])})
    second = Mask.from_arrays({"w": np.isin(np.arange(10), [0, 1, 2, 4])})
    files = part_files(tmp_path, "xy")
    base = tmp_path / "base.safetensors"
    split = share([first, second], files, base=base, command="typed")
    record: dict[str, Any] = json.loads(json.dumps(split.to_dict(), allow_nan=False))
    return record


def test_the_json(data: dict[str, Any], tmp_path: Path) -> None:
    assert (data["format"], data["format_version"]) == ("trimtab.split", 1)
    assert data["provenance"]["command"] == "typed"
    assert data["num_elements"] == data["base"]["num_elements"] == 10
    assert [mask["num_selected"] for mask in data["masks"]] == [5, 4]
    core, first, second = data["parts"]
    assert core == {
        "file": str(tmp_path / "core.safetensors"),
        "mask": None,
        "num_selected": 3,
        "chance": 2.0,
        "matched_chance": pytest.approx(2 * 3 / 4 + 3 * 1 / 6),
        "share": 3 / 4,
        "lift": 3 / 2,
        "matched_lift": pytest.approx(1.5),
    }
    assert [(part["mask"], part["share"]) for part in (first, second)] == [(0, 2 / 5), (1, 1 / 4)]


def test_a_round_trip_through_json(data: dict[str, Any]) -> None:
    assert Split.from_dict(data).to_dict() == data
    data["parts"][0]["lift"] = 77.0  # is derived again
    assert Split.from_dict(data).core.lift == 1.5


def test_the_masks_are_recorded(tmp_path: Path) -> None:
    base = {"w": BaseTensor("BF16", "0" * 32)}
    for name in "ab":
        Mask.from_arrays({"w": np.array([True, False])}, base=base).save(tmp_path / name)
    in_memory = Mask.from_arrays({"w": np.array([True, True])})
    with open_mask(tmp_path / "a") as first, open_mask(tmp_path / "b") as second:
        split = share([first, second, in_memory], part_files(tmp_path, "abc"))
        assert [mask.digest for mask in split.masks] == [
            first.digest, second.digest, in_memory.digest,
        ]  # fmt: skip
    assert [mask.id for mask in split.masks] == [str(tmp_path / "a"), str(tmp_path / "b"), None]
    assert [mask.num_checked for mask in split.masks] == [0, 0, 0]
    assert split.base is None


Damage = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("parts"), "parts is missing"),
        (lambda data: data.update(parts=3), "parts is 3"),
        (lambda data: data["parts"].pop(), "not a core and an own part of each mask"),
        (lambda data: data["parts"].reverse(), "not a core and an own part of each mask"),
        (lambda data: data["parts"][0].update(num_selected=5), r"of \d+ elements"),
        (lambda data: data["parts"][1].update(num_selected=-1), r"of \d+ elements"),
        (lambda data: data["parts"][1].update(num_selected=1.0), "expected a whole number"),
        (lambda data: data["parts"][1].update(chance=-1.0), "fewer than none"),
        (lambda data: data["parts"][1].update(chance="2"), "expected a finite number"),
        (lambda data: data["parts"][2].update(matched_chance=None), "do not agree on magnitudes"),
        (lambda data: data.update(base=None), "do not agree on magnitudes"),
        (lambda data: data.update(num_elements=4), r"of \d+ elements"),
        (lambda data: data["masks"].clear(), "not a core"),
        (lambda data: data["masks"][0].pop("digest"), "digest"),
        (lambda data: data.update(base_differs=[1]), "expected a string"),
        (lambda data: data.update(more=1), "is an unknown key"),
    ],
)
def test_damage_is_told(data: dict[str, Any], damage: Damage, message: str) -> None:
    damage(data)
    with pytest.raises(ResultFormatError, match=f"damaged split: .*{message}"):
        Split.from_dict(data)


def test_of_one_mask_there_is_no_split(data: dict[str, Any]) -> None:
    data["masks"], data["parts"] = data["masks"][:1], data["parts"][:2]
    with pytest.raises(ResultFormatError, match="not of several masks"):
        Split.from_dict(data)


def test_another_format_or_version(data: dict[str, Any]) -> None:
    with pytest.raises(ResultFormatError, match="not a trimtab split"):
        Split.from_dict({"format": "trimtab.overlap"})
    with pytest.raises(ResultFormatError, match=r"version 2: .*trimtab mask share"):
        Split.from_dict(data | {"format_version": 2})
