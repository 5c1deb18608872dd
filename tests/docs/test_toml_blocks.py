"""Every TOML block that the documentation shows is read by what reads such files.

A block with tables of a run file alone is put below the keys that every run file has.
"""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs import world
from tests.docs.pages import PAGES, ROOT, blocks
from trimtab.papers.library import papers_folder, read_paper
from trimtab.papers.public import read_checkpoints
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings
from trimtab.training.sweeps.plan import plan
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train

LANGUAGES = {"console", "bash", "python", "diff", "toml", "text"}
"""Those that a test of this folder runs or reads; `text` is formulas and drawings."""

TOP = {
    "algorithm": '"grpo"',
    "output": '"runs/fragment"',
    "mask": '"none"',
    "data": '{ task = "addition" }',
}
"""What every run file has."""

TOML = [
    pytest.param(page, number, id=f"{page} {number}")
    for page in PAGES
    for number, _ in enumerate(blocks(page, "toml"))
]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_language_that_is_tested(page: str) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.parametrize(("page", "number"), TOML)
def test_a_block_is_read(
    page: str, number: int, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = world.replaced(page, "toml")[number]
    if included := re.fullmatch(r'--8<-- "(examples/\w+\.toml)"\n', text):
        assert Settings.read(ROOT / included[1]).algorithm == Path(page).stem
        return
    world.furnish(shelf, page, tmp_path)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shown.toml"
    path.write_text(text)
    keys = tomllib.loads(text).keys()
    if "sweep" in keys:
        assert len(plan(SweepSettings.read(path)).cells) in (9, 24)
    elif "algorithm" in keys:
        assert prepare(Settings.read(path)).rows
    elif keys <= {"data", "factors", "publish", "rollouts", "evaluate"}:
        usual = {**TOP, "model": f"'{shelf / 'base'}'"}
        top = "\n".join(f"{key} = {value}" for key, value in usual.items() if key not in keys)
        path.write_text(f"{top}\n{text}")
        file = Settings.read(path)
        if "reasoning_gym" in text and find_spec("reasoning_gym") is None:
            pytest.skip("reasoning-gym is not installed")
        assert prepare(file).rows
    else:
        pairs = [pair.id for pair in read_paper("mukherjee-2025", papers_folder()).public]
        assert read_checkpoints(path, pairs).keys() == keys


def test_a_block_that_is_wrong_is_not_read(tmp_path: Path) -> None:
    """So that the test above can fail."""
    path = tmp_path / "wrong.toml"
    path.write_text('[tulu-4-8b-dpo]\nbase = "a"\ntuned = "b"\n')
    with pytest.raises(Exception, match="tulu-4-8b-dpo"):
        read_checkpoints(path, ["tulu-3-8b-dpo"])
