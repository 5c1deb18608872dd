"""The page on run files has every key, with its default."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from trimtab.training.runs.algorithms import ALGORITHMS, DEFAULTS
from trimtab.training.runs.evaluate_table import EvaluateTable
from trimtab.training.runs.settings import (
    AutoTable,
    DataTable,
    OptimizerTable,
    PublishTable,
    RewardTable,
    RolloutsTable,
    SamplesTable,
    Settings,
)
from trimtab.training.runs.trainer_arguments import SET_ELSEWHERE

DOCS = Path(__file__).parents[3] / "docs"


def rows_of(page: str) -> dict[tuple[str, str], list[str]]:
    """Section and key -> cells of its row."""
    return {
        (part[0], cells[0].strip("` ")): cells
        for part in re.findall(r"\{ #([\w-]+) \}\n(.*?)(?=\n##|\Z)", page, re.DOTALL)
        for line in part[1].splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("| ").split("|")]]
    }


PAGE = (DOCS / "run-files.md").read_text("utf-8")
ROWS = rows_of(PAGE)


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("keys", Settings),
        ("data", DataTable),
        ("reward", RewardTable),
        ("samples", SamplesTable),
        ("optimizer", OptimizerTable),
        ("auto", AutoTable),
        ("publish", PublishTable),
        ("rollouts", RolloutsTable),
        ("evaluate", EvaluateTable),
    ],
)
def test_every_key_and_default(section: str, table: type) -> None:
    tables = {"path", "data", "reward", "samples", "optimizer", "auto", "trainer", "factors"}
    tables |= {"publish", "rollouts", "evaluate", "overrides"}
    for field in fields(table):
        if field.name in tables:
            continue
        cells = ROWS[section, field.name]
        is_required = (section, field.name) == ("evaluate", "every")
        if field.default not in (MISSING, None, "") and not is_required:
            shown = str(field.default).lower() if field.default is False else field.default
            assert cells[-1].startswith(f"`{shown}`"), field.name


def test_every_key_of_the_trainer_that_is_ours() -> None:
    for key, value in DEFAULTS.items():
        assert ROWS["trainer", key][1] == f"`{str(value).lower()}`"
    for key in SET_ELSEWHERE:
        assert f"`{key}`" in PAGE


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_has_a_page_with_its_example(algorithm: str) -> None:
    page = (DOCS / "algorithms" / f"{algorithm}.md").read_text("utf-8")
    assert f'--8<-- "examples/{algorithm}.toml"' in page
    stated = {key for section, key in rows_of(page) if section == "defaults"}
    assert stated >= ALGORITHMS[algorithm].defaults.keys() | ALGORITHMS[algorithm].fixed.keys()
    assert f"[`{algorithm}`]({algorithm}.md)" in (DOCS / "algorithms" / "index.md").read_text()


@pytest.mark.train
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_default_on_the_page_of_an_algorithm(algorithm: str) -> None:
    from trimtab.training import runtime

    runtime.start()
    one = ALGORITHMS[algorithm]
    page = (DOCS / "algorithms" / f"{algorithm}.md").read_text("utf-8")
    with runtime.quiet():
        args = one.config_class()(use_cpu=True, **{**DEFAULTS, **one.defaults, **one.fixed})
    for (section, key), cells in rows_of(page).items():
        if section == "defaults":
            table, _, name = key.rpartition(".")
            default = getattr(SamplesTable() if table == "samples" else args, name)
            shown = default if isinstance(default, str) else str(default).lower()
            assert cells[1] == f"`{shown}`", key


@pytest.mark.train
@pytest.mark.parametrize(
    "algorithm", [name for name, item in ALGORITHMS.items() if item.config.startswith("trl")]
)
def test_what_the_page_says_of_trl(algorithm: str) -> None:
    from trimtab.training import runtime

    runtime.start()
    with runtime.quiet():
        args = ALGORITHMS[algorithm].config_class()(use_cpu=True, bf16=False)
    defaults = {field.name: field.default for field in fields(type(args))}
    assert ROWS["trainer", "logging_steps"][2] == f"`{args.logging_steps:.0f}`"
    assert ROWS["trainer", "save_steps"][2] == f"`{args.save_steps:.0f}`"
    assert defaults["bf16"] in (None, True)
    assert args.activation_checkpointing is True
    assert args.save_total_limit is None
    assert args.report_to == []
