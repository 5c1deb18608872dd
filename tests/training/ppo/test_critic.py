"""The critic: zero before it has learnt, blind to what comes later, and a copy."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.test_sampling import sampled

pytestmark = pytest.mark.train


def critic() -> tuple[Any, Any]:
    """A critic whose head is not at zero any more, and its policy."""
    import torch

    from trimtab.training.ppo import Critic

    policy = tiny.model()
    made = Critic(policy)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.head.weight)
    return made, policy


def test_values_are_zero_at_first() -> None:
    from trimtab.training.ppo import Critic

    values = Critic(tiny.model())(sampled([[3, 4], [5]]))
    assert values.shape == (2, 6) and not values.any()


def test_a_value_is_the_head_of_what_precedes_its_token() -> None:
    import torch

    made, policy = critic()
    found = sampled([[3, 4], [5]])
    values = made(found).detach()
    for row, prompt in enumerate([[3, 4], [5]]):
        for t in range(6):
            if not found.completion_mask[row, t]:
                assert values[row, t] == 0
                continue
            so_far = torch.tensor([[*prompt, *found.completion_ids[row, :t].tolist()]])
            with torch.no_grad():
                hidden = policy.model(so_far).last_hidden_state[0, -1]
                expected = made.head(hidden)
            assert values[row, t].item() == pytest.approx(expected.item(), abs=1e-5)


def test_it_shares_nothing_with_the_policy() -> None:
    made, policy = critic()
    storages = {parameter.data_ptr() for parameter in policy.parameters()}
    assert storages.isdisjoint(parameter.data_ptr() for parameter in made.parameters())
