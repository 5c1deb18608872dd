"""Bit for bit the same as torch's optimizers on fp32 masters with masked gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.optimizers.reference import (
    Parameters,
    Reference,
    backward,
    bits,
    gradients_of,
    parameters_of,
    random_mask,
)
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.optimizers import elements
from trimtab.training.optimizers.sparse import SparseOptimizer

pytestmark = pytest.mark.train

BF16, FP32, FP16 = torch.bfloat16, torch.float32, torch.float16

SHAPES: dict[str, tuple[int, ...]] = {
    "scalar": (),
    "one": (1,),
    "bias": (7,),
    "matrix": (13, 5),
    "vector": (64,),
    "odd": (3, 11, 31),
    "empty": (0, 4),
}

Pair = tuple[SparseOptimizer, Reference]
Make = Callable[..., Pair]


def adamw(parameters: Parameters, mask: Any, *, weight_decay: float, **more: Any) -> Pair:
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": weight_decay}
    return (
        SparseAdamW(parameters.items(), mask, **settings, **more),  # type: ignore[arg-type]
        Reference(parameters, mask, lambda m: torch.optim.AdamW(m, fused=True, **settings)),  # type: ignore[arg-type]
    )


def sgd(
    parameters: Parameters, mask: Any, *, weight_decay: float, momentum: float = 0.9, **more: Any
) -> Pair:
    settings = {"lr": 1e-2, "momentum": momentum, "weight_decay": weight_decay}
    return (
        SparseSGD(parameters.items(), mask, **settings, **more),  # type: ignore[arg-type]
        Reference(parameters, mask, lambda m: torch.optim.SGD(m, fused=True, **settings)),  # type: ignore[arg-type]
    )


def plain_sgd(parameters: Parameters, mask: Any, *, weight_decay: float, **more: Any) -> Pair:
    return sgd(parameters, mask, weight_decay=weight_decay, momentum=0.0, **more)


@given(
    make=st.sampled_from([adamw, sgd, plain_sgd]),
    dtype_and_master=st.sampled_from(
        [(BF16, None), (BF16, "lo16"), (BF16, "fp32"), (FP32, None), (FP32, "lo16"), (FP16, None)]
    ),
    names=st.sets(st.sampled_from(sorted(SHAPES)), min_size=2),
    density=st.sampled_from([0.02, 0.3, 0.7, 0.85, 0.97]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    max_grad_norm=st.sampled_from([None, 0.5, 100.0]),
    num_microbatches=st.integers(1, 3),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=60)
def test_equals_torch_and_leaves_the_rest_alone(
    make: Make,
    dtype_and_master: tuple[torch.dtype, Any],
    names: set[str],
    density: float,
    weight_decay: float,
    max_grad_norm: float | None,
    num_microbatches: int,
    seed: int,
) -> None:
    dtype, master = dtype_and_master
    shapes = {name: SHAPES[name] for name in sorted(names - {"empty"}) or ["odd"]}
    shapes["empty"] = SHAPES["empty"]
    parameters = parameters_of(shapes, dtype, seed)
    if sum(p.numel() for p in parameters.values()) < 2:
        return
    shapes.pop("empty")
    mask = random_mask(shapes, density, seed)
    optimizer, reference = make(
        parameters, mask, weight_decay=weight_decay, master=master, max_grad_norm=max_grad_norm
    )
    for step in range(6):
        microbatches = [
            gradients_of(parameters, seed + 10 * step + i) for i in range(num_microbatches)
        ]
        for gradients in microbatches:
            backward(parameters, gradients)
            assert all(p.grad is None for p in parameters.values())
        optimizer.step()
        reference.step(microbatches, max_grad_norm)
        reference.check(parameters)
    optimizer.close()


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_thousands_of_steps(make: Make, dtype: torch.dtype) -> None:
    shapes = {"compact": (37,), "dense": (29,)}
    parameters = parameters_of(shapes, dtype)
    mask = random_mask({"compact": (37,)}, 0.4)
    mask = type(mask).from_arrays(
        {"compact": mask.array("compact"), "dense": random_mask({"d": (29,)}, 0.9).array("d")}
    )
    optimizer, reference = make(parameters, mask, weight_decay=0.1, max_grad_norm=3.0)
    for step in range(3000):
        gradients = gradients_of(parameters, seed=step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients], 3.0)
        if step % 100 == 99:
            reference.check(parameters)
    moved = bits(parameters["compact"]) != bits(reference.start["compact"])
    assert int(moved.sum()) == mask.num_selected("compact")


def test_tensors_that_threads_share(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"large": (401, 1003)}
    parameters = parameters_of(shapes, BF16)
    mask = random_mask(shapes, 0.1)
    optimizer, reference = adamw(parameters, mask, weight_decay=0.1, max_grad_norm=1.0)
    for step in range(3):
        gradients = gradients_of(parameters, seed=step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients], 1.0)
        reference.check(parameters)
        assert optimizer.grad_norm == reference.norm


@pytest.mark.parametrize("make", [adamw, sgd])
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_compact_and_dense_elements_get_the_same_bits(
    make: Make, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"a": (31, 33), "b": (17,)}
    mask = random_mask(shapes, 0.6)
    outcomes = []
    for dense_above in (0.0, 1.0):
        monkeypatch.setattr(elements, "DENSE_ABOVE", dense_above)
        parameters = parameters_of(shapes, dtype)
        with torch.no_grad():
            parameters["b"][:4] = torch.tensor([0.0, -0.0, 3e38, 1e-40])
        optimizer, _ = make(parameters, mask, weight_decay=0.1, max_grad_norm=2.0)
        for step in range(5):
            backward(parameters, gradients_of(parameters, seed=step))
            optimizer.step()
        outcomes.append((parameters, optimizer.state_dict()))
    (dense, dense_state), (compact, compact_state) = outcomes
    for name in shapes:
        assert torch.equal(bits(dense[name]), bits(compact[name]))
    assert dense_state["state"].keys() == compact_state["state"].keys()
    for number, state in dense_state["state"].items():
        for key, value in state.items():
            other = compact_state["state"][number][key]
            assert value.dtype == other.dtype
            assert torch.equal(value, other), key


def test_dense_elements_keep_the_bits_of_a_nan_that_is_not_selected() -> None:
    payload = torch.tensor([0x7FA1, 0x3F80, 0x3F80, 0x3F80], dtype=torch.int16)
    parameter = torch.nn.Parameter(torch.cat([payload] + [payload[1:]] * 5).view(BF16))
    mask = random_mask({"w": tuple(parameter.shape)}, 2.0)
    selected = mask.array("w")
    selected[0], selected[-1] = False, True
    optimizer = SparseAdamW(
        [("w", parameter)], type(mask).from_arrays({"w": selected}), lr=0.1, weight_decay=0.1
    )
    gradient = torch.ones_like(parameter)
    gradient[0] = float("nan")
    parameter.grad = gradient
    optimizer.step()
    assert bits(parameter)[0] == 0x7FA1
    assert (bits(parameter)[1:] != 0x3F80).all()


def test_without_master_bf16_weights_are_rounded_once_a_step() -> None:
    parameters = parameters_of({"w": (300,)}, BF16)
    mask = random_mask({"w": (300,)}, 0.5)
    optimizer, reference = adamw(parameters, mask, weight_decay=0.1, master="none")
    for step in range(10):
        gradients = gradients_of(parameters, seed=step)
        reference.masters["w"].copy_(parameters["w"].detach().float())
        reference.start["w"] = parameters["w"].detach().clone()
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients])
        reference.check(parameters)


def test_a_small_learning_rate_needs_a_master() -> None:
    moved = {}
    for master in ("lo16", "fp32", "none"):
        parameters = parameters_of({"w": (4000,)}, BF16)
        start = bits(parameters["w"]).clone()
        mask = random_mask({"w": (4000,)}, 0.5)
        optimizer = SparseAdamW(parameters.items(), mask, lr=1e-5, master=master)
        for step in range(50):
            backward(parameters, gradients_of(parameters, seed=step // 10))
            optimizer.step()
        moved[master] = int((bits(parameters["w"]) != start).sum())
    assert moved["lo16"] == moved["fp32"] > 3 * moved["none"]


@pytest.mark.parametrize("make", [adamw, sgd])
def test_state_in_bf16_is_rounded_after_each_step(make: Make) -> None:
    parameters = parameters_of({"w": (300,)}, BF16)
    mask = random_mask({"w": (300,)}, 0.5)
    optimizer, reference = make(parameters, mask, weight_decay=0.1, state_dtype=BF16)
    for step in range(10):
        gradients = gradients_of(parameters, seed=step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients])
        reference.check(parameters)
        for state in reference.optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor) and value.dim():
                    state[key] = value.to(BF16).float()
    saved = optimizer.state_dict()["state"][0]
    for key, value in saved.items():
        if key in ("exp_avg", "exp_avg_sq", "momentum_buffer"):
            assert value.dtype == BF16
            assert torch.equal(value.float(), reference.moment("w", key))
