"""Sampled completions: where they end, what they are drawn from, and what is left untouched."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training import tiny
from trimtab.errors import SettingsError

pytestmark = pytest.mark.train

EOS, NEWLINE = 1, 14
"""End token of the tiny tokenizer, and its end of a line."""


def sampling(**changes: Any) -> Any:
    from trimtab.training.rollouts.sampling import Sampling

    usual = {
        "max_completion_length": 6,
        "temperature": 1.0,
        "top_p": 1.0,
        "end_tokens": (EOS, NEWLINE),
        "pad_token": 0,
    }
    return Sampling(**{**usual, **changes})


def sampled(prompts: list[list[int]], **changes: Any) -> Any:
    import torch

    from trimtab.training.rollouts.sampling import sample

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return sample(tiny.model(), prompts, sampling(**changes))


def test_prompts_are_padded_on_the_left() -> None:
    from trimtab.training.rollouts.sampling import left_padded

    ids, mask = left_padded([[5], [6, 7, 8]], pad_token=0)
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]


def test_a_completion_goes_up_to_its_end_token() -> None:
    one = sampled([[3, 4, 5]] * 64)
    ended = 0
    for ids, mask, has_ended in zip(
        one.completion_ids.tolist(),
        one.completion_mask.tolist(),
        one.has_ended.tolist(),
        strict=True,
    ):
        ends = [at for at, token in enumerate(ids) if token in (EOS, NEWLINE)]
        length = ends[0] + 1 if ends else len(ids)
        assert mask == [at < length for at in range(len(ids))]
        assert ids[length:] == [0] * (len(ids) - length)
        assert has_ended == bool(ends)
        ended += has_ended
    assert 0 < ended < 64


def test_only_the_end_tokens_that_are_named_end_a_completion() -> None:
    one = sampled([[3, 4, 5]] * 64, end_tokens=(EOS,))
    assert (one.completion_ids == NEWLINE).any()
    rows = (one.completion_ids == NEWLINE)[:, 0]
    assert rows.any() and one.completion_mask[rows][:, 1].all()


def test_the_same_seed_gives_the_same_completions() -> None:
    import torch

    one, other = sampled([[3, 4], [5]]), sampled([[3, 4], [5]])
    assert torch.equal(one.completion_ids, other.completion_ids)


def test_what_the_checkpoint_says_of_sampling_has_no_effect() -> None:
    import torch
    from transformers import GenerationConfig

    from trimtab.training.rollouts.sampling import sample

    net, found = tiny.model(), []
    for config in (
        GenerationConfig(),
        GenerationConfig(do_sample=True, top_k=1, repetition_penalty=5.0, no_repeat_ngram_size=1),
    ):
        net.generation_config = config
        net.train()
        torch.manual_seed(0)
        found.append(sample(net, [[3, 4, 5]] * 8, sampling()).completion_ids)
        assert net.generation_config is config and net.training
    assert torch.equal(*found)


def test_temperature_and_top_p_are_what_is_sampled_from() -> None:
    cold = sampled([[3, 4, 5]] * 32, temperature=1e-4)
    narrow = sampled([[3, 4, 5]] * 32, top_p=1e-6)
    for one in (cold, narrow):  # one token is left, the likeliest
        assert (one.completion_ids == one.completion_ids[0]).all()
    assert cold.completion_ids.tolist() == narrow.completion_ids.tolist()


@pytest.mark.parametrize(
    ("of_model", "of_tokenizer", "expected"),
    [(7, 1, (1, 7)), ([7, 14], 1, (1, 7, 14)), (None, 1, (1,)), (1, None, (1,)), ([1], 1, (1,))],
)
def test_end_tokens_of_model_and_tokenizer(
    of_model: Any, of_tokenizer: int | None, expected: tuple[int, ...]
) -> None:
    from trimtab.training.rollouts.sampling import end_tokens

    net, tokenizer = tiny.model(), tiny.tokenizer()
    net.generation_config.eos_token_id = of_model
    tokenizer.eos_token = None if of_tokenizer is None else "<eos>"
    assert end_tokens(net, tokenizer) == expected


def test_without_any_end_token() -> None:
    from trimtab.training.rollouts.sampling import end_tokens

    net, tokenizer = tiny.model(), tiny.tokenizer()
    net.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(SettingsError, match="has an end token"):
        end_tokens(net, tokenizer)
