"""What rewards, chat templates and questions see is what the file says, whatever Arrow would do."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from tests.training import tiny
from tests.training.runs.run_files import REWARDED, content, train, write
from trimtab.outputs import new_folder
from trimtab.training import runtime
from trimtab.training.evaluation.evaluate import evaluate
from trimtab.training.evaluation.questions import file_questions, reward_of
from trimtab.training.probes.engine import FISHER, probe
from trimtab.training.probes.losses import RewardLoss, read_data
from trimtab.training.runs.algorithms import ALGORITHMS
from trimtab.training.runs.exact_dataset import ExactDataset
from trimtab.training.runs.prepare import build_trainer, prepare
from trimtab.training.runs.settings import DataTable, RewardTable, Settings

pytestmark = pytest.mark.train

VALUES: tuple[tuple[Any, ...], ...] = (
    (7, 2.5, 7, None),
    ("7", "null", "[1]", '{"a": 1}'),
    (2**53 + 1, 2**70, -1, 0),
    (True, None, False, True),
    ("2026-01-31", "2026-01-31T12:00:00Z", "12:00", ""),
    ({"a": 1}, {"b": "x"}, {}, {"a": {"c": [1, "two", None]}}),
    ([1], ["two", None], [], [{"x": 0.1}, {"y": 1e-20}]),
    (1e-20, 0.12345678901234567, 1e300, 3),
)
COLUMNS = [f"column_{number}" for number in range(len(VALUES))]
ROWS = [
    {"prompt": f"{number}+1=", **dict(zip(COLUMNS, values, strict=True))}
    for number, values in enumerate(zip(*VALUES, strict=True))
]

REWARD = """
import json
from pathlib import Path

def kept(completions, prompts, **columns):
    names = [name for name in columns if name.startswith("column_")]
    with (Path(__file__).parent / "seen.jsonl").open("a") as file:
        for place, prompt in enumerate(prompts):
            row = {"prompt": prompt, **{name: columns[name][place] for name in names}}
            file.write(json.dumps(row) + "\\n")
    return [sum(map(ord, text)) % 7 / 7 for text in completions]
