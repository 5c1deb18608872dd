"""The pages on sweeps and formats have every key, factor and column."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from tests.training.runs.test_docs import rows_of
from trimtab.training.runs.evaluate_table import QuestionsTable
from trimtab.training.runs.factors import FACTORS, KEYS_THEMSELVES
from trimtab.training.sweeps.execute import COLUMNS
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "sweeps.md").read_text("utf-8")
FORMATS = (DOCS / "formats.md").read_text("utf-8")


def keys_of(page: str, section: str) -> set[str]:
    """What stands in backquotes in the first cells of a section's tables."""
    firsts = [cells[0] for (item, _), cells in rows_of(page).items() if item == section]
    return {name.strip("[]") for first in firsts for name in first.split("`")[1::2]}


def test_every_key_of_a_sweep_file() -> None:
    of_a_sweep = {"run", "set", "sweep", "arm", "evaluate", "output"}
    assert keys_of(PAGE, "sweep-file") == of_a_sweep
    assert {"output", "evaluate"} < {field.name for field in fields(SweepSettings)}


def test_every_key_of_evaluate() -> None:
    assert keys_of(PAGE, "evaluate") == {field.name for field in fields(QuestionsTable)}
    defaults = {
        one.name: one.default for one in fields(QuestionsTable) if one.default is not MISSING
    }
    assert f"`{defaults['kind']}`, none, `{defaults['column']}`" in PAGE


def test_every_factor() -> None:
    rows = rows_of(PAGE)
    for name, factor in FACTORS.items():
        assert ("factors", name) in rows
        for key in {key for keys in factor.keys.values() for key in keys}:
            assert f"`{key}`" in PAGE
    for name, (key, _) in KEYS_THEMSELVES.items():
        assert f"| {name} | `{key}` itself |" in PAGE


def test_every_column() -> None:
    section = FORMATS.partition("The columns, after")[2].partition("`plan.cells` has")[0]
    firsts = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert [name for first in firsts for name in first.split("`")[1::2]] == list(COLUMNS)
