"""Rows from files that people wrote, and of the built-in task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from trimtab.errors import SettingsError
from trimtab.training.addition import split_questions
from trimtab.training.runs.datasets import addition_rows, read_rows

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


def test_texts_with_line_separators_of_unicode(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    row = {"prompt": "a\u2028b\x85", "completion": "c"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert list(read_rows(path, SFT).rows) == [row]


@pytest.mark.parametrize(
    ("rows", "told"),
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
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, rows: list[Any], told: str) -> None:
    with pytest.raises(SettingsError, match=r"data\.file: .*data\.jsonl: ") as error:
        read_rows(write(tmp_path, *rows), SFT)
    assert told in str(error.value)


def test_several_problems_are_told_together_and_briefly(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        read_rows(write(tmp_path, *["{"] * 500), SFT)
    assert "line 2 is not JSON" in str(error.value)
    assert len(str(error.value)) < 1500


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        read_rows(tmp_path / "none", SFT)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_rows(tmp_path, SFT)
    path = tmp_path / "latin"
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        read_rows(path, SFT)


def test_addition_has_the_columns_asked_for_and_follows_the_seed() -> None:
    questions = split_questions(3).train
    rows = addition_rows(("prompt", "chosen", "rejected"), 3)
    assert rows.ends_with_line
    assert [row["prompt"] for row in rows.rows] == [question.prompt for question in questions]
    for row, question in zip(rows.rows, questions, strict=True):
        assert row["chosen"] == question.gold
        assert row["rejected"] != question.gold
        assert 0 <= int(row["rejected"]) <= 18
    assert addition_rows(("prompt", "chosen", "rejected"), 3) == rows
    assert addition_rows(("prompt", "chosen", "rejected"), 4).digest != rows.digest
    answers = addition_rows(("prompt", "completion", "answer"), 3).rows
    assert [row["answer"] for row in answers] == [question.answer for question in questions]
    assert [row["completion"] for row in answers] == [question.gold for question in questions]
