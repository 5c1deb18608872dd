"""Samples: what a model is given of them, and taking rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytestmark = pytest.mark.train


def samples() -> Any:
    import torch

    from trimtab.training.rollouts.sampling import Samples

    return Samples(
        prompt_ids=torch.tensor([[0, 5, 6], [7, 8, 9]]),
        prompt_mask=torch.tensor([[False, True, True], [True, True, True]]),
        completion_ids=torch.tensor([[3, 1], [4, 0]]),
        completion_mask=torch.tensor([[True, True], [True, False]]),
        has_ended=torch.tensor([True, False]),
    )


def test_what_a_model_is_given() -> None:
    one = samples()
    assert one.input_ids.tolist() == [[0, 5, 6, 3, 1], [7, 8, 9, 4, 0]]
    assert one.attention_mask.tolist() == [[False, True, True, True, True], [True] * 4 + [False]]
    assert one.position_ids.tolist() == [[0, 0, 1, 2, 3], [0, 1, 2, 3, 3]]
    assert (len(one), one.num_tokens) == (2, 3)


def test_taking_rows() -> None:
    import torch

    from trimtab.training.rollouts.sampling import Samples, take_rows

    @dataclass(frozen=True)
    class Batch:
        samples: Samples
        scores: Any
        reference: Any
        num_tokens: int

    whole = Batch(samples(), torch.tensor([0.5, 1.5]), None, 3)
    taken = take_rows(whole, torch.tensor([1, 0, 1]))
    assert taken.scores.tolist() == [1.5, 0.5, 1.5]
    assert taken.samples.completion_ids.tolist() == [[4, 0], [3, 1], [4, 0]]
    assert taken.samples.has_ended.tolist() == [False, True, False]
    assert (taken.reference, taken.num_tokens) == (None, 3)
    assert whole.scores.tolist() == [0.5, 1.5]


def test_splitting() -> None:
    import torch

    from trimtab.training.rollouts.sampling import split_rows

    assert [part.tolist() for part in split_rows(torch.arange(5), 2)] == [[0, 1], [2, 3], [4]]
