"""The contestants of the optimizer's benchmark do what its page says they do."""

from __future__ import annotations

import pytest

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.train,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),
]

import torch  # noqa: E402
from benchmarks.contestants import (  # noqa: E402
    BASELINES,
    MASKED,
    Contestant,
    make_model,
    random_mask,
    tokens,
)
from benchmarks.optimizer import time_step  # noqa: E402
from torch import Tensor  # noqa: E402

TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
MASK = random_mask(make_model(TINY), 0.2)
MASKING = [name for name in MASKED if "PEFT" not in name]


@pytest.fixture(autouse=True)
def large_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that bf16 shows in weights of 1, the norms, too."""
    monkeypatch.setattr("benchmarks.contestants.LEARNING_RATE", 0.01)


def trained(name: str) -> Contestant:
    model = make_model(TINY)
    contestant = MASKED[name](model, MASK) if name in MASKED else BASELINES[name](model)
    for _ in range(3):
        time_step(contestant, tokens())
    return contestant


def moved(contestant: Contestant) -> dict[str, Tensor]:
    base = dict(make_model(TINY).named_parameters())
    return {name: p != base[name] for name, p in contestant.model.named_parameters()}


@pytest.mark.parametrize("name", [*BASELINES, *MASKED])
def test_every_contestant_learns(name: str) -> None:
    contestant = trained(name)
    with torch.no_grad():
        loss = contestant.model(input_ids=tokens(), labels=tokens()).loss
        before = make_model(TINY)(input_ids=tokens(), labels=tokens()).loss
    assert loss < before


@pytest.mark.parametrize("name", MASKING)
def test_masks_hold(name: str) -> None:
    contestant = trained(name)
    assert contestant.num_trained == MASK.num_selected()
    for tensor, item in moved(contestant).items():
        assert item.any(), tensor
        assert not item.numpy()[~MASK.array(tensor)].any(), tensor


def test_the_reference_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # trimtab sums the norm in fp64, which may give another last bit: nothing is clipped.
    monkeypatch.setattr("benchmarks.contestants.MAX_GRAD_NORM", 1e9)
    reference, ours = (
        dict(trained(name).model.named_parameters())
        for name in ("masked dense AdamW, fp32 masters", "SparseAdamW")
    )
    for name, weights in ours.items():
        assert torch.equal(weights, reference[name]), name


def test_phases_add_up() -> None:
    contestant = MASKED["SparseAdamW"](make_model(TINY), MASK)
    took = time_step(contestant, tokens())
    assert 0 < took["hooks"] < took["backward"]
    assert took["hooks"] < took["optimizer"]
    assert took["whole"] > took["forward"] + took["backward"]
