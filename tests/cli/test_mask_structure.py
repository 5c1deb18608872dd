"""`trimtab mask structure` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.structure_result import Structure


@pytest.fixture
def saved(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    extract_mask(*pair).save(path)
    return path


def test_a_table_with_both_nulls(run: Run, pair: tuple[Path, Path], saved: Path) -> None:
    code, out, err = run("mask", "structure", saved, "--base", pair[0])
    assert (code, err) == (0, "")
    assert "Against chance with the same number of elements in each tensor\n" in out
    assert "Against chance with the same number of elements in each tensor × exponent" in out
    assert "attention heads" in out


def test_without_a_config_it_says_what_it_cannot_tell(run: Run, saved: Path) -> None:
    code, out, _ = run("mask", "structure", saved)
    assert code == 0
    assert "Not counted in attention heads" in out
    assert "MLP neurons" in out


def test_json_page_and_report(
    run: Run, pair: tuple[Path, Path], saved: Path, tmp_path: Path
) -> None:
    random = tmp_path / "r.safetensors"
    Mask.load(saved).random_like(1).save(random)
    wanted = "model.layers.0.mlp.up_proj.weight"
    files = tmp_path / "s.json", tmp_path / "s.html"
    arguments = ["mask", "structure", saved, random, "--config", pair[0], "--map", wanted]
    code, out, err = run(*arguments, "--seed", 5, "-o", files[0], "--html", files[1])
    assert (code, out) == (0, "")
    assert err == f"wrote {files[0]}\nwrote {files[1]}\n"
    result = Structure.from_dict(json.loads(files[0].read_text()))
    assert [mask.control_seed for mask in result.masks] == [5, 6]
    assert result.masks[0].map is not None
    assert result.masks[0].map.name == wanted
    assert str(result.provenance["command"]).startswith("trimtab mask structure ")
    code, out, _ = run("report", files[0])
    assert code == 0
    assert "Rank correlation of z over units" in out
    again = tmp_path / "again.html"
    assert run("report", files[0], "-o", again).code == 0
    assert again.read_text() == files[1].read_text()


def test_wrong_use(run: Run, pair: tuple[Path, Path], saved: Path, tmp_path: Path) -> None:
    both = run("mask", "structure", saved, "--base", pair[0], "--config", pair[0])
    assert both.code == 2
    assert "Error: --base and --config: give one of them; BASE has a config.\n" in both.err
    assert run("mask", "structure").code == 2
    missing = run("mask", "structure", tmp_path / "none.safetensors")
    assert missing.code == 1
    assert "none.safetensors" in missing.err
    wrong = run("mask", "structure", saved, "--map", "model.norm.weight")
    assert wrong.code == 1
    assert "is no matrix of the masks" in wrong.err
