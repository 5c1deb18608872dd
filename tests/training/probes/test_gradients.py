"""Gradients are seen one at a time, as autograd has them, and are gone after."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trimtab.errors import SettingsError
from trimtab.training.probes.engine import each_gradient

pytestmark = pytest.mark.train


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"twice": (3, 3), "once": (3,), "never": (2,)}
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }


def loss_of(one: dict[str, nn.Parameter]) -> Tensor:
    return (one["twice"] @ one["twice"] @ one["once"]).sum()


def test_each_is_seen_once_and_freed(parameters: dict[str, nn.Parameter]) -> None:
    loss = loss_of(parameters)
    used = [parameters["twice"], parameters["once"]]
    expected = torch.autograd.grad(loss, used, retain_graph=True)
    seen: dict[str, Tensor] = {}
    alone = []

    def see(name: str, gradient: Tensor) -> None:
        assert name not in seen
        seen[name] = gradient.clone()
        gradient.zero_()  # it may be overwritten
        alone.append(all(one.grad is None for one in parameters.values()))

    with each_gradient(parameters, see) as backward:
        backward(loss)
        assert alone == [True, True]
        torch.testing.assert_close([seen["twice"], seen["once"]], list(expected))
        assert seen.keys() == {"twice", "once"}
        seen.clear()
        backward(loss_of(parameters))
        torch.testing.assert_close([seen["twice"], seen["once"]], list(expected))
    loss_of(parameters).backward()  # type: ignore[no-untyped-call]
    assert parameters["once"].grad is not None  # nobody looks any more


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite(parameters: dict[str, nn.Parameter], bad: float) -> None:
    seen = []
    with (
        each_gradient(parameters, lambda name, _: seen.append(name)) as backward,
        pytest.raises(SettingsError, match="the gradient of once has NaN or infinity"),
    ):
        backward(parameters["once"][1] * bad)
    assert seen == []
