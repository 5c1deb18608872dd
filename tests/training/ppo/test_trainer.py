"""PPO on the tiny model: each round by plain loops, what moves, and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training import tiny
from tests.training.rollouts.test_prompts import TEMPLATE
from tests.training.rollouts.test_rewards import classifier
from tests.training.rollouts.trainers import ROWS, high, logged, ppo
from tests.training.tiny_trainers import arrays, assert_same_bits, moved, train, weights
from trimtab.masks.mask import Mask
from trimtab.training import train_only

pytestmark = pytest.mark.train


def unlike(model: Any, seed: int = 5) -> Any:
    """A model with other weights than the tiny one."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def log_probs_by_hand(model: Any, samples: Any, temperature: float) -> list[list[float]]:
    """One sequence and one token at a time, in fp64."""
    import torch

    model = model.double()
    found = []
    for row in range(len(samples)):
        prompt = samples.prompt_ids[row][samples.prompt_mask[row]].tolist()
        ids = samples.completion_ids[row][samples.completion_mask[row]].tolist()
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0] / temperature
        alike = torch.log_softmax(logits, 1)
        found.append([float(alike[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)])
    return found


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_round_by_plain_loops(kl_in: str, whiten: bool, tmp_path: Path) -> None:
    """Rewards, advantages and returns of every token, and both losses of a batch, in fp64."""
    import copy

    import torch

    trainer = ppo(
        unlike(tiny.model()),
        tmp_path,
        temperature=0.7,
        gamma=0.9,
        lam=0.8,
        kl_coef=0.3,
        kl_in=kl_in,
        missing_eos_penalty=0.25,
        cliprange_value=0.05,
        whiten_rewards=whiten,
        whiten_advantages=whiten,
        num_ppo_epochs=1,
        per_device_train_batch_size=8,
        ref_model=tiny.model(),
    )
    torch.manual_seed(3)
    torch.nn.init.normal_(trainer.critic.head.weight, std=0.3)
    (batch,) = trainer.make_round(ROWS[:8])
    samples = batch.samples
    scores = [
        high([tiny.tokenizer().decode(ids[mask], skip_special_tokens=True)])[0]
        - (0.0 if ended else 0.25)
        for ids, mask, ended in zip(
            samples.completion_ids, samples.completion_mask, samples.has_ended, strict=True
        )
    ]
    assert 0 < sum(samples.has_ended.tolist()) < 8
    policy = copy.deepcopy(trainer.model)
    old = log_probs_by_hand(policy, samples, 0.7)
    reference = log_probs_by_hand(tiny.model(), samples, 0.7)
    with torch.no_grad():
        values = trainer.critic(samples).tolist()

    rewards = []
    for score, ours, theirs in zip(scores, old, reference, strict=True):
        kl = [a - b if kl_in == "reward" else 0.0 for a, b in zip(ours, theirs, strict=True)]
        rewards.append([-0.3 * each for each in kl])
        rewards[-1][-1] += score
    if whiten:
        flat = np.concatenate(rewards)
        rewards = [
            [(r - flat.mean()) / flat.std(ddof=1) + flat.mean() for r in row] for row in rewards
        ]
    advantages, returns = [], []
    for row, item in enumerate(rewards):
        following, row_advantages = 0.0, [0.0] * len(item)
        for t in reversed(range(len(item))):
            then = values[row][t + 1] if t + 1 < len(item) else 0.0
            following = item[t] + 0.9 * then - values[row][t] + 0.9 * 0.8 * following
            row_advantages[t] = following
        advantages.append(row_advantages)
        returns.append([a + v for a, v in zip(row_advantages, values[row], strict=False)])
    if whiten:
        flat = np.concatenate(advantages)
        advantages = [[(a - flat.mean()) / flat.std(ddof=1) for a in row] for row in advantages]

    mask = samples.completion_mask
    for found, expected in (
        (batch.log_probs, old),
        (batch.ref_log_probs, reference),
        (batch.advantages, advantages),
        (batch.returns, returns),
    ):
        flat = np.concatenate(expected)
        np.testing.assert_allclose(found[mask].numpy(), flat, atol=2e-5)
        assert not found[~mask].any()

    # The losses, once policy and critic have moved.
    unlike(trainer.model, seed=6)
    torch.nn.init.normal_(trainer.critic.head.weight, std=0.3)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(trainer.model, batch).item()
    trainer.means.take()
    trainer.train_auxiliary(batch, is_last=False)
    with torch.no_grad():
        new_values = trainer.critic(samples).tolist()
    new = log_probs_by_hand(copy.deepcopy(trainer.model), samples, 0.7)
    policy_losses, value_losses = [], []
    for row, item in enumerate(new):
        for t, log_prob in enumerate(item):
            ratio = np.exp(log_prob - old[row][t])
            advantage = advantages[row][t]
            kept = min(max(ratio, 0.8), 1.2)
            policy_losses.append(-min(ratio * advantage, kept * advantage))
            if kl_in == "loss":
                d = log_prob - reference[row][t]
                policy_losses[-1] += 0.3 * (np.exp(-d) - 1 + d)
            v, v_old = new_values[row][t], values[row][t]
            near = v_old + min(max(v - v_old, -0.05), 0.05)
            goal = returns[row][t]
            value_losses.append(max((v - goal) ** 2, (near - goal) ** 2) / 2)
    assert loss == pytest.approx(np.mean(policy_losses), rel=1e-4)
    assert trainer.means.take()["value_loss"] == pytest.approx(np.mean(value_losses), rel=1e-4)


def test_first_step_of_a_run(tmp_path: Path) -> None:
    """The policy is the reference and the old policy; the critic expects nothing."""
    trainer = ppo(tiny.model(), tmp_path, max_steps=1, whiten_advantages=False, lam=1.0)
    train(trainer)
    (row,) = [row for row in trainer.state.log_history if "reward" in row]
    assert row["kl"] == row["clip_fraction"] == row["value_clip_fraction"] == 0.0
    # With lambda 1, the advantage of every token is the score of its completion.
    assert row["loss"] == pytest.approx(-_token_mean_of_scores(tmp_path), rel=1e-5)


def _token_mean_of_scores(out: Path) -> float:
    """The scores of the samples that the first round draws, each counted once for each token."""
    trainer = ppo(tiny.model(), out, max_steps=1, whiten_advantages=False, lam=1.0)
    seen: list[Any] = []
    make_round = trainer.make_round

    def look(rows: Any) -> Any:
        seen.extend(make_round(rows))
        return seen

    trainer.make_round = look
    train(trainer)
    batch = seen[0]
    return float((batch.returns.sum(1)).sum() / batch.num_tokens)


def test_accumulated_batches_are_one_batch(tmp_path: Path) -> None:
    """The mean is over all tokens of the mini-batch, however many batches it is cut into."""
    found = []
    for size, accumulate in ((8, 1), (2, 4)):
        net = tiny.model()
        trainer = ppo(
            net,
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
            max_steps=4,
            optim="sgd",
            learning_rate=0.1,
        )
        train(trainer)
        found.append((weights(net), weights(trainer.critic), logged(trainer, "loss")))
    import torch

    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-3)


