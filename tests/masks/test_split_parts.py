"""The common core and the own parts of masks against sets, and against simulated chance."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.building import tensors_bytes
from tests.masks.test_algebra import elements, masks_of_a_model
from tests.masks.test_stored import write_unnoticed
from trimtab.errors import MaskError, MaskMismatchError, OutputExistsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask
from trimtab.masks.random import random_tensor
from trimtab.masks.split import chance_of, part_files, share, split_tensor


@settings(max_examples=25)  # each writes up to five files
@given(masks=st.lists(masks_of_a_model(), min_size=2, max_size=4))
def test_the_parts_are_those_of_sets(
    tmp_path_factory: pytest.TempPathFactory, masks: list[Mask]
) -> None:
    files = part_files(tmp_path_factory.mktemp("parts"), ["m"] * len(masks))
    split = share(masks, files)
    sets = [elements(mask) for mask in masks]
    core, *own = (Mask.load(file) for file in files)
    assert elements(core) == reduce(set.intersection, sets)
    for place, mask in enumerate(own):
        others = set().union(*(found for at, found in enumerate(sets) if at != place))
        assert elements(mask) == sets[place] - others
    assert [part.num_selected for part in split.parts] == [
        mask.num_selected() for mask in (core, *own)
    ]
    assert [part.mask for part in split.parts] == [None, *range(len(masks))]
    assert [part.file for part in split.parts] == list(map(str, files))
    assert [each.num_selected for each in split.masks] == [mask.num_selected() for mask in masks]
    names = {name for mask in masks for name in mask}
    assert set(core) == set(own[0]) == names
    assert split.num_elements == core.num_elements()


def test_chance_by_hand(tmp_path: Path) -> None:
    """Shares 1/2, 1/4 and 1 of a tensor of 8, and 1/2, 1/2 and 0 of one of 4."""

    def mask(first: int, second: int) -> Mask:
        return Mask.from_arrays({"a": np.arange(8) < first, "b": np.arange(4) < second})

    split = share([mask(4, 2), mask(2, 2), mask(8, 0)], part_files(tmp_path, "xyz"))
    assert [part.chance for part in split.parts] == [
        8 / 8 + 0,
        0 + 4 / 4,  # in b: 1/2 · 1/2 · 1
        0 + 4 / 4,
        8 * 1 / 2 * 3 / 4 + 0,
    ]
    assert [part.num_selected for part in split.parts] == [2, 0, 0, 4]
    assert [part.lift for part in split.parts] == [2.0, 0.0, 0.0, 4 / 3]


def test_chance_is_the_mean_of_random_masks() -> None:
    num_selected = (100, 250, 350)
    counts = np.array(
        [
            [
                part.num_selected
                for part in split_tensor(
                    [
                        random_tensor((500,), num, seed=3 * turn + place, name="w")
                        for place, num in enumerate(num_selected)
                    ]
                )
            ]
            for turn in range(400)
        ]
    )
    chance = chance_of(500, num_selected)
    standard_errors = counts.std(axis=0) / np.sqrt(len(counts))
    assert np.all(np.abs(counts.mean(axis=0) - chance) < 3.5 * standard_errors)


def test_chance_matched_by_magnitude(tmp_path: Path) -> None:
    """By hand: 4 elements in [1, 2) and 6 in [2, 4)."""
    weights = np.array([0x3F80] * 4 + [0x4000] * 6, dtype=np.uint16)
    (tmp_path / "base.safetensors").write_bytes(tensors_bytes({"w": weights}))
    first = Mask.from_arrays({"w": np.isin(np.arange(10), [0, 1, 4, 5, 6])})
    second = Mask.from_arrays({"w": np.isin(np.arange(10), [0, 1, 2, 4])})
    files = part_files(tmp_path, "xy")
    split = share([first, second], files, base=tmp_path / "base.safetensors")
    assert [part.num_selected for part in split.parts] == [3, 2, 1]
    assert [part.chance for part in split.parts] == pytest.approx([2, 3, 2])
    matched = [2 * 3 / 4 + 3 * 1 / 6, 2 * 1 / 4 + 3 * 5 / 6, 2 * 3 / 4 + 3 * 1 / 6]
    assert [part.matched_chance for part in split.parts] == pytest.approx(matched)
    assert split.parts[0].matched_lift == pytest.approx(1.5)
    other = Mask.from_arrays({"w": second.array("w"), "v": np.array(True)})
    with pytest.raises(MaskMismatchError, match="1 tensor is not in all masks: v"):
        share([first, other], files, base=tmp_path / "base.safetensors", force=True)
    assert Mask.load(files[0]) == first & second


def test_a_part_that_chance_would_not_have(tmp_path: Path) -> None:
    empty = Mask.from_arrays({"a": np.zeros(5, dtype=np.bool_), "b": np.ones((0, 3), np.bool_)})
    split = share([empty, ~empty], part_files(tmp_path, "xy"))
    assert [(part.chance, part.lift) for part in split.parts] == [(0, None), (0, None), (5, 1)]


def test_provenance_says_of_which_masks(tmp_path: Path) -> None:
    masks = [
        Mask.from_arrays(
            {"w": np.arange(5) < num, "v": np.array(True)},
            base={"w": BaseTensor("BF16", f"{num}" * 32), "v": BaseTensor("BF16", "f" * 32)},
            provenance={"steps": [{"step": "extract"}]},
        )
        for num in (2, 3)
    ]
    files = part_files(tmp_path / "new", ["first", "second"])
    assert [file.name for file in files] == [
        "core.safetensors",
        "own-1-first.safetensors",
        "own-2-second.safetensors",
    ]
    assert share(masks, files, command="typed").base_differs == ("w",)
    result = {"of": [mask.digest for mask in masks], "base_differs": ["w"]}
    steps: list[dict[str, object]] = [{"step": "core"}, {"step": "own", "mask": 0}]
    steps.append({"step": "own", "mask": 1})
    for file, step in zip(files, steps, strict=True):
        part = Mask.load(file)
        assert part.provenance["command"] == "typed"
        assert part.provenance["steps"] == [step | result]
        assert part.provenance["made_from"] == {m.digest: dict(m.provenance) for m in masks}
        assert part.base == {"v": BaseTensor("BF16", "f" * 32)}


def test_nothing_is_written_where_something_is_in_the_way(tmp_path: Path) -> None:
    masks = [Mask.from_arrays({"w": np.arange(5) < num}) for num in (2, 3)]
    files = part_files(tmp_path, "xy")
    files[2].write_text("mine")
    with pytest.raises(OutputExistsError):
        share(masks, files)
    assert list(tmp_path.iterdir()) == [files[2]]
    share(masks, files, force=True)
    assert Mask.load(files[2]).indices("w").tolist() == [2]


def test_masks_that_cannot_be_split(tmp_path: Path) -> None:
    mask = Mask.from_arrays({"w": np.arange(5) < 2})
    with pytest.raises(MaskError, match="expected at least two"):
        share([mask], part_files(tmp_path, "x"))
    other = Mask.from_arrays({"w": np.arange(6) < 2})
    with pytest.raises(MaskMismatchError, match=r"w is \(5,\), and \(6,\) in mask 3"):
        share([mask, mask, other], part_files(tmp_path, "xyz"))
    assert not list(tmp_path.iterdir())


def test_a_mask_that_is_damaged_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m"
    Mask.from_arrays({"a": np.arange(50) < 9, "b": np.arange(50) < 9}).save(path)
    with open_mask(path) as stored:
        write_unnoticed(path, path.stat().st_size - 1, b"\xff")
        with pytest.raises(MaskError, match="'b' says it selects 9 elements"):
            share([stored, stored], part_files(tmp_path / "parts", "xy"))
    assert not list((tmp_path / "parts").iterdir())
