"""Rewards: what they score, and that a bad one is never passed on to training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import SettingsError
from trimtab.training.runs.rewards import Reward, comparison, load_function


def score(reward: Reward, completions: list[Any], **columns: Any) -> list[float]:
    return reward.function(completions=completions, prompts=["" for _ in completions], **columns)


def script(tmp_path: Path, text: str) -> Path:
    (tmp_path / "reward.py").write_text(text)
    return tmp_path


def test_exact() -> None:
    reward = comparison("exact", "right", None)
    assert reward.columns == ("right",)
    assert score(reward, [" 12\n", "1", "12."], right=[12, "12", "12"]) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("pattern", "completion", "expected"),
    [
        (r"answer: (\d+)", "so the answer: 12.", 1.0),
        (r"answer: (\d+)", "so the answer: 13.", 0.0),
        (r"answer: (\d+)", "12", 0.0),
        (r"\d+", "it is 12 or 13", 1.0),
        (r"<a>(.*)</a>", "<a>\n 12\n</a>", 1.0),
        (r"x(\d+)?", "x", 0.0),
    ],
)
def test_regex(pattern: str, completion: str, expected: float) -> None:
    assert score(comparison("regex", "answer", pattern), [completion], answer=["12"]) == [expected]


def test_messages_are_scored_by_their_last() -> None:
    completion = [{"role": "assistant", "content": "12"}]
    assert score(comparison("exact", "answer", None), [completion], answer=["12"]) == [1.0]


@pytest.mark.train
@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("so it is $\\frac{1}{2}$", "0.5", 1.0),
        ("so it is \\boxed{\\frac{2}{4}}.", "\\frac{1}{2}", 1.0),
        ("first 3, then \\boxed{4}", "4", 1.0),
        ("the answer is 12", 12, 1.0),
        ("$x^2 + 2x + 1$", "$(x+1)^2$", 1.0),
        ("$\\{2, 1\\}$", "\\{1, 2\\}", 1.0),
        ("the answer is 13", 12, 0.0),
        ("no number", "12", 0.0),
        ("", "12", 0.0),
        ("$$$ \\frac{1}{", "12", 0.0),
    ],
)
def test_math(completion: str, answer: str | int, expected: float) -> None:
    assert score(comparison("math", "answer", None), [completion], answer=[answer]) == [expected]


@pytest.mark.train
def test_an_answer_that_is_no_mathematics_is_not_taken_for_a_wrong_completion() -> None:
    with pytest.raises(SettingsError, match="cannot parse the answer ''"):
        score(comparison("math", "answer", None), ["12"], answer=[""])


@pytest.mark.parametrize(
    ("kind", "pattern", "message"),
    [
        ("regex", None, "needs a pattern"),
        ("exact", "a", 'is for kind = "regex"'),
        ("regex", "(", "not a regular expression"),
    ],
)
def test_pattern(kind: str, pattern: str | None, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        comparison(kind, "answer", pattern)


def test_function_of_a_file(tmp_path: Path) -> None:
    text = """
from dataclasses import dataclass

@dataclass
class Weight:
    one: float = 0.5

def reward(completions, prompts, answer, **columns):
    return [Weight().one * (text == right) for text, right in zip(completions, answer)]
"""
    reward = load_function("reward.py:reward", script(tmp_path, text))
    assert score(reward, ["a", "b"], answer=["a", "a"]) == [0.5, 0.0]
    assert reward.function.__name__ == "reward"
    assert reward.record["function"] == "reward.py:reward"
    changed = load_function("reward.py:reward", script(tmp_path, text + "\n"))
    assert changed.record != reward.record


@pytest.mark.parametrize(
    ("named", "text", "message"),
    [
        ("reward.py", "", 'is "reward.py", expected "file.py:name"'),
        ("reward.py:a b", "", 'expected "file.py:name"'),
        (":reward", "", 'expected "file.py:name"'),
        ("none.py:reward", "", "none.py: no such file"),
        (".:reward", "", "found a folder"),
        ("reward.py:other", "reward = 1", "has no function other"),
        ("reward.py:reward", "reward = 1", "has no function reward"),
        ("reward.py:reward", "import nothing_of_this_name", "fails: ModuleNotFoundError"),
        ("reward.py:reward", "def", "fails: SyntaxError"),
    ],
)
def test_function_that_cannot_be_loaded(
    tmp_path: Path, named: str, text: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=r"reward\.function") as error:
        load_function(named, script(tmp_path, text))
    assert message in str(error.value)


def test_a_file_that_is_not_python(tmp_path: Path) -> None:
    (tmp_path / "reward.txt").write_text("")
    with pytest.raises(SettingsError, match=r"ending in \.py"):
        load_function("reward.txt:reward", tmp_path)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[1.0]", "returned 1 rewards for 2 completions"),
        ("[1.0, float('nan')]", "returned nan, expected a number"),
        ("[1.0, float('inf')]", "returned inf"),
        ("[1.0, None]", "not 'NoneType'"),
        ("[1.0, 'good']", "could not convert"),
        ("3", "fails: TypeError"),
        ("1 / 0", r"fails: ZeroDivisionError"),
    ],
)
def test_bad_results(tmp_path: Path, returned: str, message: str) -> None:
    text = f"def reward(completions, **columns):\n    return {returned}\n"
    reward = load_function("reward.py:reward", script(tmp_path, text))
    with pytest.raises(SettingsError, match="the reward function reward") as error:
        score(reward, ["a", "b"])
    assert message in str(error.value)


@pytest.mark.parametrize("answer", [None, True, ["12"], {"a": 1}, float("inf")])
def test_what_is_no_answer_is_never_compared(answer: Any) -> None:
    with pytest.raises(SettingsError, match=r"an answer is .*, expected the text or number"):
        score(comparison("exact", "answer", None), ["None"], answer=[answer])


def test_a_function_of_the_user_is_given_null(tmp_path: Path) -> None:
    text = "def reward(completions, answer, **_):\n    return [float(of is None) for of in answer]"
    reward = load_function("reward.py:reward", script(tmp_path, text))
    rows: list[Any] = [{"prompt": "", "answer": None}, {"prompt": "", "answer": "None"}]
    assert reward.of(rows, ["a", "b"]) == [1.0, 0.0]
