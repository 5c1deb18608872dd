"""Prompts within the bounds come first, in their order; the others fill up."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.train


@pytest.mark.parametrize(
    ("outcomes", "order", "num_kept"),
    [
        ([1, 1, 1, 0, 0, 0, 0, 1], [1, 3, 0, 2], 2),
        ([1, 0, 0, 1], [0, 1], 2),
        ([1, 1, 0, 0], [0, 1], 0),
        ([0.4, 0.0, 0.9, 0.9], [0, 1], 1),  # 0.2, on the bound
    ],
)
def test_order_of_prompts(outcomes: list[float], order: list[int], num_kept: int) -> None:
    import torch

    from trimtab.training.prime import within_bounds_first

    rows, kept = within_bounds_first(
        torch.tensor(outcomes, dtype=torch.float64), 2, lower=0.2, upper=0.8
    )
    assert rows.tolist() == [row for prompt in order for row in (2 * prompt, 2 * prompt + 1)]
    assert kept == num_kept


def test_bounds_hold_for_accuracies_that_are_not_exact_in_binary() -> None:
    import torch

    from trimtab.training.prime import within_bounds_first

    outcomes = torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    assert within_bounds_first(outcomes, 5, lower=0.2, upper=0.8)[1] == 2
