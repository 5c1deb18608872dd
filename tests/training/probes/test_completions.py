"""Prompts and completions as tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.training import tiny
from trimtab.errors import SettingsError
from trimtab.training.probes.losses import (
    JudgedSampler,
    ProbeData,
    given_completions,
    one_by_one,
    padded_samples,
    read_data,
)
from trimtab.training.runs.data import Rows
from trimtab.training.runs.settings import DataTable

pytestmark = pytest.mark.train

CHAT = (
    "{% for m in messages %}{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


def data_of(*rows: dict[str, Any], ends_with_line: bool = False) -> ProbeData:
    return ProbeData(Rows("rows", rows, "", ends_with_line), None, None, 3)


def test_given_texts_end_as_they_are_learned_to() -> None:
    tokenizer = tiny.tokenizer()
    row = {"prompt": "1+1=", "completion": "2"}
    two = tokenizer("2")["input_ids"]
    ((prompt, completion),) = given_completions(tokenizer, data_of(row))
    assert prompt == tokenizer("1+1=")["input_ids"]
    assert completion == [*two, tokenizer.eos_token_id]
    assert given_completions(tokenizer, data_of(row, ends_with_line=True))[0][1] == two


def test_given_messages() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = CHAT.replace("=", "")
    message = {"prompt": [{"role": "user", "content": "1+1="}]}
    row = {**message, "completion": [{"role": "assistant", "content": "2"}]}
    ((prompt, completion),) = given_completions(tokenizer, data_of(row))
    assert tokenizer.decode(prompt) == "1+1=\n"
    assert tokenizer.decode(completion) == "2\n"
    tokenizer.chat_template = CHAT  # its prompt ends with =, and no answered prompt does
    with pytest.raises(SettingsError, match="rows: row 1: the chat template changes a prompt"):
        given_completions(tokenizer, data_of(row))


def test_a_completion_without_a_token() -> None:
    rows = {"prompt": "1", "completion": "2"}, {"prompt": "1", "completion": ""}
    with pytest.raises(SettingsError, match="row 2: the completion has no token"):
        given_completions(tiny.tokenizer(), data_of(*rows, ends_with_line=True))


def test_padding_and_back() -> None:
    pairs = [([5, 6, 7], [8]), ([9], [3, 4])]
    samples = padded_samples(pairs, "cpu")
    assert samples.prompt_ids.tolist() == [[5, 6, 7], [0, 0, 9]]
    assert samples.prompt_mask.tolist() == [[True] * 3, [False, False, True]]
    assert samples.completion_ids.tolist() == [[8, 0], [3, 4]]
    assert samples.completion_mask.tolist() == [[True, False], [True, True]]
    alone = [(one.prompt_ids.tolist(), one.completion_ids.tolist()) for one in one_by_one(samples)]
    assert alone == [([prompt], [completion]) for prompt, completion in pairs]


def test_samples_depend_on_seed_and_batch() -> None:
    data = read_data(DataTable(task="addition"), "rewards", max_completion_length=8)
    model, tokenizer = tiny.model(), tiny.tokenizer()
    rows = data.rows.rows[:4]

    def drawn(seed: int, number: int) -> list[list[int]]:
        ids: list[list[int]] = (
            JudgedSampler(model, tokenizer, data, seed).draw(rows, number).completion_ids.tolist()
        )
        return ids

    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_end_of_a_line_ends_a_sample() -> None:
    data = read_data(DataTable(task="addition"), "rewards", max_completion_length=40)
    tokenizer = tiny.tokenizer()
    (line,) = tokenizer("\n")["input_ids"]
    samples = JudgedSampler(tiny.model(), tokenizer, data, 0).draw(data.rows.rows[:16], 0)
    ended = 0
    for ids, mask in zip(samples.completion_ids, samples.completion_mask, strict=True):
        message = ids[mask].tolist()
        assert line not in message[:-1]
        ended += message[-1] == line
    assert ended


def test_a_stop_of_several_tokens() -> None:
    data = read_data(DataTable(task="addition"), "prompts", stop="12")
    with pytest.raises(SettingsError, match="stop '12' has 2 tokens"):
        JudgedSampler(tiny.model(), tiny.tokenizer(), data, 0)
