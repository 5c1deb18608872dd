"""What a probe looks at: the same files, tasks and rewards as a run."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from trimtab.errors import SettingsError
from trimtab.training.addition import split_questions
from trimtab.training.probes.losses import read_data, row_order
from trimtab.training.runs.settings import DataTable, RewardTable

pytestmark = pytest.mark.train


@pytest.fixture
def file(tmp_path: Path) -> DataTable:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{a}+1=", "completion": f"{a + 1}", "answer": a + 1} for a in range(4)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DataTable(file=str(path))


def test_the_questions_of_a_run_with_this_seed() -> None:
    data = read_data(DataTable(task="addition"), "completions", seed=3)
    assert [(row["prompt"], row["completion"]) for row in data.rows.rows] == [
        (question.prompt, question.gold) for question in split_questions(3).train
    ]
    assert (data.reward, data.stop, data.max_completion_length) == (None, "\n", 3)
    judged = read_data(DataTable(task="addition"), "rewards", max_completion_length=9, stop="+")
    assert judged.reward is not None
    assert judged.reward.function(completions=["7\n", "8"], answer=[7, 7]) == [1.0, 0.0]
    assert (judged.stop, judged.max_completion_length) == ("+", 9)
    assert judged.describe()["reward"] == {"task": "addition"}


def test_a_file(file: DataTable) -> None:
    data = read_data(file, "completions", stop="\n")
    assert len(data.rows.rows) == 4
    assert (data.reward, data.stop, data.max_completion_length) == (None, "\n", 256)
    judged = read_data(file, "rewards", reward=RewardTable(kind="exact"))
    assert judged.reward is not None
    assert judged.reward.function(completions=["2"], answer=[2]) == [1.0]


@pytest.mark.gym
def test_a_task_of_reasoning_gym() -> None:
    table = DataTable(task="reasoning_gym:chain_sum", size=3, chat=True)
    data = read_data(table, "rewards", seed=1)
    assert data.rows.has_messages
    assert len(data.rows.rows) == 3
    assert data.reward is not None


def test_what_cannot_be_read(file: DataTable) -> None:
    with pytest.raises(SettingsError, match="there is no reward to judge"):
        read_data(file, "rewards")
    with pytest.raises(SettingsError, match='there is no task "additoin": expected addition or'):
        read_data(DataTable(task="additoin"), "prompts")
    with pytest.raises(SettingsError, match="no such file"):
        read_data(DataTable(file="/not/there.jsonl"), "prompts")


def test_rows_come_again_in_another_order() -> None:
    first, second = list(islice(row_order(50, 0), 50)), list(islice(row_order(50, 0), 50, 100))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == list(islice(row_order(50, 0), 50))
    assert first != list(islice(row_order(50, 1), 50))
