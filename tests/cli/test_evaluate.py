"""`trimtab evaluate` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.training import tiny
from trimtab.training.addition import split_questions

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trimtab.training import runtime

    runtime.start()
    folder = tmp_path_factory.mktemp("tiny") / "base"
    tiny.make_base(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    rows = [{"prompt": f"{a}+1=", "answer": str(a + 1), "digits": 1 + (a > 8)} for a in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_table(run: Run, base: Path) -> None:
    code, out, err = run("evaluate", base, "--task", "addition", "--samples", 2)
    assert (code, err) == (0, "")
    assert out.startswith("addition: 32 questions.\nAsked greedily, and 2 samples of each")
    assert str(base) in out
    assert "always “4”" in out
    assert "Difference" not in out


def test_json_is_the_same_on_stdout_and_in_a_file(run: Run, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    command = ("evaluate", base, "--task", "addition", "--questions-seed", 3, "--samples", 2)
    code, out, err = run(*command, "--json", "-o", path)
    assert (code, err) == (0, f"wrote {path}\n")
    data = json.loads(out)
    assert data == json.loads(path.read_text())
    assert data["provenance"]["command"].startswith(f"trimtab evaluate {base}")
    prompts = [row["prompt"] for row in data["questions"]["rows"]]
    assert prompts == [question.prompt for question in split_questions(3).heldout]
    again = json.loads(run(*command, "--json").out)
    assert again["models"] == data["models"]
    code, out, err = run("report", path)
    assert (code, err) == (0, "")
    assert "addition: 32 questions" in out


def test_an_html_report(run: Run, base: Path, tmp_path: Path) -> None:
    path, page = tmp_path / "e.json", tmp_path / "e.html"
    code, _, err = run("evaluate", base, "--task", "addition", "-o", path, "--html", page)
    assert (code, err) == (0, f"wrote {path}\nwrote {page}\n")
    drawn = tmp_path / "again.html"
    assert run("report", path, "-o", drawn).code == 0
    assert drawn.read_text() == page.read_text()


def test_a_file_by_level(run: Run, base: Path, data: Path) -> None:
    command = ("evaluate", base, "--data", data, "--by", "digits", "--max-tokens", 3)
    code, out, err = run(*command, "--pattern", r"^(\d+)", "--stop", "\n", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert [(row["level"], row["num_questions"]) for row in told["by_level"]] == [(1, 9), (2, 3)]
    record = told["questions"]["record"]
    assert record["reward"] == {"kind": "regex", "column": "answer", "pattern": r"^(\d+)"}
    assert (record["stop"], record["max_completion_length"]) == ("\n", 3)
    few = json.loads(run(*command, "--questions", 4, "--json").out)
    assert few["questions"]["num_questions"] == 4
    assert few["questions"]["record"]["reward"]["kind"] == "exact"


def test_a_reward_function(run: Run, base: Path, data: Path, tmp_path: Path) -> None:
    function = tmp_path / "mine.py"
    function.write_text("def all_right(completions, **_):\n    return [1] * len(completions)\n")
    code, out, _ = run(
        "evaluate", base, "--data", data, "--reward", f"{function}:all_right", "--json"
    )
    assert code == 0
    assert json.loads(out)["models"][0]["answers"]["greedy_accuracy"] == 1


@pytest.mark.gym
def test_a_task_of_reasoning_gym(run: Run, base: Path) -> None:
    code, out, err = run(
        *("evaluate", base, "--task", "reasoning_gym:chain_sum", "--questions", 5),
        *("--config", "max_terms=2", "--config", "max_digits=1", "--max-tokens", 2, "--json"),
        *("--by", "num_terms"),
    )
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert data["questions"]["record"]["config"]["max_terms"] == 2
    assert [row["level"] for row in data["by_level"]] == [2]


def test_a_run(run: Run, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(
        f'algorithm = "grpo"\nmodel = "{base}"\noutput = "out"\nmask = "none"\nseed = 4\n'
        '[data]\ntask = "addition"\n'
    )
    code, out, _ = run("evaluate", base, "--run", path, "--json")
    assert code == 0
    assert json.loads(out)["questions"]["record"]["seed"] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "addition", "--data", "q.jsonl"], "--task cannot be combined"),
        (["--questions", "3", "--by", "x"], "--by, --questions needs --run, --task or --data"),
        (["--data", "q.jsonl", "--config", "a=1"], "--config is for --task"),
        (["--task", "addition", "--verifier", "exact"], "--verifier is for --data alone"),
        (["--run", "r.toml", "--data", "q.jsonl", "--column", "a"], "--column is for --data alone"),
        (["--task", "reasoning_gym:x", "--config", "a"], "--config a: expected KEY=VALUE"),
        (
            ["--data", "q.jsonl", "--reward", "a.py:f", "--pattern", "a"],
            "--reward cannot be combined",
        ),
        (["--task", "addition", "--suite-folder", "."], "--suite-limit are for --suite"),
        (["--task", "addition", "--samples", "-1"], "--samples"),
        ([], "MODEL..."),
    ],
)
def test_wrong_usage(run: Run, options: list[str], message: str) -> None:
    code, out, err = run("evaluate", *(["m"] if options else []), *options)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to evaluate"),
        (["--task", "subtraction"], 'no task "subtraction": expected addition or'),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
        (["--run", "none.toml"], "none.toml: no such file"),
        (["--task", "addition", "--by", "size"], "no levels size"),
        (["--task", "addition", "--text", "t.txt"], "t.txt is for comparison with a base"),
        (["--task", "addition", "--max-tokens", "9000"], "too many tokens"),
    ],
)
def test_problems_are_one_line(run: Run, base: Path, options: list[str], message: str) -> None:
    code, out, err = run("evaluate", base, *options)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


def test_outputs_are_not_overwritten(run: Run, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    path.write_text("mine")
    code, _, err = run("evaluate", base, "--task", "addition", "-o", path)
    assert code == 1
    assert "add --force" in err
    assert path.read_text() == "mine"


def test_interrupt_leaves_nothing_half_written(
    run: Run, base: Path, data: Path, tmp_path: Path
) -> None:
    """Ctrl-C while answers are judged."""
    reward = tmp_path / "slow.py"
    reward.write_text(
        "import os, signal\n\n"
        "def slow(completions, **_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    output = tmp_path / "e.json"
    code, out, err = run(
        "evaluate", base, "--data", data, "--reward", f"{reward}:slow", "-o", output
    )
    assert (code, out) == (130, "")
    assert err.strip() == (
        "trimtab: interrupted: no answers are kept: the same command starts over"
    )
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".e.json", "e.json"))]
