"""`trimtab sweep` as a person meets it: a grid of processes, Ctrl-C, a cell that fails.

A process loads torch and TRL for longer than a cell trains. So there is one sweep that others are
set beside, and only the sweep that is killed starts its cells as users' sweeps do: the cells of
others are forks of a process that has loaded them.
"""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.golden.stored import Compare
from tests.training import tiny, workers
from tests.training.runs.run_files import REWARD
from tests.training.sweeps.sweep_files import tell_nobody, write_sweep
from trimtab.masks.extract import extract_mask
from trimtab.training.folders import WEIGHTS
from trimtab.training.sweeps import execute
from trimtab.training.sweeps.execute import run_cells
from trimtab.training.sweeps.plan import plan
from trimtab.training.sweeps.settings import SweepSettings

pytestmark = pytest.mark.train

GRID = """
run = "grpo.toml"
output = "out"

[sweep]
learning_rate = [1e-4, 1e-2]
seed = [0, 1]
"""

INTERRUPTING = (
    REWARD
    + """
import os, signal
from pathlib import Path

def interrupting(completions, **columns):
    marker = Path(__file__).with_name("interrupted")
    if not marker.exists():
        marker.touch()
        os.kill(int(os.environ["TRIMTAB_TEST_SWEEP"]), signal.SIGINT)
    return share_of_ones(completions)

def killing(completions, **columns):
    marker = Path(__file__).with_name("interrupted")
    if not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
    return share_of_ones(completions)

def failing(completions, **columns):
    raise ValueError("it is broken")
"""
)

