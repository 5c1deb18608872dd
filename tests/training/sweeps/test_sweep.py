"""Sweeps whose cells are trained in this process: what the models are asked, and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.sweeps.sweep_files import planned, tell_nobody
from trimtab.errors import CheckpointError
from trimtab.progress import progress_bars
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.runs.execute import execute
from trimtab.training.runs.prepare import prepare
from trimtab.training.sweeps import cell
from trimtab.training.sweeps.execute import run_sweep
from trimtab.training.sweeps.plan import Plan

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

ASKING = """
run = "sft.toml"
output = "out"
[sweep]
seed = [0, 1]
[evaluate]
questions = 6
"""


@pytest.fixture
def finished(base: Base, tmp_path: Path) -> Plan:
    """A sweep of two seeds, both trained."""
    plan = planned(tmp_path, ASKING, base[0])
    for one in plan.cells:
        with progress_bars() as bars:
            execute(prepare(one.cell.file()), bars)
    return plan


def test_cells_are_asked_what_they_were_not_trained_on(finished: Plan) -> None:
    assert finished.examiner is not None
    for one in finished.cells:
        trained_on = {row["prompt"] for row in prepare(one.cell.file()).data.rows}
        asked = finished.examiner.questions[one.cell.name].prompts
        assert len(asked) == 6
        assert not trained_on & set(asked)


def test_answers_are_in_the_table_and_asked_once(
    finished: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = run_sweep(finished, notify=tell_nobody)
    rows = table["cells"]
    assert [row["num_questions"] for row in rows] == [6, 6]
    assert [row["accuracy"] for row in rows] == [row["num_right"] / 6 for row in rows]
    (arm,) = table["arms"]
    assert (arm["arm"], arm["accuracy"]["n"]) == ("sft", 2)
    monkeypatch.setattr(cell, "evaluate", None)  # it would fail
    assert run_sweep(finished, notify=tell_nobody)["cells"] == rows


def test_other_questions_are_asked_anew(finished: Plan, base: Base) -> None:
    run_sweep(finished, notify=tell_nobody)
    folder = finished.sweep.path.parent
    fewer = planned(folder, ASKING.replace("6", "3"), base[0])
    assert [row["num_questions"] for row in run_sweep(fewer, notify=tell_nobody)["cells"]] == [3, 3]


def test_a_model_that_cannot_be_asked_spoils_no_table(
    finished: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(models: Any, **more: Any) -> Any:
        if "seed=0" in models[0]:
            raise CheckpointError("it is gone")
        return evaluate(models, **more)

    monkeypatch.setattr(cell, "evaluate", failing)
    first, second = run_sweep(finished, notify=tell_nobody)["cells"]
    assert (first["status"], first["error"]) == ("finished", "cannot be evaluated: it is gone")
    assert (first["num_questions"], second["num_questions"], second["error"]) == (None, 6, None)
    assert first["num_changed"] > 0


def test_stopped_before_it_began(base: Base, tmp_path: Path) -> None:
    plan = planned(tmp_path, ASKING, base[0])
    with pytest.raises(KeyboardInterrupt):
        run_sweep(plan, notify=tell_nobody, stop=lambda: True)
    assert (tmp_path / "out" / "table.csv").read_text().count("missing") == 2


@pytest.mark.parametrize("file", ["result.json", "resolved.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"settings": 3, "steps": []}', "\0"])
def test_damaged_results_are_told_before_anything_trains(
    base: Base, tmp_path: Path, file: str, text: str
) -> None:
    out = planned(tmp_path, ASKING, base[0]).cells[0].cell.out
    out.mkdir(parents=True)
    (out / "result.json").write_text("{}")
    (out / file).write_text(text)
    printed = r"cannot be read .*: delete .*seed=0(/out)? to train again"
    with pytest.raises(CheckpointError, match=printed):
        planned(tmp_path, ASKING, base[0])


def test_a_damaged_result_of_the_same_settings(finished: Plan, base: Base) -> None:
    (finished.cells[0].cell.out / "result.json").write_text('{"update": {"num_elements": 0}}')
    with pytest.raises(CheckpointError, match=r"result\.json cannot be read"):
        planned(finished.sweep.path.parent, ASKING, base[0])
