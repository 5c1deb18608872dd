"""Held-out questions during a run: what is written and logged, and that training is the same."""

from __future__ import annotations

import json
import random
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import tiny_trainers
from tests.training.runs.run_files import after, content, train, write
from trimtab.errors import OutputExistsError, SettingsError
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.evaluation.questions import questions_of_run
from trimtab.training.folders import WEIGHTS, read_json
from trimtab.training.runs.execute import overview
from trimtab.training.runs.prepare import prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

RANDOM_REWARD = """
import random
import numpy

def how_lucky(completions, **columns):
    return [random.random() + numpy.random.random() for _ in completions]
"""


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["sft", "dpo", "grpo", "ppo", "prime"])
def test_weights_are_the_same_with_and_without(base: Base, tmp_path: Path, algorithm: str) -> None:
    """Dropout and sampling draw from the random state."""
    changes: dict[str, Any] = {"dropout": 0.3} if algorithm == "sft" else {}
    weights, histories = [], []
    for name, table in (("without", None), ("with", {"task": "addition", "every": 1})):
        values = content(algorithm, base[0], evaluate=table, **changes)
        result = train(write(tmp_path / name, values))
        weights.append((tmp_path / name / "out" / "model" / WEIGHTS).read_bytes())
        histories.append([log["loss"] for log in result["history"]])
    assert weights[0] == weights[1]
    assert histories[0] == histories[1]
    assert [row["step"] for row in rows_in(tmp_path / "with/out")] == [0, 1, 2]
    assert "evaluations" not in read_json(tmp_path / "without/out/result.json")


