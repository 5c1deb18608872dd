"""PRIME on the tiny model: each round by plain loops, what moves, and what is logged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import tiny
from tests.training.ppo.test_trainer import log_probs_by_hand, unlike
from tests.training.rollouts.trainers import ROWS, high, logged, prime
from tests.training.tiny_trainers import arrays, assert_same_bits, moved, train, weights
from trimtab.masks.mask import Mask
from trimtab.training import train_only

pytestmark = pytest.mark.train


def outcomes_of(samples: Any) -> list[float]:
    texts = [
        tiny.tokenizer().decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(samples.completion_ids, samples.completion_mask, strict=True)
    ]
    return high(texts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale_process_rewards": True, "outcome_coef": 0.0},
        {"gamma": 0.8, "process_coef": 3.0, "whiten_advantages": False},
    ],
)
def test_a_round_by_plain_loops(settings: dict[str, Any], tmp_path: Path) -> None:
    """Process rewards, advantages and the loss of every token, in fp64."""
    import torch

    trainer = prime(
        unlike(tiny.model()),
        tmp_path,
        temperature=0.7,
        beta=0.1,
        num_generations=4,
        oversample_factor=1.0,
        num_ppo_epochs=1,
        per_device_train_batch_size=8,
        reward_update="after",
        ref_model=tiny.model(),
        **settings,
    )
    unlike(trainer.reward_model, seed=7)
    reward_model = copy.deepcopy(trainer.reward_model)
    trainer.create_scheduler(2, torch.optim.SGD(trainer.model.parameters()))
    (batch,) = trainer.make_round(ROWS[:2])
    samples = batch.samples

    old = log_probs_by_hand(copy.deepcopy(trainer.model), samples, 0.7)
    judged = log_probs_by_hand(reward_model, samples, 1.0)
    reference = log_probs_by_hand(tiny.model(), samples, 1.0)
    rewards = [
        np.array([0.1 * (a - b) for a, b in zip(ours, theirs, strict=True)])
        for ours, theirs in zip(judged, reference, strict=True)
    ]
    if trainer.args.scale_process_rewards:
        largest = max(abs(one[t:].sum()) for one in rewards for t in range(len(one)))
        rewards = [one / largest for one in rewards]
    # A batch is drawn in an order of its own: find the prompt that each row belongs to.
    prompts = [tuple(i[m].tolist()) for i, m in zip(samples.prompt_ids, samples.prompt_mask)]  # noqa: B905
    outcomes = outcomes_of(samples)
    advantages = []
    for row, one in enumerate(rewards):
        others = [j for j in range(8) if prompts[j] == prompts[row] and j != row]
        assert len(others) == 3
        by_outcome = outcomes[row] - np.mean([outcomes[j] for j in others])
        baseline = np.mean([rewards[j].mean() for j in others])
        gamma = trainer.args.gamma
        advantages.append(
            [
                trainer.args.outcome_coef * by_outcome
                + trainer.args.process_coef
                * sum(gamma ** (s - t) * (one[s] - baseline) for s in range(t, len(one)))
                for t in range(len(one))
            ]
        )
    flat = np.concatenate(advantages)
    if trainer.args.whiten_advantages:
        flat = (flat - flat.mean()) / flat.std(ddof=1)
    mask = samples.completion_mask
    np.testing.assert_allclose(batch.log_probs[mask].numpy(), np.concatenate(old), atol=1e-5)
    np.testing.assert_allclose(batch.advantages[mask].numpy(), flat, atol=1e-4)
    assert not batch.advantages[~mask].any()

    unlike(trainer.model, seed=6)
    new = np.concatenate(log_probs_by_hand(copy.deepcopy(trainer.model), samples, 0.7))
    trainer.model.float()
    ratio = np.exp(new - np.concatenate(old))
    expected = -np.minimum(ratio * flat, ratio.clip(0.8, 1.2) * flat).mean()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", ["ce", "dpo"])
def test_the_reward_model_steps_as_one_batch_would(loss: str, tmp_path: Path) -> None:
    """Its gradient is that of the mean over the mini-batch, computed in one piece."""
    import torch

    from trimtab.training.rollouts.sampling import token_log_probs

    trainer = prime(
        tiny.model(),
        tmp_path,
        num_generations=4,
        oversample_factor=1.0,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_ppo_epochs=1,
        reward_loss=loss,
        reward_max_grad_norm=0.0,
        beta=0.1,
        ref_model=tiny.model(),
    )
    unlike(trainer.reward_model, seed=7)
    before = copy.deepcopy(trainer.reward_model)
    trainer.create_scheduler(2, torch.optim.SGD(trainer.model.parameters()))
    judged = trainer._judge(ROWS[:2])
    trainer._judge = lambda rows: judged
    trainer.make_round(ROWS[:2])
    assert 0 < (judged.outcomes > 0.5).sum() < 8

    log_probs = token_log_probs(before, judged.samples, 1.0)
    rewards = 0.1 * (log_probs - judged.ref_log_probs).sum(1)
    if loss == "ce":
        chance = rewards.sigmoid()
        right = judged.outcomes
        losses = -(right * chance.log() + (1 - right) * (1 - chance).log())
    else:
        right = judged.outcomes > 0.5
        losses = torch.zeros_like(rewards)
        for row in range(8):
            group = slice(row // 4 * 4, row // 4 * 4 + 4)
            others = rewards[group][right[group] != right[row]].detach()
            if len(others):
                sign = 1.0 if right[row] else -1.0
                losses[row] = -(sign * (rewards[row] - others.mean())).sigmoid().log()
    torch.autograd.backward(losses.mean())
    optimizer = torch.optim.AdamW(before.parameters(), lr=1e-3, weight_decay=0.0)
    gradients = [parameter.grad.clone() for parameter in before.parameters()]
    optimizer.step()
    found = dict(trainer.reward_model.named_parameters())
    for (name, expected), gradient in zip(before.named_parameters(), gradients, strict=True):
        is_sure = gradient.abs() > 1e-5  # AdamW divides by its size: the sign alone is left
        torch.testing.assert_close(found[name][is_sure], expected[is_sure], atol=2e-5, rtol=0)
    means = trainer.means.take()
    assert means["reward_model_loss"] == pytest.approx(losses.mean().item(), rel=1e-4)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    assert means["reward_model_grad_norm"] == pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize(("update", "is_zero"), [("before", False), ("after", True)])
def test_the_reward_model_learns_before_or_after_it_is_asked(
    update: str, is_zero: bool, tmp_path: Path
) -> None:
    trainer = prime(tiny.model(), tmp_path, reward_update=update, max_steps=4)
    train(trainer)
    rewards = logged(trainer, "process_reward")
    assert (rewards[0] == 0.0) is is_zero
    assert rewards[1] != 0.0


def test_a_round_prefers_prompts_within_the_bounds(tmp_path: Path) -> None:
    """Half of the prompts are always answered right, by decree; the round is of the others."""

    def half(prompts: list[str], **_: Any) -> list[float]:
        return [1.0 if prompt < "2" else float(i % 2) for i, prompt in enumerate(prompts)]

    trainer = prime(tiny.model(), tmp_path, reward_funcs=half, per_device_train_batch_size=8)
    import torch

    trainer.create_scheduler(2, torch.optim.SGD(trainer.model.parameters()))
    batches = trainer.make_round([ROWS[0], ROWS[8], ROWS[1], ROWS[2], ROWS[12], ROWS[3], ROWS[9]])
    decoded = {
        tiny.tokenizer().decode(ids[mask])
        for batch in batches
        for ids, mask in zip(batch.samples.prompt_ids, batch.samples.prompt_mask, strict=True)
    }
    assert decoded == {ROWS[at]["prompt"] for at in (8, 12, 9, 0)}
    assert trainer.means.take()["prompts_kept"] == pytest.approx(3 / 7)


def test_only_the_mask_moves_and_the_reward_model_is_free(tmp_path: Path) -> None:
    import torch

    net = tiny.model().to(torch.bfloat16)
    before, selected = weights(net), arrays(net)
    trainer = prime(net, tmp_path, max_steps=4)
    train_only(trainer, Mask.from_arrays(selected))
    train(trainer)
    changed = moved(before, weights(net))
    assert not any(changed[name][~mask].any() for name, mask in selected.items())
    num_moved = sum(int(changed[name].sum()) for name in selected)
    assert num_moved > 0.9 * sum(int(mask.sum()) for mask in selected.values())
    everywhere = moved(weights(trainer.reference), weights(trainer.reward_model))
    assert np.mean([net.mean() for net in everywhere.values()]) > 0.9
    assert {p.dtype for p in trainer.reward_model.parameters()} == {torch.float32}
    assert_same_bits(weights(trainer.reference), weights(tiny.model().to(torch.bfloat16).float()))


def test_bf16_arithmetic(tmp_path: Path) -> None:
    trainer = prime(tiny.model(), tmp_path, bf16=True, reward_update="after", max_steps=4)
    train(trainer)
    assert logged(trainer, "process_reward")[0] == 0.0
    assert all(np.isfinite(logged(trainer, "loss")))
