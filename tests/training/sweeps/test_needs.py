"""Arms that need others: what they train, where they start, and in which order they run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from tests.training.sweeps.sweep_files import planned, tell_nobody, write_sweep
from trimtab.errors import SettingsError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.training.folders import WEIGHTS
from trimtab.training.runs.settings import Settings
from trimtab.training.sweeps.cell import derived_mask
from trimtab.training.sweeps.execute import run_cells
from trimtab.training.sweeps.plan import plan
from trimtab.training.sweeps.settings import MaskKind, SweepSettings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

TEXT = """
output = "out"
[sweep]
seed = [0, 1]
[[arm]]
name = "full"
run = "sft.toml"
[[arm]]
name = "random"
run = "sft.toml"
mask = "random"
of = "full"
set = { "optimizer.master" = "none" }
[[arm]]
name = "longer"
run = "sft.toml"
start = "full"
"""
FAST = {"dtype": "fp32", "mask": "all", "trainer": {"max_steps": 2, "learning_rate": 1e-3}}


def test_an_arm_trains_what_another_changed_or_starts_where_it_ended(
    base: Base, tmp_path: Path
) -> None:
    before = planned(tmp_path, TEXT, base[0], sft=FAST)
    cells = {one.cell.name: one.cell for one in before.cells}
    assert not any(cell.folder.exists() for cell in cells.values())
    order: list[str] = []

    def tell(cell: Any, what: str) -> None:
        if what == "started":
            assert cell.is_ready
            order.append(cell.name)

    last_first = list(reversed(cells.values()))
    outcomes = run_cells(last_first, jobs=1, notify=tell, stop=lambda: False, here=True)
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}, outcomes
    assert sorted(order) == sorted(cells)
    for seed in (0, 1):
        full, random, longer = (cells[f"{arm},seed={seed}"] for arm in ("full", "random", "longer"))
        changed = extract_mask(base[0], full.model)
        assert Mask.load(random.folder / "mask.safetensors") == changed.random_like(seed)
        update = json.loads(random.result.read_text())["update"]
        assert update["num_changed"] > 0 and update["num_changed_outside_mask"] == 0
        read = Settings.read(longer.folder / "run.json")
        assert read.resolve(read.model) == full.model.resolve()
        resolved = json.loads((longer.out / "resolved.json").read_text())
        assert resolved["model"]["id"] == str(full.model.resolve())
        assert (longer.model / WEIGHTS).read_bytes() != (full.model / WEIGHTS).read_bytes()
    again = plan(SweepSettings.read(tmp_path / "sweep.toml"))
    assert all(one.is_finished for one in again.cells)
    assert [one.to_dict() for one in again.differences] == [
        one.to_dict() for one in before.differences
    ]


def test_what_is_needed_is_a_setting_that_was_asked_for(base: Base, tmp_path: Path) -> None:
    result = {one.setting: one for one in planned(tmp_path, TEXT, base[0], sft=FAST).differences}
    assert (result["mask"].why, result["model"].why) == ("asked", "asked")
    assert ["random of full" in str(value) for value, _ in result["mask"].values].count(True) == 1


def test_what_is_wrong_beside_a_need_is_known_before(base: Base, tmp_path: Path) -> None:
    text = TEXT.replace('"optimizer.master" = "none"', '"trainer.beta" = 1.0')
    with pytest.raises(SettingsError, match=r"random,seed=0 and 1 more: .*no key trainer.beta"):
        planned(tmp_path, text, base[0], sft=FAST)


def test_what_needs_a_failed_cell_is_not_run(base: Base, tmp_path: Path) -> None:
    cells = [one.cell for one in planned(tmp_path, TEXT, base[0], sft=FAST).cells]
    few = [cell for cell in cells if cell.name in ("random,seed=0", "longer,seed=1")]
    outcomes = run_cells(few, jobs=1, notify=tell_nobody, stop=lambda: False, here=True)
    assert {name: outcome.error for name, outcome in outcomes.items()} == {
        "random,seed=0": "needs full,seed=0",
        "longer,seed=1": "needs full,seed=1",
    }


def test_nothing_is_begun_once_asked_to_stop(base: Base, tmp_path: Path) -> None:
    cells = [one.cell for one in planned(tmp_path, TEXT, base[0], sft=FAST).cells]
    asked = iter([False, True, True, True, True, True])  # after the first step of the first cell
    outcomes = run_cells(cells, jobs=1, notify=tell_nobody, stop=lambda: next(asked), here=True)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "full,seed=0": "interrupted"
    }


@pytest.mark.parametrize("kind", get_args(MaskKind))
def test_masks_and_their_controls(base: Base, tmp_path: Path, kind: MaskKind) -> None:
    whole = Mask.load(_random(base[0], tmp_path))
    mask = derived_mask(kind, whole, base[0], seed=1)
    counts = [{name: one.num_selected(name) for name in one} for one in (whole, mask)]
    if kind == "complement":
        assert mask == whole.complement()
    else:
        assert counts[0] == counts[1]
        assert (mask == whole) == (kind == "own")


def _random(base: Path, folder: Path) -> Path:
    from trimtab.cli import main

    path = folder / "whole.safetensors"
    with pytest.raises(SystemExit):
        arguments = ["--base", str(base), "--density", "0.1", "-o", str(path)]
        main(["mask", "make", "high-magnitude", *arguments])
    low = folder / "low.safetensors"
    with pytest.raises(SystemExit):
        arguments = ["--base", str(base), "--like", str(path), "-o", str(low)]
        main(["mask", "make", "low-magnitude", *arguments])
    assert Mask.load(low) == derived_mask("low-magnitude", Mask.load(path), base, 0)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('of = "full"', 'of = "nobody"', "arm random needs nobody, expected an arm before it"),
        ('of = "full"', "", "arm random: expected both of mask and of, or neither"),
        ('start = "full"', 'start = "longer"', "arm longer needs longer"),
        ('mask = "random"', 'mask = "odd"', 'mask is "odd", expected "own" or'),
        (
            'start = "full"',
            'start = "full"\nset = { model = "x" }',
            "its model is that of arm full",
        ),
        ("seed = [0, 1]", 'model = ["x"]', "arm longer takes its model from another"),
    ],
)
def test_needs_that_cannot_be_meant(tmp_path: Path, old: str, new: str, message: str) -> None:
    from trimtab.training.sweeps.cell import cells_of

    path = write_sweep(tmp_path, TEXT.replace(old, new))
    with pytest.raises(SettingsError, match=message):
        cells_of(SweepSettings.read(path))
