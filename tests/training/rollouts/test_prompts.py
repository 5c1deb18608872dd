"""Prompts that can be used, and the rows of each round."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training import tiny

pytestmark = pytest.mark.train

TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)


def test_text_and_messages() -> None:
    from trimtab.training.runs.data import prompt_ids

    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    assert prompt_ids(tokenizer, "12=") == [3, 4, 13]
    assert prompt_ids(tokenizer, [{"role": "user", "content": "12"}]) == [3, 4, 13]


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "train_dataset has no rows"),
        ([{"prompt": "1"}, {"question": "1"}], "row 1 has no column prompt"),
        ([{"prompt": [{"role": "user", "content": "1"}]}], "the tokenizer has no chat template"),
        ([{"prompt": "1"}, {"prompt": 1}], "a prompt of type int: expected a text or messages"),
        ([{"prompt": "1"}, {"prompt": ""}], "the prompt of row 1 has no tokens"),
        (
            [{"prompt": "1" * 3}] + [{"prompt": "1" * 4}] * 6,
            "the prompt of row 1 has 4 tokens, and the context of the model leaves room for 3",
        ),
    ],
)
def test_prompts_that_cannot_be_used(rows: list[dict[str, object]], problem: str) -> None:
    from trimtab.training.rollouts.sampling import prompt_problems

    (found,) = prompt_problems(rows, tiny.tokenizer(), room=3)
    assert problem in found


def test_good_prompts() -> None:
    from trimtab.training.rollouts.sampling import prompt_problems

    rows = [{"prompt": "1" * 99}]
    assert list(prompt_problems(rows, tiny.tokenizer(), room=None)) == []


@given(
    num_rows=st.integers(1, 20),
    rows_per_round=st.integers(1, 7),
    num_repeats=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_epoch_has_whole_rounds_of_different_rows(
    num_rows: int, rows_per_round: int, num_repeats: int, seed: int
) -> None:
    from trimtab.training.rollouts.sampling import RoundSampler

    sampler = RoundSampler(num_rows, rows_per_round, num_repeats, seed)
    rows = list(sampler)
    assert len(rows) == len(sampler)
    size = rows_per_round * num_repeats
    assert len(rows) == num_rows // rows_per_round * size
    rounds = [rows[first : first + size] for first in range(0, len(rows), size)]
    seen = []
    for one in rounds:
        assert one == one[:rows_per_round] * num_repeats
        seen += one[:rows_per_round]
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(num_rows))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    from trimtab.training.rollouts.sampling import RoundSampler

    def order(seed: int, epoch: int) -> list[int]:
        sampler = RoundSampler(30, 3, 1, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(0, 2) == order(0, 2)
    assert len({tuple(order(*at)) for at in ((0, 0), (0, 1), (5, 0))}) == 3