def test_a_reward_that_draws_random_numbers(base: Base, tmp_path: Path) -> None:
    """It is asked in training and in evaluations; those leave its random state as it was."""
    weights = []
    for name, table in (("without", None), ("with", {"file": "held-out.jsonl", "every": 1})):
        values = content("grpo", base[0], reward={"function": "lucky.py:how_lucky"}, evaluate=table)
        run = write(tmp_path / name, values)
        (run.parent / "lucky.py").write_text(RANDOM_REWARD)
        (run.parent / "held-out.jsonl").write_text('{"prompt": "2+3=", "answer": "5"}\n')
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 -- the state that old code draws from
        train(run)
        weights.append((tmp_path / name / "out" / "model" / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]


def test_means_over_several_steps(base: Base, tmp_path: Path) -> None:
    """An evaluation between two logs of the training leaves the latter as they are."""
    logged = []
    for name, table in (("without", None), ("with", {"task": "addition", "every": 1})):
        trainer = {"max_steps": 4, "logging_steps": 4}
        values = content("ppo", base[0], evaluate=table, trainer=trainer)
        (log,) = train(write(tmp_path / name, values))["history"]
        logged.append({key: value for key, value in log.items() if "seconds" not in key})
    assert logged[0] == logged[1]


@pytest.fixture(scope="module")
def kept(base: Base, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of five steps that was asked every second, and keeps its checkpoints."""
    trainer = {"max_steps": 5, "save_steps": 1}
    values = content("sft", base[0], mask="all", evaluate={"every": 2}, trainer=trainer)
    run = write(tmp_path_factory.mktemp("kept"), values)
    return run, train(run)


def test_figures(kept: tuple[Path, dict[str, Any]]) -> None:
    run, result = kept
    rows = rows_in(run.parent / "out")
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    for row, figures in zip(rows, result["evaluations"], strict=True):
        assert row["num_questions"] == 32
        assert row["num_right"] == len(row["right"])
        assert row["accuracy"] == row["num_right"] / 32
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        assert row.pop("seconds") > 0
        row.pop("right")
        assert figures == row
    assert [log["step"] for log in result["history"]] == [1, 2, 3, 4, 5]
    settings = read_json(run.parent / "out/resolved.json")["settings"]["evaluate"]
    assert (settings["every"], settings["batch_size"]) == (2, 32)
    assert settings["questions"]["source"] == "addition"


def test_the_last_evaluation_is_that_of_the_saved_model(
    kept: tuple[Path, dict[str, Any]], base: Base
) -> None:
    run, _ = kept
    rows = rows_in(run.parent / "out")
    questions = questions_of_run(Settings.read(run))
    models = [str(base[0]), str(run.parent / "out/model")]
    evaluated = evaluate(models, questions=questions).models
    for row, model in zip((rows[0], rows[-1]), evaluated, strict=True):
        assert model.answers is not None
        right = [i for i, answer in enumerate(model.answers.answers) if answer.correct]
        assert row["right"] == right


def test_figures_are_logged_with_their_step(kept: tuple[Path, dict[str, Any]]) -> None:
    run, _ = kept
    state = read_json(run.parent / "out/checkpoints/checkpoint-5/trainer_state.json")
    logs = [log for log in state["log_history"] if "eval_accuracy" in log]
    rows = rows_in(run.parent / "out")
    assert [log["step"] for log in logs] == [0, 2, 4, 5]
    assert [log["eval_accuracy"] for log in logs] == [row["accuracy"] for row in rows]
    assert [log["eval_num_right"] for log in logs] == [row["num_right"] for row in rows]
    assert all(log["eval_runtime"] > 0 and "loss" not in log for log in logs)


def test_a_resumed_run_has_each_step_once(
    kept: tuple[Path, dict[str, Any]], base: Base, tmp_path: Path
) -> None:
    run, _ = kept
    again = write(tmp_path, {**_values(run), "model": str(base[0])})
    with pytest.raises(KeyboardInterrupt):
        train(again, stop=after(2))
    assert [row["step"] for row in rows_in(tmp_path / "out")] == [0, 2]
    with (tmp_path / "out/evaluations.jsonl").open("a") as file:  # evaluated, killed before saving
        file.write('{"step": 4}\n{"st')
    assert train(again)["resumed_from_step"] == 2
    resumed, whole = (rows_in(path.parent / "out") for path in (again, run))
    for row in (*resumed, *whole):
        row.pop("seconds")
    assert resumed == whole


def test_other_questions_are_another_run(base: Base, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        values = content("sft", base[0], evaluate={"every": 1})
        train(write(tmp_path, values), stop=after(1))
    for table in ({"every": 1, "questions": 3}, {"every": 2}, None):
        other = write(tmp_path, content("sft", base[0], evaluate=table))
        with pytest.raises(OutputExistsError, match="evaluate"):
            train(other)


def test_questions_of_a_file(base: Base, tmp_path: Path) -> None:
    """Judged by the reward of the run, or as the table says; without training data."""
    reward = {"kind": "regex", "pattern": r"(\d+)", "column": "right"}
    tables = ({"file": "more.jsonl"}, {"file": "more.jsonl", "kind": "exact", "column": "right"})
    for table in tables:
        values = content("grpo", base[0], reward=reward, evaluate={"every": 1, **table})
        run = write(tmp_path, values)
        lines = [json.dumps({"prompt": f"{a}+1=", "right": str(a + 1)}) for a in range(12)]
        (tmp_path / "more.jsonl").write_text("\n".join(lines))
        (tmp_path / "questions.jsonl").write_text("\n".join(lines[:9]))
        held_out = prepare(Settings.read(run)).held_out
        assert held_out is not None
        assert (len(held_out), held_out.num_seen) == (3, 9)
        assert held_out.reward.record["kind"] == table.get("kind", "regex")
        assert held_out.answers == ("10", "11", "12")


OFFLINE = ("sft", "dpo", "orpo", "kto", "simpo")

PAIR = {"prompt": "7+1=", "chosen": "8\n", "rejected": "9\n"}
ROWS = {"sft": {"prompt": "7+1=", "completion": "8\n"}, **dict.fromkeys(OFFLINE[1:], PAIR)}


def write_rows(run: Path, algorithm: str) -> None:
    """Training data of eight rows, and held-out data of four, two of them trained on."""
    lines = [json.dumps({**ROWS[algorithm], "prompt": f"{a}+1="}) for a in range(9)]
    (run.parent / "train.jsonl").write_text("\n".join(lines[:8]))
    (run.parent / "test.jsonl").write_text("\n".join([*lines[:2], lines[8], lines[8]]))


@pytest.mark.parametrize("algorithm", OFFLINE)
def test_the_loss_on_held_out_rows(base: Base, tmp_path: Path, algorithm: str) -> None:
    """Without those that are trained on; the trained weights are the same."""
    weights = []
    for name, table in (("without", None), ("with", {"every": 1, "data": "test.jsonl"})):
        values = content(algorithm, base[0], data={"file": "train.jsonl"}, evaluate=table)
        run = write(tmp_path / name, values)
        write_rows(run, algorithm)
        result = train(run)
        weights.append((run.parent / "out/model" / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]
    assert prepare_again(run).held_out_rows is not None
    assert [row["prompt"] for row in prepare_again(run).held_out_rows.rows] == ["8+1="] * 2
    rows = rows_in(run.parent / "out")
    losses = [row["loss"] for row in rows]
    assert len({*losses}) == 3 and all(loss > 0 for loss in losses)
    assert [one["loss"] for one in result["evaluations"]] == losses
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert {row["num_questions"] for row in rows} == {None}


def prepare_again(run: Path) -> Any:
    file = Settings.read(run)
    return prepare(replace(file, output=f"{file.output}-again"))


def test_the_loss_is_that_of_the_model(base: Base, tmp_path: Path) -> None:
    """Of the base, before the first step: the mean over the tokens of the completion."""
    import torch
    from transformers import AutoTokenizer

    table = {"every": 1, "data": "test.jsonl", "task": "addition"}
    values = content("sft", base[0], data={"file": "train.jsonl"}, evaluate=table)
    run = write(tmp_path, values)
    write_rows(run, "sft")
    train(run)
    tokenizer = AutoTokenizer.from_pretrained(base[0])
    prompt, answer = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("8+1=", "8\n")
    )
    ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        loss = float(tiny_trainers.model(base[0])(input_ids=ids, labels=labels).loss)
    row = rows_in(tmp_path / "out")[0]
    assert row["loss"] == pytest.approx(loss, rel=1e-3)
    assert row["num_questions"] == 32


def test_the_best_model_by_its_held_out_loss(base: Base, tmp_path: Path) -> None:
    """`load_best_model_at_end` of the Trainer, with its record."""
    trainer = {
        "max_steps": 4,
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "load_best_model_at_end": True,
    }
    table = {"every": 1, "data": "test.jsonl"}
    values = content("sft", base[0], data={"file": "train.jsonl"}, evaluate=table, trainer=trainer)
    run = write(tmp_path, values)
    write_rows(run, "sft")
    train(run)
    rows = rows_in(tmp_path / "out")[1:]
    best = min(rows, key=lambda row: row["loss"])["step"]
    record = read_json(tmp_path / "out/model/trimtab.json")
    assert record["step"] == best


def test_a_loss_that_does_not_exist(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("grpo", base[0], evaluate={"every": 1, "data": "a.jsonl"}))
    with pytest.raises(SettingsError, match="grpo trains on samples, and has no loss on given"):
        prepare(Settings.read(run))
    values = content("sft", base[0], evaluate={"every": 1, "data": "test.jsonl"})
    run = write(tmp_path, {**values, "data": {"file": "test.jsonl"}})
    write_rows(run, "sft")
    with pytest.raises(SettingsError, match=r"test\.jsonl: every row is in the training data"):
        prepare(Settings.read(run))


def test_what_is_refused(base: Base, tmp_path: Path) -> None:
    run = write(tmp_path, content("grpo", base[0], evaluate={"every": 1}))
    with pytest.raises(SettingsError, match=r"evaluate: the run trains on questions\.jsonl: set"):
        prepare(Settings.read(run))


def test_the_overview_says_so(kept: tuple[Path, dict[str, Any]]) -> None:
    text = " ".join(overview(prepare(Settings.read(kept[0]))).split())
    assert "tests 32 questions of addition, at the start, every 2 steps, and last" in text
    assert "evaluations.jsonl (the evaluations during training)" in text


def _values(run: Path) -> dict[str, Any]:
    return tomllib.loads(run.read_text())
