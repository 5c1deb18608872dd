"""Rows from files that people wrote, and of the built-in task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from trimtab.errors import SettingsError
from trimtab.training.runs.data import read_rows
from trimtab.training.runs.rewards import Reward, comparison

SFT = ("prompt", "completion")
GOOD = {"prompt": "1+1=", "completion": "2"}
SAID = [{"role": "user", "content": "1+1?"}]


def write(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_rows_and_record(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "level": 1}, "", {**GOOD, "level": 2})
    rows = read_rows(path, SFT)
    assert [row["level"] for row in rows.rows] == [1, 2]
    assert rows.describe() == {
        "source": str(path),
        "num_rows": 2,
        "columns": ["prompt", "completion", "level"],
        "xxh3_128": xxhash.xxh3_128_hexdigest(path.read_bytes()),
    }


def test_messages(tmp_path: Path) -> None:
    row = {"prompt": SAID, "completion": SAID}
    assert list(read_rows(write(tmp_path, row, row), SFT).rows) == [row, row]


@pytest.mark.parametrize("text", ["prompt,answer\n1+1=,2\n", json.dumps([GOOD]), "[\n{}\n]"])
def test_other_formats_are_told_what_is_expected(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\. Expected JSON Lines: a JSON object on each line"):
        read_rows(write(tmp_path, text), SFT)


def test_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"prompt": "a\u2028b\x85", "completion": "c"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert list(read_rows(path, SFT).rows) == [row]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        (["", " "], "no rows"),
        (["{"], "line 1 is not JSON"),
        (["[" * 100_000], "line 1 is not JSON"),
        ([GOOD, "3"], "line 2 is a int, expected a JSON object"),
        ([{"prompt": "a"}], "line 1 lacks completion"),
        ([GOOD, {**GOOD, "x": 1}], "line 2 and line 1 do not both have x"),
        ([{**GOOD, "prompt": 3}], "line 1 has a prompt that is neither a text nor a list of mess"),
        ([{**GOOD, "prompt": []}], "line 1 has a prompt that is neither"),
        ([{**GOOD, "prompt": [{"role": "user"}]}], "line 1 has a prompt that is neither"),
        ([{**GOOD, "prompt": SAID}], "line 1 mixes texts with messages"),
        ([GOOD, {**GOOD, "prompt": SAID}], "line 2 has a prompt of another kind than the first"),
        ([{**GOOD, "x": 1}, {**GOOD, "x": "1"}], "line 2 has a x of another type than the first"),
        (['{"prompt": "a", "prompt": "b"}'], "line 1 is not JSON (the key prompt occurs twice)"),
        (
            [GOOD, '{"prompt": "\\ud83d", "completion": "a"}'],
            "line 2 is not JSON (an unpaired surr",
        ),
        (["", GOOD, {**GOOD, "x": 1}], "line 3 and line 2 do not both have x"),
        ([{**GOOD, "x": 1}, {**GOOD, "x": True}], "line 2 has a x of another type than the first"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.file: .*data\.jsonl: ") as error:
        read_rows(write(tmp_path, *rows), SFT)
    assert message in str(error.value)


def test_several_problems_are_told_together_and_briefly(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        read_rows(write(tmp_path, *["{"] * 500), SFT)
    assert "line 2 is not JSON" in str(error.value)
    assert len(str(error.value)) < 1500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        read_rows(tmp_path / "none", SFT)
    with pytest.raises(SettingsError, match="found a folder"):
        read_rows(tmp_path, SFT)
    path = tmp_path / "latin"
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_rows(path, SFT)


def test_numbers_and_missing_values_share_a_column(tmp_path: Path) -> None:
    values = (1, 2.5, None, 3)
    rows = read_rows(write(tmp_path, *({**GOOD, "x": value} for value in values)), SFT)
    assert [row["x"] for row in rows.rows] == list(values)


def test_the_first_row_tells_which_columns_a_file_has(tmp_path: Path) -> None:
    pair = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}
    either = (("prompt", "completion", "label"), ("prompt", "chosen", "rejected"))
    assert list(read_rows(write(tmp_path, pair, pair), *either).rows) == [pair, pair]
    with pytest.raises(SettingsError, match="line 2 lacks rejected"):
        read_rows(write(tmp_path, pair, {"prompt": "a", "chosen": "b"}), *either)
    with pytest.raises(SettingsError, match="line 1 lacks label"):
        read_rows(write(tmp_path, GOOD), *either)
    with pytest.raises(SettingsError, match="line 1 has a label that is neither true nor false"):
        read_rows(write(tmp_path, {**GOOD, "label": 1}), *either)


def test_a_byte_order_mark_and_lines_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n")
    assert list(read_rows(path, SFT).rows) == [GOOD]


def answers(tmp_path: Path, *values: Any, reward: Reward | None = None) -> Path:
    path = write(tmp_path, *({"prompt": "1+1=", "answer": value} for value in values))
    read_rows(path, ("prompt",), reward=reward or comparison("exact", "answer", None))
    return path


def test_answers_that_nothing_can_be_compared_with(tmp_path: Path) -> None:
    answers(tmp_path, 7, 2.5, 2**70, -1)
    values = (7, None, 2.5, True, None, ["7"], float("nan"), {"a": 1})
    with pytest.raises(SettingsError) as error:
        answers(tmp_path, *values)
    wanted = "expected the text or number of a correct completion"
    assert str(error.value).startswith(f"data.file: {tmp_path / 'data.jsonl'}: line 4 has")
    for entry in (
        f"in lines 2, 5 answer is null, {wanted}",
        f"in line 4 answer is true, {wanted}",
    ):
        assert entry in str(error.value)
    with pytest.raises(SettingsError, match="in line 1 answer is a list, expected"):
        answers(tmp_path, ["7"])
    with pytest.raises(SettingsError, match="in line 1 answer is a float that is not finite"):
        answers(tmp_path, float("nan"))


def test_columns_that_rewards_are_called_with_anyway(tmp_path: Path) -> None:
    path = write(tmp_path, {"prompt": "1+1=", "answer": "2", "prompts": "x", "images": []})
    read_rows(path, ("prompt",))
    with pytest.raises(
        SettingsError, match=r"jsonl: rename images, prompts: trainers and rewards use"
    ):
        read_rows(path, ("prompt",), reward=comparison("exact", "answer", None))


@pytest.mark.train
def test_answers_that_are_no_mathematics(tmp_path: Path) -> None:
    math = comparison("math", "answer", None)
    answers(tmp_path, "12", "\\frac{1}{2}", "$x$", reward=math)
    with pytest.raises(SettingsError, match="in lines 2, 3 answer cannot be parsed by math-v"):
        answers(tmp_path, "12", "", "$", reward=math)
