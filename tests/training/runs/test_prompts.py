"""Prompts that leave no room are told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training import tiny
from trimtab.errors import SettingsError
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.data import Rows, check_lengths, prompt_ids

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]

CONTEXT = 2048
"""Of the tiny base, as of any Llama whose config says nothing else."""


def rows(*prompts: str) -> Rows:
    return Rows("questions", [{"prompt": prompt} for prompt in prompts], "")


def test_ids_of_a_text() -> None:
    assert prompt_ids(tiny.tokenizer(), "0+1") == [2, 12, 3]


def test_ids_of_messages_end_where_the_answer_begins() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message.content }}+{% endfor %}"
        "{% if add_generation_prompt %}={% endif %}"
    )
    message = [{"role": "user", "content": "1"}]
    assert prompt_ids(tokenizer, message) == prompt_ids(tokenizer, "1+=")


def test_the_last_token_that_fits(base: Base) -> None:
    model = open_base(str(base[0]), Path())
    check_lengths(rows("1" * (CONTEXT - 5)), model, 5, None)
    check_lengths(rows("1" * 15), model, 5, 20)
    with pytest.raises(SettingsError) as error:
        check_lengths(rows("1", "1" * (CONTEXT - 4), "1" * CONTEXT), model, 5, None)
    text = str(error.value)
    assert text.startswith("data: questions: the prompts of rows 2, 3 have too many tokens")
    assert f"the longest has {CONTEXT}, and the context of {model.record.id} is {CONTEXT}" in text
    assert "with 5 for the completion" in text
    with pytest.raises(SettingsError, match=r"trainer\.max_length is 20, with 5"):
        check_lengths(rows("1" * 16), model, 5, 20)


def test_a_prompt_without_tokens(base: Base) -> None:
    with pytest.raises(SettingsError, match="the prompts of rows 2 have no token"):
        check_lengths(rows("1", ""), open_base(str(base[0]), Path()), 1, None)
