"""Log-probabilities of tokens equal those of one sequence at a time, computed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training import tiny
from tests.training.rollouts.test_sampling import sampled

pytestmark = pytest.mark.train

PROMPTS = [[3], [4, 5, 6], [7, 8]]


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_they_equal_a_loop_over_tokens(temperature: float) -> None:
    import torch

    from trimtab.training.rollouts.sampling import token_log_probs

    net, found = tiny.model(), sampled(PROMPTS * 8)
    log_probs = token_log_probs(net, found, temperature).detach()
    net.double()
    for row, prompt in enumerate(PROMPTS * 8):
        for t in range(found.completion_ids.shape[1]):
            if not found.completion_mask[row, t]:
                assert log_probs[row, t] == 0
                continue
            so_far = [*prompt, *found.completion_ids[row, :t].tolist()]
            with torch.no_grad():
                logits = net(torch.tensor([so_far])).logits[0, -1] / temperature
            expected = torch.log_softmax(logits, 0)[found.completion_ids[row, t]]
            assert float(log_probs[row, t]) == pytest.approx(float(expected), abs=1e-5)


def test_absolute_positions_begin_at_the_first_token_of_the_prompt() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from trimtab.training.rollouts.sampling import take_rows, token_log_probs

    torch.manual_seed(0)
    net = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_embd=8, n_layer=1, n_head=2, n_positions=32, initializer_range=1.0,
            bos_token_id=None, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    found = take_rows(sampled(PROMPTS), torch.tensor([0]))
    ids = [*PROMPTS[0], *found.completion_ids[0][found.completion_mask[0]].tolist()]
    with torch.no_grad():
        whole = token_log_probs(net, found, 1.0)
        alone = torch.log_softmax(net(torch.tensor([ids])).logits[0], 1)
    expected = [float(alone[at, token]) for at, token in enumerate(ids[1:])]
    assert whole[0, : len(expected)].tolist() == pytest.approx(expected)


def test_in_chunks_it_is_the_same_without_gradient_and_in_evaluation_mode() -> None:
    import torch

    from trimtab.training.rollouts.sampling import in_chunks, token_log_probs

    net, found = tiny.model(), sampled(PROMPTS)
    net.train()
    modes = []

    def function(part: Any) -> Any:
        modes.append((net.training, torch.is_grad_enabled(), len(part)))
        return token_log_probs(net, part, 1.0)

    parts = in_chunks(function, net, found, rows=2)
    assert modes == [(False, False, 2), (False, False, 1)]
    assert net.training
    torch.testing.assert_close(parts, token_log_probs(net, found, 1.0).detach())
