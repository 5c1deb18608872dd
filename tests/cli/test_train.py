"""`trimtab train` as a person meets it: output, exit codes, Ctrl-C and going on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Result, Run
from tests.training import tiny
from tests.training.runs.run_files import REWARD, content, write

pytestmark = pytest.mark.train

INTERRUPTING = (
    REWARD
    + """
import os, signal
from pathlib import Path

def interrupting(completions, **columns):
    marker = Path(__file__).with_name("interrupted")
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGINT)
    return share_of_ones(completions)
"""
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny.make_base(folder)
    return folder


def test_train(run: Run, base: Path, tmp_path: Path) -> None:
    code, out, err = run("train", write(tmp_path, content("sft", base)))
    assert (code, err) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    share = 100 * result["update"]["num_changed"] / result["update"]["num_elements"]
    assert f"2 steps in {result['seconds']['train']:.1f} s: {share:.2f} % of 16,000" in out
    assert str(tmp_path / "out" / "model") in out


def test_dry_run_prints_the_settings_and_makes_nothing(
    run: Run, base: Path, tmp_path: Path
) -> None:
    code, out, err = run("train", write(tmp_path, content("grpo", base)), "--dry-run")
    assert code == 0
    lines = dict(re.split(r" +", line, maxsplit=1) for line in err.splitlines() if line[0] != " ")
    assert lines["run"] == f"grpo of {base}, seed 0"
    assert lines["trains"].startswith("1,599 of 16,000 parameters (9.99 %, mask random:0.1), by")
    assert f"9 rows of {tmp_path}" in " ".join(err.split())  # a long path begins a line
    assert lines["steps"] == "2, 4 sequences in each, 4 to a prompt; learning rate 0.01"
    assert lines["output"] == f"{tmp_path / 'out'} (new)"
    assert lines["writes"].startswith("model/ (the trained checkpoint), result.json")
    assert "the same command resumes" in err
    data = json.loads(out)
    assert data["settings"]["trainer"]["num_generations"] == 4
    assert data["mask"]["density"] == pytest.approx(0.1, abs=1e-3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "gpro"}, 'algorithm is "gpro": did you mean grpo?'),
        ({"trainer": {"max_step": 3}}, "no key trainer.max_step: did you mean trainer.max_steps?"),
        ({"mask": "none.safetensors"}, "none.safetensors"),
    ],
)
def test_problems_are_one_line(
    run: Run, base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    code, out, err = run("train", write(tmp_path, content("sft", base, **changes)))
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_keys_are_set_on_the_command_line(run: Run, base: Path, tmp_path: Path) -> None:
    path = write(tmp_path, content("sft", base))
    code, out, _ = run("train", path, "--set", "learning_rate=1e-4", "--set=seed=5", "--dry-run")
    assert code == 0
    data = json.loads(out)
    assert data["set"] == {"factors.learning_rate": 1e-4, "seed": 5}
    assert (data["settings"]["seed"], data["settings"]["trainer"]["learning_rate"]) == (5, 1e-4)
    code, out, err = run("train", path, "--set", "sead=5")
    assert (code, out) == (1, "")
    assert err == "trimtab: --set: there is no key sead: did you mean seed?\n"


def test_questions_of_a_run_whose_seed_was_set(run: Run, base: Path, tmp_path: Path) -> None:
    path = write(tmp_path, content("sft", base))
    asked = []
    for more in ([], ["--set", "seed=1"]):
        out = tmp_path / f"{len(more)}.json"
        ask = ["evaluate", base, "--run", path, *more, "--questions", "3", "-o", out]
        assert run(*ask)[0] == 0
        asked.append([row["prompt"] for row in json.loads(out.read_text())["questions"]["rows"]])
    assert asked[0] != asked[1]
    assert run("evaluate", base, "--task", "addition", "--set", "seed=1")[0] == 2


def test_no_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert run("train", path) == (1, "", f"trimtab: {path}: no such file\n")


@pytest.mark.parametrize(
    ("number", "code", "again", "message"),
    [("SIGINT", 130, " again", "interrupted"), ("SIGTERM", 143, "", "terminated")],
)
def test_interrupt_keeps_the_step_and_the_same_command_goes_on(
    run: Run, base: Path, tmp_path: Path, number: str, code: int, again: str, message: str
) -> None:
    values = content("grpo", base, reward={"function": "reward.py:interrupting"})
    halves, whole = (write(tmp_path / name, values) for name in ("halves", "whole"))
    for path in (halves, whole):
        (path.parent / "reward.py").write_text(INTERRUPTING.replace("SIGINT", number))
    (tmp_path / "whole" / "interrupted").touch()

    if number == "SIGINT":  # once in a process of its own, which takes seconds to load torch
        command = [str(Path(sys.executable).with_name("trimtab")), "train", str(halves)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        first = Result(done.returncode, done.stdout, done.stderr)
    else:
        first = run("train", halves)
    assert (first.code, first.out) == (code, "")
    text = f"trimtab: finishing the step and saving it; Ctrl-C{again} to stop now\n"
    assert first.err == f"{text}\ntrimtab: {message}: the same command resumes from step 1\n"
    code, _, err = run("train", halves, "--dry-run")
    assert code == 0
    assert "(the same command resumes from step 1)" in " ".join(err.split())
    for path in (halves, whole):
        code, _, err = run("train", path)
        assert (code, err) == (0, "")

    result = json.loads((tmp_path / "halves" / "out" / "result.json").read_text())
    assert result["resumed_from_step"] == 1
    weights = [path.parent / "out" / "model" / "model.safetensors" for path in (halves, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    code, _, err = run("train", whole, "--dry-run")
    assert code == 0
    assert "(training would be refused: output: " in " ".join(err.split())
    code, _, err = run("train", whole)
    assert code == 1
    assert "holds a finished run" in err
