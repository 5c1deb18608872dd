"""What is kept of a probe under way: it goes on with the very same alone, whole line by line."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import pytest

from tests.training.robustness.results import make_probe
from trimtab.errors import OutputExistsError, ResultFormatError
from trimtab.training.perturbation.probe import Unfinished, key_of

CELLS = make_probe(num_seeds=1).cells
PROBED: dict[str, Any] = {"mask": "a" * 32, "settings": {"levels": [0.1, 1.0], "dtype": "bf16"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two cells."""
    path = tmp_path / "new" / "r.partial.jsonl"
    begun = open_file(path)
    for cell in CELLS[:2]:
        begun.add(cell)
    return path


def open_file(path: Path | None, num_questions: int | None = 8, **changes: Any) -> Unfinished:
    return Unfinished(path, PROBED | changes, map(key_of, CELLS), num_questions)


def test_cells_come_back_to_the_bit(path: Path) -> None:
    assert list(open_file(path).cells.values()) == list(CELLS[:2])
    exact = CELLS[2].__class__(**{**CELLS[2].__dict__, "kl": pi / 7, "relative_norm": None})
    open_file(path).add(exact)
    assert open_file(path).cells[key_of(exact)] == exact
    assert len(path.read_bytes().splitlines()) == 1 + 3


def test_in_memory_alone() -> None:
    begun = open_file(None)
    begun.add(CELLS[0])
    assert begun.cells == {key_of(CELLS[0]): CELLS[0]}


def test_a_line_that_was_cut_short_is_measured_again(path: Path) -> None:
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for num_lost in range(1, len(last) + 1):
        path.write_bytes(whole[:-num_lost])
        again = open_file(path)
        assert list(again.cells) == [key_of(CELLS[0])]
        again.add(CELLS[1])
        assert path.read_bytes() == whole


def test_a_file_that_never_got_its_first_line(path: Path) -> None:
    whole = path.read_bytes()
    opening = whole.splitlines(keepends=True)[0]
    for content in (b"", opening[:-1], opening[:7]):
        path.write_bytes(content)
        assert not open_file(path).cells
        assert path.read_bytes() == opening


def test_another_probe_is_refused_and_the_file_stays(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(OutputExistsError) as error:
        open_file(path, mask="b" * 32, settings={"levels": [0.1], "dtype": "bf16"}, more=1)
    for message in (
        f"{path} holds the finished part of a probe with mask='{'a' * 32}' (now '{'b' * 32}'), ",
        "settings.levels=[0.1, 1.0] (now [0.1])",
        "more=None (now 1)",
        "delete the file to start over",
    ):
        assert message in str(error.value)
    assert "dtype" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0][:-1], *lines[1:]],
        lambda lines: [lines[0], b"{", *lines[2:]],
        lambda lines: [lines[0], b"\xff\x00", *lines[2:]],
        lambda lines: [lines[0], b"[]", *lines[2:]],
        lambda lines: [lines[0], lines[1].replace(b'"kl": ', b'"kl": -NaN')],
        lambda lines: [lines[0], lines[1].replace(b'"kl": ', b'"KL": ')],
        lambda lines: [lines[0], lines[1].replace(b'"num_correct": 4', b'"num_correct": 9')],
        lambda lines: [lines[0], lines[1].replace(b'"seed": 0', b'"seed": 7')],
        lambda lines: [lines[0], lines[1].replace(b'"arm": "mask"', b'"arm": ["mask"]')],
    ],
)
def test_damage_is_one_sentence(path: Path, damage: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = path.read_bytes().splitlines()
    assert damage(lines) != lines
    path.write_bytes(b"".join(line + b"\n" for line in damage(lines)))
    with pytest.raises(ResultFormatError, match=r"a damaged one .*: delete the file to start over"):
        open_file(path)


@pytest.mark.parametrize(
    "content", [b"{}\n", b"3\n", b"a note", b'{"format": "trimtab.robustness"}\n', b"\n\n"]
)
def test_the_file_of_a_stranger_stays_as_it_is(path: Path, content: bytes) -> None:
    """It was emptied if it had no line, and deleted in the end."""
    path.write_bytes(content)
    with pytest.raises(OutputExistsError, match=r"is in the way: .* give -o another name"):
        open_file(path)
    assert path.read_bytes() == content


def test_answers_where_none_are_asked(path: Path) -> None:
    with pytest.raises(ResultFormatError, match="answers, or questions, are missing"):
        open_file(path, num_questions=None)


def test_the_first_line_says_what_it_is(path: Path) -> None:
    opening = json.loads(path.read_bytes().splitlines()[0])
    assert opening == {"format": "trimtab.robustness.unfinished", "format_version": 1, **PROBED}