def test_only_the_mask_moves_and_the_critic_is_free(tmp_path: Path) -> None:
    import torch

    net = tiny.model().to(torch.bfloat16)
    before, selected = weights(net), arrays(net)
    trainer = ppo(net, tmp_path, max_steps=4)
    critic = weights(trainer.critic)
    train_only(trainer, Mask.from_arrays(selected))
    train(trainer)
    changed = moved(before, weights(net))
    assert not any(changed[name][~mask].any() for name, mask in selected.items())
    num_moved = sum(int(changed[name].sum()) for name in selected)
    assert num_moved > 0.9 * sum(int(mask.sum()) for mask in selected.values())
    everywhere = moved(critic, weights(trainer.critic))
    assert np.mean([net.mean() for net in everywhere.values()]) > 0.9
    assert {p.dtype for p in trainer.critic.parameters()} == {torch.float32}


@pytest.mark.parametrize("bf16", [True, False])
def test_kl_is_nothing_before_the_first_step_in_any_precision(bf16: bool, tmp_path: Path) -> None:
    import torch

    net = tiny.model() if bf16 else tiny.model().to(torch.bfloat16)
    trainer = ppo(net, tmp_path, bf16=bf16, max_steps=4, kl_in="loss")
    train(trainer)
    kl = logged(trainer, "kl")
    assert kl[0] == 0.0 and kl[1] > 0.0
    assert all(np.isfinite(logged(trainer, "loss")))


