"""The page on run files has every key, with its default."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.algorithms.algorithm import DEFAULTS
from trimtab.training.runs.prepare import SET_ELSEWHERE
from trimtab.training.runs.run_file import (
    AutoTable,
    DataTable,
    OptimizerTable,
    RewardTable,
    RunFile,
)

PAGE = (Path(__file__).parents[3] / "docs" / "run-files.md").read_text("utf-8")
ROWS = {
    (part[0], cells[0].strip("` ")): cells
    for part in re.findall(r"\{ #([\w-]+) \}\n(.*?)(?=\n##|\Z)", PAGE, re.DOTALL)
    for line in part[1].splitlines()
    if line.startswith("| `")
    for cells in [[cell.strip() for cell in line.strip("| ").split("|")]]
}
"""Section and key -> cells of its row."""


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("keys", RunFile),
        ("data", DataTable),
        ("reward", RewardTable),
        ("optimizer", OptimizerTable),
        ("auto", AutoTable),
    ],
)
def test_every_key_and_default(section: str, table: type) -> None:
    tables = {"path", "data", "reward", "optimizer", "auto", "trainer"}
    for field in fields(table):
        if field.name in tables:
            continue
        cells = ROWS[section, field.name]
        if field.default not in (MISSING, None):
            assert cells[-1].startswith(f"`{field.default}`"), field.name


def test_every_key_of_the_trainer_that_is_ours() -> None:
    ours = {**DEFAULTS, **{k: v for of in ALGORITHMS.values() for k, v in of.defaults.items()}}
    for key, value in ours.items():
        assert ROWS["trainer", key][1] == f"`{str(value).lower()}`"
    for key in SET_ELSEWHERE:
        assert f"`{key}`" in PAGE


@pytest.mark.train
@pytest.mark.parametrize("algorithm", ALGORITHMS)
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
