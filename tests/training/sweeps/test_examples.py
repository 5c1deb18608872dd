"""`examples/sweep.toml` runs, with a tiny base in place of its model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.runs.test_examples import EXAMPLES
from tests.training.runs.test_examples import reader as reader
from trimtab.progress import progress_bars
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.sweeps.execute import COLUMNS, sweep_table
from trimtab.training.sweeps.plan import Plan, plan
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train


def planned(reader: Path, output: Path) -> Plan:
    sweep = SweepSettings.read(EXAMPLES / "sweep.toml")
    (arm,) = sweep.arms
    small = {"model": str(reader), "factors.steps": 2}
    return plan(
        replace(sweep, output=output, arms=(replace(arm, settings={**arm.settings, **small}),))
    )


def test_the_example(reader: Path, tmp_path: Path) -> None:
    found = planned(reader, tmp_path / "out")
    assert len(found.cells) == 8
    assert {one.of for one in found.differences} == {
        ("factors.learning_rate",),
        ("factors.precision",),
    }
    assert found.matched["steps"].why == found.matched["work_of_a_step"].why == "equal"
    for one in found.cells[:4]:
        with progress_bars() as bars:
            execute(prepare(one.cell.file()), bars)
    table = sweep_table(found, {}, {})
    rows = table["cells"]
    swept = ["mask", "model", "steps", "learning_rate", "precision"]
    assert table["swept"] == swept
    assert (
        list(rows[0])
        == table["columns"]
        == [
            *COLUMNS[:2],
            *swept,
            *(column for column in COLUMNS[2:] if column not in swept),
        ]
    )
    assert [row["status"] for row in rows] == ["finished"] * 4 + ["missing"] * 4
    by_precision = {row["precision"]: row["num_changed"] for row in rows[:4]}
    assert by_precision.pop("fp32") > max(by_precision.values())