def test_without_kl_there_is_no_reference(tmp_path: Path) -> None:
    trainer = ppo(tiny.model(), tmp_path, kl_coef=0.0)
    assert trainer.reference is None
    train(trainer)
    assert logged(trainer, "kl") == []


def test_the_reference_stays_as_it_was(tmp_path: Path) -> None:
    net = tiny.model()
    trainer = ppo(net, tmp_path)
    train(trainer)
    assert_same_bits(weights(trainer.reference), weights(tiny.model()))
    assert moved(weights(tiny.model()), weights(net))["model.norm.weight"].any()


def test_the_learning_rate_of_the_critic_is_its_own(tmp_path: Path) -> None:
    net = tiny.model()
    trainer = ppo(net, tmp_path, critic_learning_rate=0.0)
    before = weights(trainer.critic)
    train(trainer)
    assert_same_bits(before, weights(trainer.critic))


def test_dropout_is_switched_off(tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=15, n_embd=8, n_layer=1, n_head=2, n_positions=32)
    for disable, expected in ((True, 0.0), (False, 0.1)):
        trainer = ppo(GPT2LMHeadModel(config), tmp_path, disable_dropout=disable)
        models = (trainer.model, trainer.critic)
        modules = [module for model in models for module in model.modules()]
        assert {m.p for m in modules if isinstance(m, torch.nn.Dropout)} == {expected}
    llama = tiny.model()
    first, second = (layer.self_attn for layer in llama.model.layers)
    first.attention_dropout = 0.3  # as Llama has it
    del second.attention_dropout
    second.attention_dropout = torch.nn.Dropout(0.3)  # as Falcon has it
    ppo(llama, tmp_path)
    assert first.attention_dropout == second.attention_dropout.p == 0.0


def test_messages_as_prompts(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    given: list[Any] = []

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        given.extend(zip(prompts, completions, strict=True))
        return [float(len(completion[0]["content"])) for completion in completions]

    rows = [{"prompt": [{"role": "user", "content": "1+1"}]}] * 4
    trainer = ppo(
        tiny.model(),
        tmp_path,
        train_dataset=rows,
        processing_class=tokenizer,
        reward_funcs=[reward, high_of_messages],
    )
    train(trainer)
    prompt, completion = given[0]
    assert prompt == rows[0]["prompt"]
    assert completion[0]["role"] == "assistant" and len(completion) == 1


def high_of_messages(completions: Any, **_: Any) -> list[float]:
    return high([completion[0]["content"] for completion in completions])


def test_a_reward_model_beside_a_function(tmp_path: Path) -> None:
    found = []
    for sources in ([high], [classifier()], [high, classifier()]):
        trainer = ppo(tiny.model(), tmp_path, reward_funcs=sources)
        train(trainer)
        found.append(logged(trainer, "reward")[0])
    assert found[2] == pytest.approx(found[0] + found[1])
    assert found[1] != 0.0


def test_datasets_of_the_library(tmp_path: Path) -> None:
    from datasets import Dataset

    found = []
    for rows in (ROWS, Dataset.from_list(ROWS)):
        net = tiny.model()
        train(ppo(net, tmp_path, train_dataset=rows))
        found.append(weights(net))
    assert_same_bits(*found)
