"""Noise is in the model while the block lasts, and no bit of it afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.training import tiny
from trimtab.errors import MaskMismatchError
from trimtab.masks.mask import Mask
from trimtab.training.perturbation.noise import NOISES, fingerprint, noisy, perturbed

pytestmark = pytest.mark.train


@pytest.fixture
def model() -> Any:
    made = tiny.model().to(torch.bfloat16)
    with torch.no_grad():
        next(made.parameters()).view(-1)[:4] = torch.tensor([0.0, -0.0, float("inf"), 1e-40])
    return made


def mask_of(model: Any) -> Mask:
    """Some of every second tensor; the others have nothing selected, or are not there."""
    arrays = {}
    for place, (name, parameter) in enumerate(model.named_parameters()):
        selected = np.random.default_rng(place).random(parameter.shape) < 0.4 * (place % 2)
        if place % 3:
            arrays[name] = selected
    return Mask.from_arrays(arrays)


@pytest.mark.parametrize("noise", NOISES)
def test_only_the_elements_chosen_change_and_all_come_back(model: Any, noise: str) -> None:
    mask = mask_of(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    bits = fingerprint(model)
    with perturbed(model, mask, noise, 1.0, seed=0) as hit:
        num_changed = 0
        for name, parameter in model.named_parameters():
            moved = (parameter.view(torch.int16) != before[name].view(torch.int16)).numpy()
            chosen = mask.array(name) if name in mask else np.zeros(moved.shape, np.bool_)
            assert not (moved & ~chosen).any()
            num_changed += int(moved.sum())
        assert fingerprint(model) != bits
    assert hit.num_chosen == mask.num_selected()
    assert hit.num_changed == num_changed > 0
    assert fingerprint(model) == bits
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.view(torch.int16), before[name].view(torch.int16))


def test_bits_come_back_after_an_error(model: Any) -> None:
    bits = fingerprint(model)
    with (
        pytest.raises(RuntimeError, match="in the middle"),
        perturbed(model, mask_of(model), "sign", 1.0, seed=0),
    ):
        raise RuntimeError("in the middle")
    assert fingerprint(model) == bits


def test_bits_come_back_if_a_later_tensor_cannot_be_perturbed(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = fingerprint(model)
    first, second = list(model.named_parameters())[:2]
    mask = Mask.from_arrays({n: np.ones(one.shape, np.bool_) for n, one in (first, second)})

    def fails(flat: Any, places: Any, *settings: Any, name: str, **more: Any) -> Any:
        if name == second[0]:
            raise MemoryError
        return noisy(flat, places, *settings, name=name, **more)

    monkeypatch.setattr("trimtab.training.perturbation.noise.noisy", fails)
    with pytest.raises(MemoryError), perturbed(model, mask, "sign", 1.0, seed=0):
        pass
    assert fingerprint(model) == bits


def test_a_mask_of_another_model_perturbs_nothing(model: Any) -> None:
    bits = fingerprint(model)
    mask = Mask.from_arrays({"stranger": np.ones(3, np.bool_)})
    with (
        pytest.raises(MaskMismatchError, match="stranger is not in the model"),
        perturbed(model, mask, "sign", 1.0, seed=0),
    ):
        pass
    assert fingerprint(model) == bits


def test_a_fingerprint_sees_the_sign_of_zero(model: Any) -> None:
    parameter = next(model.parameters()).detach().view(-1)
    bits = fingerprint(model)
    parameter[0] = -0.0
    assert fingerprint(model) != bits
    parameter[0] = 0.0
    assert fingerprint(model) == bits