OF_A_MACHINE = {"seconds_train", "peak_memory_bytes"}
"""Columns that are not the same twice."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny.make_base(folder)
    return folder


def prepared(folder: Path, base: Path, text: str = GRID, reward: str = "interrupting") -> Path:
    values = {"reward": {"function": f"reward.py:{reward}"}}
    path = write_sweep(folder, text, base, grpo=values)
    (folder / "reward.py").write_text(INTERRUPTING)
    return path


@pytest.fixture
def forked_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are forks."""
    monkeypatch.setattr(execute, "start_trimtab", workers.Cell)


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of 2 x 2 cells that nothing interrupted.

    Two cells ran in this process, and two in processes of their own, at the same time.
    """
    folder = tmp_path_factory.mktemp("whole")
    path = prepared(folder, base)
    (folder / "interrupted").touch()
    in_this = [planned.cell for planned in plan(SweepSettings.read(path)).cells[:2]]
    run_cells(in_this, jobs=1, notify=tell_nobody, stop=lambda: False, here=True)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        from trimtab.cli import main

        patch.setattr(execute, "start_trimtab", workers.Cell)
        main(["sweep", str(path), "--jobs", "2"])
    assert stop.value.code == 0
    return folder


def table(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "out" / "table.json").read_text())
    return data


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: item for key, item in row.items() if key not in OF_A_MACHINE} for row in rows]


def test_rows_are_what_the_cells_left(whole: Path, base: Path) -> None:
    text = table(whole)
    rows = text["cells"]
    assert [(row["learning_rate"], row["seed"]) for row in rows] == [
        (1e-4, 0),
        (1e-4, 1),
        (1e-2, 0),
        (1e-2, 1),
    ]
    for row in rows:
        cell = whole / "out" / row["folder"]
        result = json.loads((cell / "out" / "result.json").read_text())
        changed = extract_mask(base, cell / "out" / "model")
        assert (row["status"], row["error"], row["criterion"]) == ("finished", None, "bits")
        assert row["num_changed"] == changed.num_selected()
        assert row["sparsity"] == 1 - changed.num_selected() / changed.num_elements()
        assert row["reward_last"] == result["history"][-1]["reward"]
        assert row["num_steps"] == len(result["history"]) == 2
        assert row["peak_learning_rate"] == row["learning_rate"]
        assert row["saved_dtype"] == "BF16"
    assert len({row["mask_digest"] for row in rows}) == 2  # random, by the seed
    assert (text["format"], text["format_version"]) == ("trimtab.sweep", 1)
    assert text["provenance"]["command"].startswith("trimtab sweep ")


def test_csv_has_the_rows_of_the_json(whole: Path) -> None:
    text = table(whole)
    with (whole / "out" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [text["columns"]] * 4
    for read, row in zip(rows, text["cells"], strict=True):
        assert read == {key: "" if item is None else str(item) for key, item in row.items()}


def test_means_are_over_seeds(whole: Path) -> None:
    text = table(whole)
    assert [arm["arm"] for arm in text["arms"]] == ["learning_rate=0.0001", "learning_rate=0.01"]
    for place, arm in enumerate(text["arms"]):
        values = [row["sparsity"] for row in text["cells"][2 * place : 2 * place + 2]]
        assert arm["sparsity"]["n"] == 2
        assert arm["sparsity"]["mean"] == sum(values) / 2
        half = 12.7062 * abs(values[0] - values[1]) / 2  # deviation / sqrt(2), one degree
        assert arm["sparsity"]["high"] == pytest.approx(arm["sparsity"]["mean"] + half, rel=1e-4)
        assert arm["accuracy"] is None


def test_finished_cells_are_kept(
    run: Run, whole: Path, golden: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = table(whole)
    monkeypatch.chdir(whole)
    code, out, err = run("sweep", "sweep.toml")
    assert code == 0
    compared = golden("sweep")
    compared.text("text.txt", f"{out}\n{err}", figures=False)
    compared.data("table.json", table(whole), figures=False)
    compared.check()
    assert "4 cells in 2 arms, 4 finished." in err
    assert ": started" not in err
    assert table(whole)["cells"] == before["cells"]
    assert "Over seeds: mean [95 % t-interval, of shares cut at 0 and 100 %]" in out
    assert out.count("learning_rate=0.01") == 3  # two cells and an arm


def test_a_cell_is_a_run_of_its_own(run: Run, whole: Path) -> None:
    path = whole / "out" / "cells" / "learning_rate=0.01,seed=1" / "run.json"
    code, out, _ = run("train", path, "--dry-run")
    assert code == 0
    assert json.loads(out)["factors"] == {"learning_rate": 0.01}
    code, _, err = run("train", path)
    assert code == 1
    assert "holds a finished run" in err


@pytest.mark.usefixtures("forked_cells")
def test_interrupted_it_goes_on_to_the_same_table(
    run: Run, whole: Path, base: Path, tmp_path: Path
) -> None:
    path = prepared(tmp_path, base)
    shutil.copytree(whole / "out", tmp_path / "out")
    name = "learning_rate=0.01,seed=0"
    cell = tmp_path / "out" / "cells" / name
    shutil.rmtree(cell)

    code, out, err = run("sweep", path, "--jobs", 2)  # as many threads as `whole` had
    assert (code, out) == (130, "")
    notice = "trimtab: finishing the steps under way and saving them; Ctrl-C again to stop now"
    assert [line for line in err.splitlines() if "trimtab:" in line] == [
        notice,
        "trimtab: interrupted: the same command resumes: 3 of 4 cells are finished, and the others "
        "keep their last checkpoint",
    ]
    assert f"[3/4] {name}: interrupted (" in err
    assert not (cell / "out" / "result.json").exists()
    row = table(tmp_path)["cells"][2]
    assert (row["status"], row["num_changed"]) == ("interrupted", None)

    code, _, err = run("sweep", path, "--jobs", 2)
    assert code == 0
    assert err.count(": started") == 1
    assert json.loads((cell / "out" / "result.json").read_text())["resumed_from_step"] == 1
    assert lasting(table(tmp_path)["cells"]) == lasting(table(whole)["cells"])
    assert table(tmp_path)["arms"] == table(whole)["arms"]


def test_killed_it_leaves_no_cell_running_and_trains_none_twice(
    run: Run, whole: Path, base: Path, tmp_path: Path
) -> None:
    one = GRID.replace("[1e-4, 1e-2]", "[1e-2]").replace("[0, 1]", "[0]")
    path = prepared(tmp_path, base, one, "killing")
    command = [sys.executable, "-m", "trimtab", "sweep", str(path), "--jobs", "2"]
    killed = subprocess.run(command, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    # The cell is at its first step still: it keeps that and ends, and the same command waits.
    code, _, err = run("sweep", path, "--jobs", 2)
    assert (code, err.count(": started")) == (0, 1)
    (cell,) = (tmp_path / "out" / "cells").iterdir()
    assert json.loads((cell / "out" / "result.json").read_text())["resumed_from_step"] == 1
    assert "another" not in (cell / "log.txt").read_text()
    weights = Path("out", "cells", "learning_rate=0.01,seed=0", "out", "model", WEIGHTS)
    assert (tmp_path / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.usefixtures("forked_cells")
def test_a_cell_that_fails_is_told_and_the_others_go_on(
    run: Run, base: Path, tmp_path: Path
) -> None:
    text = (
        'output = "out"\n'
        '[[arm]]\nname = "broken"\nrun = "grpo.toml"\n'
        '[[arm]]\nname = "good"\nrun = "sft.toml"\n'
        '[evaluate]\nfile = "heldout.jsonl"\nquestions = 4\n'
    )
    path = prepared(tmp_path, base, text, "failing")
    write_sweep(tmp_path, text, base, sft={})
    (tmp_path / "reward.py").write_text(INTERRUPTING)
    rows = [
        {"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(7, 15)
    ]  # two were trained on
    (tmp_path / "heldout.jsonl").write_text("\n".join(map(json.dumps, rows)))

    code, out, err = run("sweep", path)
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "trimtab: 1 of 2 cells failed, the first of them broken: the reward function failing fails"
    )
    assert "it is broken" in err
    assert "1 cell failed\nbroken: the reward function failing fails" in out
    broken, good = table(tmp_path)["cells"]
    assert (broken["status"], broken["num_changed"]) == ("failed", None)
    assert (good["status"], good["num_questions"]) == ("finished", 4)
    assert good["accuracy"] == good["num_right"] / 4


def test_dry_run_prints_the_plan_and_makes_nothing(run: Run, base: Path, tmp_path: Path) -> None:
    path = prepared(tmp_path, base)
    code, out, err = run("sweep", path, "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("4 cells in 2 arms.\n  learning_rate=0.0001,seed=0\n")
    assert "trainer.learning_rate  0.0001 (2 cells); 0.01 (2 cells)  [learning_rate]" in out
    code, out, _ = run("sweep", path, "--dry-run", "--json")
    assert json.loads(out)["cells"][0]["name"] == "learning_rate=0.0001,seed=0"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run = 3", "run is 3, expected a string"),
        (GRID.replace("seed", "sed"), "there is no key sweep.sed: did you mean sweep.seed?"),
        (GRID + "kl = [-1]", "factors.kl is -1.0, expected false or a number above 0"),
    ],
)
def test_problems_are_one_line(
    run: Run, base: Path, tmp_path: Path, text: str, message: str
) -> None:
    code, out, err = run("sweep", prepared(tmp_path, base, text))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
