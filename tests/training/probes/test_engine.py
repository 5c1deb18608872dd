"""A whole probe of the tiny base, against gradients of autograd one sample after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training import tiny
from tests.training.architectures import build
from trimtab.errors import SettingsError
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.top_k import select
from trimtab.training.addition import split_questions
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.layout import Layout
from trimtab.training.probes.engine import (
    FISHER,
    SIGN_CONSISTENCY,
    SNIP,
    ElementSums,
    Measure,
    _chosen,
    _Totals,
    probe,
)
from trimtab.training.probes.losses import (
    AnswerLoss,
    JudgedSampler,
    Losses,
    OwnSamples,
    ProbeData,
    RewardLoss,
    read_data,
    row_order,
)
from trimtab.training.rollouts.sampling import Samples
from trimtab.training.runs.rewards import Reward
from trimtab.training.runs.settings import DataTable

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]
Arrays = dict[str, np.ndarray[Any, Any]]

LOSSES: Mapping[str, Losses] = {
    "own": OwnSamples(num_prompts=3, num_samples=2, batch_size=4),
    "sft": AnswerLoss(num_batches=5, batch_size=3),
    "reward": RewardLoss(num_batches=4, batch_size=8, num_samples=4),
}


def addition(losses: Losses) -> ProbeData:
    return read_data(DataTable(task="addition"), losses.needs)


def scores_of(base: Path, measure: Measure, losses: Losses, out: Path, **more: Any) -> Arrays:
    data = more.pop("data", None) or addition(losses)
    with probe(str(base), measure, losses, data, folder=out, **more) as probed:
        scores = probed.scores
        return {
            name: np.concatenate([*scores.chunks(name)]).reshape(shape)
            for name, shape in scores.shapes.items()
        }


def log_probs(model: Any, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probability of each token of a completion, by the model's plain forward pass."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    chosen: Tensor = logits.log_softmax(1)[range(len(completion)), completion]
    return chosen


def gradients(model: Any, loss: Tensor) -> Arrays:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters)
    return {name: item.double().numpy() for name, item in zip(names, found, strict=True)}


def check(found: Arrays, expected: Mapping[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, item in found.items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(item, expected[name], rtol=1e-3, atol=1e-5 * scale, err_msg=name)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Samples]:
    """All samples that a probe draws."""
    batches: list[Samples] = []
    draw = JudgedSampler.draw

    def noting(self: Any, *args: Any) -> Samples:
        batches.append(draw(self, *args))
        return batches[-1]

    monkeypatch.setattr(JudgedSampler, "draw", noting)
    return batches


def tokens(samples: Samples) -> list[tuple[list[int], list[int]]]:
    return [
        (
            samples.prompt_ids[row][samples.prompt_mask[row]].tolist(),
            samples.completion_ids[row][samples.completion_mask[row]].tolist(),
        )
        for row in range(len(samples))
    ]


def test_fisher_is_the_mean_square_over_own_samples(
    base: Base, tmp_path: Path, drawn: list[Samples]
) -> None:
    found = scores_of(base[0], FISHER, LOSSES["own"], tmp_path)
    samples = [pair for batch in drawn for pair in tokens(batch)]
    assert len(samples) == 6
    assert [len({str(prompt) for prompt, _ in samples[i : i + 2]}) for i in (0, 2, 4)] == [1] * 3
    model = load_model(base[0], "fp32", "cpu")
    each = [gradients(model, log_probs(model, *pair).sum()) for pair in samples]
    check(found, {name: sum(one[name] ** 2 for one in each) / len(each) for name in each[0]})


def test_snip_and_signs_of_given_answers(base: Base, tmp_path: Path) -> None:
    model, tokenizer = load_model(base[0], "fp32", "cpu"), load_tokenizer(base[0])
    questions = split_questions(0).train
    order = row_order(len(questions), 0)
    each = []
    for _ in range(5):
        batch = [questions[place] for place in islice(order, 3)]
        pairs = [(tokenizer(q.prompt)["input_ids"], tokenizer(q.gold)["input_ids"]) for q in batch]
        lost = torch.cat([-log_probs(model, *pair) for pair in pairs])
        each.append(gradients(model, lost.mean()))
    weights = {name: item.detach().double().numpy() for name, item in model.named_parameters()}
    snip = {name: np.abs(item * sum(g[name] for g in each) / 5) for name, item in weights.items()}
    check(scores_of(base[0], SNIP, LOSSES["sft"], tmp_path), snip)
    found = scores_of(base[0], SIGN_CONSISTENCY, LOSSES["sft"], tmp_path)
    for name, item in found.items():
        # Where a gradient is nearly 0 its sign is a matter of rounding.
        sure = np.all([np.abs(g[name]) > 1e-6 for g in each], axis=0)
        signs = np.abs(sum(np.sign(g[name]) for g in each)) / 5
        np.testing.assert_allclose(item[sure], signs[sure], rtol=1e-6, err_msg=name)
        assert name.endswith("embed_tokens.weight") or sure.mean() > 0.9


def test_the_policy_gradient_of_rewarded_samples(
    base: Base, tmp_path: Path, drawn: list[Samples]
) -> None:
    def first_token(completions: list[str], **_: Any) -> list[float]:
        return [float(ord(text[0]) % 3) if text else 0.0 for text in completions]

    rows = read_data(DataTable(task="addition"), "rewards").rows
    data = ProbeData(rows, Reward(first_token, (), {}), "\n", 2)
    found = scores_of(base[0], SNIP, LOSSES["reward"], tmp_path, data=data)
    model, tokenizer = load_model(base[0], "fp32", "cpu"), load_tokenizer(base[0])
    total: dict[str, Any] = {}
    for batch in drawn:
        pairs = tokens(batch)
        texts = [tokenizer.decode(c, skip_special_tokens=True) for _, c in pairs]
        rewards = np.array(first_token(texts)).reshape(2, 4)
        spread = rewards.std(1, ddof=1, keepdims=True) + 1e-4
        advantages = ((rewards - rewards.mean(1, keepdims=True)) / spread).ravel()
        lost = [
            -a * log_probs(model, *pair).sum() for a, pair in zip(advantages, pairs, strict=True)
        ]
        loss = torch.stack(lost).sum() / sum(len(c) for _, c in pairs)
        for name, item in gradients(model, loss).items():
            total[name] = total.get(name, 0) + item / len(drawn)
    weights = {name: item.detach().double().numpy() for name, item in model.named_parameters()}
    check(found, {name: np.abs(item * total[name]) for name, item in weights.items()})


@pytest.mark.parametrize("kind", ["own", "sft"])
def test_a_seed_gives_the_same_mask(base: Base, tmp_path: Path, kind: str) -> None:
    losses = LOSSES[kind]
    masks = []
    for seed in (0, 0, 1):
        data = addition(losses)
        with probe(str(base[0]), FISHER, losses, data, folder=tmp_path, seed=seed) as probed:
            quotas = Quotas.of_density(0.1, probed.scores.shapes, match="tensor")
            masks.append(select(probed.scores, quotas, seed=seed, provenance=probed.step))
    assert masks[0] == masks[1] != masks[2]


def test_what_is_told_of_a_probe(base: Base, tmp_path: Path) -> None:
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight"]
    losses = LOSSES["sft"]
    data = addition(losses)
    with probe(
        str(base[0]), SNIP, losses, data, folder=tmp_path, names=names, dtype="bf16"
    ) as probed:
        assert probed.scores.shapes.keys() == set(names)
        assert probed.scores.base.keys() == set(names)
        step = json.loads(json.dumps(probed.step))
    assert step["peak_memory"]["num_bytes"] >= step["peak_memory"]["num_bytes_at_start"]
    assert step["seconds"] > 0
    assert step["base"]["id"] == str(base[0])
    result = {
        "step": "snip",
        "loss": "sft",
        "num_batches": 5,
        "batch_size": 3,
        "num_sequences": 15,
        "seed": 0,
        "dtype": "bf16",
        "left_out": [],
    }
    assert result.items() <= step.items()
    assert step["data"]["source"] == "addition"
    # Each answer has its digits and the end of the line.
    assert 30 <= step["num_tokens"] <= 45


def test_rewards_that_say_nothing(base: Base, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="each of 8 prompts have equal rewards, so all"):
        scores_of(base[0], SIGN_CONSISTENCY, LOSSES["reward"], tmp_path)


def test_an_interrupt_leaves_nothing(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []

    def interrupt(samples: Samples) -> Any:
        rows.append(samples)
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.training.probes.losses.one_by_one", interrupt)
    with pytest.raises(KeyboardInterrupt):
        scores_of(base[0], FISHER, LOSSES["own"], tmp_path)
    assert rows
    assert [*tmp_path.iterdir()] == []


def test_scores_have_the_names_of_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    model = tiny.model()
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    renamed = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    found = scores_of(folder, FISHER, LOSSES["own"], tmp_path)
    assert found.keys() == renamed.keys()


def test_experts_are_scored_one_by_one(tmp_path: Path) -> None:
    model = build("Qwen3Moe")
    layout = Layout.of(model)
    pieces = _chosen(layout, None)
    sums = ElementSums({n: p.shape for n, p in pieces.items()}, {}, tmp_path)
    with sums:
        parameters = dict(model.named_parameters())
        work = _Totals(FISHER, sums, parameters, pieces)
        gradients = {n: torch.randn_like(p) for n, p in parameters.items()}
        for name, gradient in gradients.items():
            work.add(name, gradient)
        expected = dict(layout.tensors(gradients))
        for name in pieces:
            found = np.concatenate([*sums.chunks(name)])
            assert np.array_equal(found, expected[name].square().flatten().numpy()), name


def test_messages_need_a_template(base: Base, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"prompt": [{"role": "user", "content": "1+1="}]}))
    data = read_data(DataTable(file=str(path)), "prompts")
    with pytest.raises(SettingsError, match="has messages, and the tokenizer of"):
        scores_of(base[0], FISHER, LOSSES["own"], tmp_path, data=data)
