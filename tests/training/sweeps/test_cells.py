"""Names and contents of cells, and the file that holds one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.training.sweeps.sweep_files import write_sweep
from trimtab.errors import SettingsError
from trimtab.training.runs.settings import Settings
from trimtab.training.sweeps.cell import Cell, cells_of
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train

TOP = 'run = "sft.toml"\noutput = "out"\n'


def cells(folder: Path, text: str, **runs: Any) -> list[Cell]:
    return cells_of(SweepSettings.read(write_sweep(folder, text, **runs)))


def test_a_grid_in_the_order_of_its_axes(tmp_path: Path) -> None:
    made = cells(tmp_path, TOP + "[sweep]\nlearning_rate = [1e-5, 1]\nseed = [0, 1]")
    assert [(cell.name, cell.arm) for cell in made] == [
        ("learning_rate=1e-05,seed=0", "learning_rate=1e-05"),
        ("learning_rate=1e-05,seed=1", "learning_rate=1e-05"),
        ("learning_rate=1,seed=0", "learning_rate=1"),
        ("learning_rate=1,seed=1", "learning_rate=1"),
    ]
    assert made[0].out == tmp_path / "out" / "cells" / made[0].name / "out"


def test_only_seeds_are_one_arm(tmp_path: Path) -> None:
    made = cells(tmp_path, TOP + "[sweep]\nseed = [0, 1]")
    assert [(cell.name, cell.arm) for cell in made] == [("seed=0", "sft"), ("seed=1", "sft")]


def test_a_factor_replaces_its_keys_and_nothing_else(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, TOP + '[sweep]\n"trainer.warmup_steps" = [7]\nlearning_rate = [1.0]')
    before = tomllib.loads((tmp_path / "sft.toml").read_text())
    trainer = {key: item for key, item in before["trainer"].items() if key != "learning_rate"}
    assert cell.content == {
        **before,
        "trainer": {**trainer, "warmup_steps": 7},
        "factors": {"learning_rate": 1.0},
    }
    assert cell.file().trainer == {**before["trainer"], "warmup_steps": 7, "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("betas = [[0.9, 0.999], [0.9, 0.95]]", ["betas=0.9_0.999", "betas=0.9_0.95"]),
        ("clip = [false, 1.0]", ["clip=false", "clip=1.0"]),
        ('"samples.num" = [1]\n"data.size" = [2]', ["num=1,size=2"]),
        (
            '"samples.batch_size" = [1]\n"reward.batch_size" = [2]',
            ["samples.batch_size=1,reward.batch_size=2"],
        ),
    ],
)
def test_names(tmp_path: Path, lines: str, names: list[str]) -> None:
    assert [cell.name for cell in cells(tmp_path, f"{TOP}[sweep]\n{lines}")] == names


def test_names_are_names_of_files_and_never_the_same(tmp_path: Path) -> None:
    values = ["../a", "..-a", "/etc/passwd", "x" * 300, "x" * 301, "a\0b", "", ".", "..", "é"]
    made = cells(tmp_path, f"{TOP}[sweep]\nmodel = {json.dumps(values)}")
    names = [cell.name for cell in made]
    assert len(set(names)) == len(values)
    for cell in made:
        assert cell.name.isascii()
        assert len(cell.name) < 200
        assert cell.folder.resolve().parent == (tmp_path / "out" / "cells").resolve()


def test_adding_values_renames_no_cell(tmp_path: Path) -> None:
    few = cells(tmp_path, TOP + "[sweep]\nseed = [1]\nkl = [0.1]")
    many = cells(tmp_path, TOP + "[sweep]\nseed = [0, 1]\nkl = [false, 0.1]")
    assert few[0].name in {cell.name for cell in many}


def test_what_an_arm_sets_cannot_be_swept(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"arm a \(or \[set\]\) and \[sweep\] both set seed"):
        cells(tmp_path, TOP + '[sweep]\nseed = [1]\n[[arm]]\nname = "a"\nset = {seed = 2}')


def test_a_date_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a date or a time, which no key accepts"):
        cells(tmp_path, TOP + "[sweep]\nseed = [2026-11-21]")


def test_no_run_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml: no such file"):
        cells(tmp_path, 'run = "none.toml"\noutput = "out"\n[sweep]\nseed = [0]')


def test_a_cell_is_read_as_it_was_written(tmp_path: Path) -> None:
    (cell,) = cells(tmp_path, TOP + "[sweep]\nclip = [false]")
    path = cell.write()
    assert Settings.read(path) == cell.file()
    assert Settings.read(path).resolve("x").resolve() == tmp_path / "x"
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Settings.read(moved / path.relative_to(tmp_path)).output.startswith(str(moved.resolve()))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not the run of a cell"),
        ("[" * 100_000, "not JSON (it is nested too deeply)"),
        ("{}", "not the run of a cell"),
        ('{"format": "other", "format_version": 1}', "expected trimtab.cell of version 1, found"),
        (
            '{"format": "trimtab.cell", "format_version": 2}',
            "of version 1, found 'trimtab.cell' of",
        ),
        (
            '{"format": "trimtab.cell", "format_version": 1, "run_file": 3, "content": {}}',
            "not the run of a cell",
        ),
        (
            '{"format": "trimtab.cell", "format_version": 1, "run_file": "x", "content": {"a": 1}}',
            "there is no key a",
        ),
    ],
)
def test_files_that_hold_no_cell(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        Settings.read(path)
    assert message in str(error.value)


def test_no_cell(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        Settings.read(tmp_path / "run.json")