"""


def texts(rows: Any) -> set[str]:
    """Rows as JSON writes them, which tells 7 from 7.0 and true from 1."""
    return {json.dumps(row, sort_keys=True) for row in rows}


def seen(folder: Path) -> set[str]:
    return texts(map(json.loads, (folder / "seen.jsonl").read_text().splitlines()))


def given(folder: Path) -> Path:
    (folder / "seen.py").write_text(REWARD)
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exact") / "base"
    tiny.make_base(folder)
    return folder


@pytest.mark.parametrize("name", REWARDED)
def test_a_reward_in_training(name: str, base: Path, tmp_path: Path) -> None:
    given(tmp_path)
    changes: dict[str, Any] = {"max_steps": 4}
    if name == "ppo":
        changes["num_mini_batches"] = 1
    values = content(
        name,
        base,
        data={"file": "rows.jsonl"},
        reward={"function": "seen.py:kept"},
        samples={"num": 4, "max_completion_length": 3, "threshold": 0.0} if name == "rft" else None,
        trainer=changes,
    )
    train(write(tmp_path, values))
    assert seen(tmp_path) == texts(ROWS)


def test_a_reward_in_evaluation_and_in_a_probe(base: Path, tmp_path: Path) -> None:
    path = given(tmp_path)
    reward = RewardTable(function=str(tmp_path / "seen.py:kept"))
    asked = file_questions(path, reward_of(reward, tmp_path))
    evaluate([str(base)], questions=replace(asked, max_completion_length=2))
    assert seen(tmp_path) == texts(ROWS)
    (tmp_path / "seen.jsonl").unlink()
    data = read_data(DataTable(file=str(path)), "rewards", reward=reward, max_completion_length=3)
    with probe(str(base), FISHER, RewardLoss(2, 4, 2), data, folder=tmp_path):
        assert seen(tmp_path) == texts(ROWS)


TEMPLATE = (
    "{% for message in messages %}{% if message.name is defined %}3{% endif %}"
    "{% for call in message.tool_calls or [] %}"
    "{% for key in call.function.arguments %}4{% endfor %}{% endfor %}"
    "{{ message.content }}=\n{% endfor %}{% if add_generation_prompt %}+{% endif %}"
)


def calls(**arguments: Any) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": "add", "arguments": arguments}}]


def says(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHATS = [
    [says("system", "12"), says("user", "1+1", name="ann")],
    [says("user", "2+1"), says("assistant", "0", tool_calls=calls(a=1)), says("tool", "3")],
    [
        says("user", "2+2"),
        says("assistant", "1", tool_calls=calls(b=1.5, c="x")),
        says("tool", "4"),
    ],
    [says("user", "3")],
]
ANSWERS = [[says("assistant", "2", name="bob")], *([says("assistant", str(n))] for n in range(3))]


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo", "simpo"])
def test_a_chat_template_in_training(name: str, tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    with runtime.quiet(), new_folder(tmp_path / "base") as draft:
        tiny.model().save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    either = {"chosen": ANSWERS, "rejected": ANSWERS[::-1]}
    columns = {"completion": ANSWERS} if name == "sft" else either
    rows = [
        {"prompt": chat, **{column: item[place] for column, item in columns.items()}}
        for place, chat in enumerate(CHATS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = prepare(
        Settings.read(
            write(tmp_path, content(name, tmp_path / "base", data={"file": "rows.jsonl"}))
        )
    )
    with runtime.quiet():
        trainer, _ = build_trainer(run, run.mask, tmp_path / "work", [])
    wanted = sorted(tokenizer.apply_chat_template(chat, tokenize=False) for chat in _whole(rows))
    assert sorted(_trained_on(trainer.train_dataset, tokenizer)) == wanted


def _whole(rows: Sequence[Any]) -> list[Any]:
    """Each prompt with each of its completions."""
    return [row["prompt"] + row[one] for row in rows for one in row if one != "prompt"]


def _trained_on(dataset: Any, tokenizer: Any) -> list[str]:
    """The texts that a trainer made of its rows, without an end token."""
    columns = set(dataset.column_names)
    wholes: list[Callable[[Any], list[int]]]
    if "input_ids" in columns:
        wholes = [lambda row: row["input_ids"]]
    elif "chosen_input_ids" in columns:
        wholes = [lambda row: row["chosen_input_ids"], lambda row: row["rejected_input_ids"]]
    elif "chosen_ids" in columns:
        wholes = [
            lambda row: row["prompt_ids"] + row["chosen_ids"],
            lambda row: row["prompt_ids"] + row["rejected_ids"],
        ]
    else:
        wholes = [lambda row: row["prompt_ids"] + row["completion_ids"]]
    made = [tokenizer.decode(whole(row)) for row in dataset for whole in wholes]
    return [text.removesuffix("<eos>") for text in made]


def test_rows_are_given_back_as_they_were() -> None:
    rows = ROWS
    data = ExactDataset.of(rows)
    for place, row in enumerate(rows):
        assert json.dumps(data[place]) == json.dumps(row)
    assert list(data) == data.__getitems__([0, 1, 2, 3]) == rows
    assert list(data.select([3, 1])) == [rows[3], rows[1]]
    assert texts(data.shuffle(seed=1)) == texts(rows)
    assert list(pickle.loads(pickle.dumps(data))) == rows
    assert next(iter(DataLoader(data, batch_size=4, collate_fn=list))) == rows
    assert list(data.remove_columns(COLUMNS[1:])) == [
        {"prompt": row["prompt"], "column_0": row["column_0"]} for row in rows
    ]


def test_functions_that_are_mapped_see_rows_and_their_results_stay_exact() -> None:
    data = ExactDataset.of(ROWS)
    with runtime.quiet():
        made = data.map(lambda row: {"column_0": [row["column_0"], 1.0], "new": [1, 2]})
        assert [json.dumps(row["column_0"]) for row in made] == [
            json.dumps([row["column_0"], 1.0]) for row in ROWS
        ]
        assert texts(made.select_columns(COLUMNS[1:])) == texts(
            [{name: row[name] for name in COLUMNS[1:]} for row in ROWS]
        )
        assert made["new"][0] == [1, 2]
        batches = data.map(lambda rows: {"num": [len(rows["prompt"])] * 4}, batched=True)
        assert batches[0] == {**ROWS[0], "num": 4}
        few = made.filter(lambda row: row["column_0"][0] == 7)
        assert [row["prompt"] for row in few] == ["0+1=", "2+1="]


def test_algorithms_without_tokens_of_their_own_use_it() -> None:
    for algorithm in ALGORITHMS.values():
        if algorithm.takes_reward:
            assert texts(algorithm.dataset(ROWS, None, 0)) == texts(ROWS)


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "orpo", "simpo"])
def test_what_is_trained_on_is_not_what_trl_takes_other_columns_for(name: str) -> None:
    algorithm = ALGORITHMS[name]
    wanted = {column: column == "label" or "1" for column in algorithm.columns}
    other = ("input_ids", "labels", "text", "messages", "images", "assistant_masks", "answer")
    (row,) = algorithm.dataset([{**wanted, **dict.fromkeys(other, "x")}], None, 0)
    assert row == wanted
