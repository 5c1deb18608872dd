"""Bit for bit the same as torch's optimizers on fp32 masters with masked gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
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
    masters_of,
    parameters_of,
    random_mask,
)
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.optimizers import cpu_adamw, elements, kernels
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
@pytest.mark.parametrize("dtype_and_master", [(BF16, None), (BF16, "fp32"), (FP32, None)])
def test_parts_of_a_parameter_get_the_bits_of_the_whole(
    make: Make, dtype_and_master: tuple[torch.dtype, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where AdamW is not one kernel."""
    dtype, master = dtype_and_master
    monkeypatch.setattr(elements, "CHUNK", kernels.BLOCK)
    monkeypatch.setattr(cpu_adamw, "is_torchs", lambda: False)
    shapes = {"a": (61, 33), "b": (1031,), "whole": (401,)}
    parameters = parameters_of(shapes, dtype)
    patterns = parameters["b"].detach().view({BF16: torch.int16, FP32: torch.int32}[dtype])
    patterns[::3] &= ~1  # even weights, which can be ties
    arrays = {name: random_mask({name: shapes[name]}, 0.6).array(name) for name in shapes}
    arrays["whole"][:] = True
    mask = Mask.from_arrays(arrays)
    optimizer, reference = make(
        parameters, mask, weight_decay=0.1, max_grad_norm=2.0, master=master
    )
    assert len(list(optimizer.elements["a"].parts())) > 5
    for step in range(5):
        gradients = gradients_of(parameters, seed=step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients], 2.0)
        reference.check(parameters)


def test_an_element_that_is_not_selected_keeps_its_bits_whatever_its_gradient() -> None:
    payload = torch.tensor([0x7FA1, 0x3F80, 0x3F80, 0x3F80], dtype=torch.int16)
    parameter = torch.nn.Parameter(torch.cat([payload] + [payload[1:]] * 5).view(BF16))
    selected = np.ones(parameter.shape, dtype=np.bool_)
    selected[0] = False
    optimizer = SparseAdamW(
        [("w", parameter)], Mask.from_arrays({"w": selected}), lr=0.1, weight_decay=0.1
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


@given(
    make=st.sampled_from([adamw, sgd]),
    dtype=st.sampled_from([BF16, FP32]),
    density=st.sampled_from([0.02, 0.3, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 2**20),
)
@settings(deadline=None, max_examples=20)
def test_8_bit_states_are_torchs_rounded_to_codes_after_each_step(
    make: Make, dtype: torch.dtype, density: float, weight_decay: float, seed: int
) -> None:
    """And masters of 24 bits are torch's, rounded to these."""
    shapes = {"w": (700,), "rest": (5,)}
    parameters = parameters_of(shapes, dtype, seed)
    mask = random_mask({"w": (700,)}, density, seed)
    optimizer, reference = make(
        parameters, mask, weight_decay=weight_decay, master="lo8", state_dtype=torch.int8
    )
    selected = torch.from_numpy(mask.array("w"))
    for step in range(5):
        gradients = gradients_of(parameters, seed + step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients])
        master = reference.masters["w"]
        if dtype == BF16:
            remainder = torch.empty(int(selected.sum()), dtype=torch.int8)
            weights = kernels.split_lo8(master[selected], remainder)
            joined = weights.float()
            kernels.join_lo8(joined, remainder)
            master[selected] = joined
            assert torch.equal(bits(parameters["w"])[selected], bits(weights))
        else:
            assert torch.equal(parameters["w"][selected], master[selected])
        assert torch.equal(masters_of(optimizer, "w"), master[selected])
        assert torch.equal(bits(parameters["w"])[~selected], bits(reference.start["w"])[~selected])
        state = reference.optimizer.state[master]
        for key, code in optimizer._form.moments.items():
            values = state[key][selected]
            codes = torch.empty(len(values), dtype=kernels.CODES[code])
            scales = torch.empty(-(-len(values) // kernels.BLOCK))
            kernels.encode(values, code, codes, scales)
            assert torch.equal(optimizer.state[parameters["w"]][key], codes)
            kernels.decode(codes, code, scales, values)
            state[key][selected] = values


def test_8_bit_states_take_no_wild_step() -> None:
    """Small gradients beside large ones: their squares have a code above 0, so no eps divides."""
    parameters = parameters_of({"w": (4096,)}, FP32)
    mask = random_mask({"w": (4096,)}, 0.9)
    before = parameters["w"].detach().clone()
    optimizer = SparseAdamW(parameters.items(), mask, lr=1e-3, state_dtype=torch.int8)
    scales = 10.0 ** -torch.linspace(0, 8, 4096)[torch.randperm(4096)]
    for step in range(20):
        parameters["w"].grad = gradients_of(parameters, step)["w"] * scales
        optimizer.step()
    # With betas of .9 and .999 no step of Adam moves an element by more than about 3 learning rates
    # (arXiv 1412.6980, sec. 2.1: (1 - beta1) / sqrt(1 - beta2)).
    assert (parameters["w"] - before).abs().max() <= 20 * 3.2 * 1e-3


def test_one_backward_pass_is_collected_exactly_and_several_in_fp32() -> None:
    parameters = parameters_of({"w": (300,)}, BF16)
    mask = random_mask({"w": (300,)}, 0.5)
    selected = torch.from_numpy(mask.array("w"))
    optimizer = SparseAdamW(parameters.items(), mask, lr=1e-3)
    parts = [gradients_of(parameters, seed)["w"] for seed in range(3)]
    backward(parameters, {"w": parts[0]})
    held = optimizer.elements["w"].gradient
    assert held is not None
    assert held.dtype == BF16
    assert torch.equal(held, parts[0][selected])
    for part in parts[1:]:
        backward(parameters, {"w": part})
    held = optimizer.elements["w"].gradient
    assert held is not None
    total = parts[0][selected].float() + parts[1][selected].float()
    assert torch.equal(held, total + parts[2][selected].float())


def stepped(
    fused: bool, shapes: dict[str, tuple[int, ...]], mask: Mask, dtype: torch.dtype, **more: Any
) -> tuple[Parameters, dict[int, dict[str, Tensor]]]:
    """Weights and states after some steps, the first without a learning rate, from ties."""
    parameters = parameters_of(shapes, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_adamw, "is_torchs", lambda: fused)
        optimizer, _ = adamw(parameters, mask, weight_decay=0.1, max_grad_norm=5.0, **more)
        group = optimizer.param_groups[0]
        group["lr"] = 0.0
        for step in range(4):
            backward(parameters, gradients_of(parameters, seed=step))
            if step == 1:
                for name, parameter in parameters.items():
                    state = optimizer.state[parameter]
                    if "ties" in state:  # every third even weight, half of them the upper ones
                        index = optimizer.elements[name].kernels.positions.index()
                        even = (bits(parameter).view(-1)[index] & 1 == 0).nonzero().flatten()[::3]
                        state["remainder"][even] = -(2**15)
                        state["ties"] = even[::2].int()
            if step == 2:
                group["lr"] = 1e-3
            optimizer.step()
    return parameters, optimizer.state_dict()["state"]


@pytest.mark.parametrize("clip_by", ["masked", "full"])
@pytest.mark.parametrize("state_dtype", [FP32, torch.int8])
@pytest.mark.parametrize(
    ("dtype", "master"),
    [(BF16, "lo16"), (BF16, "lo8"), (BF16, "fp32"), (BF16, "none"), (FP32, None)],
)
def test_one_kernel_gives_the_bits_of_torchs_on_parts(
    dtype: torch.dtype, master: Any, state_dtype: torch.dtype, clip_by: str
) -> None:
    if not cpu_adamw.is_torchs():
        pytest.skip("torch's kernel was compiled otherwise here")
    shapes = {"large": (401, 1003), "odd": (1031,), "few": (5,)}
    more = {"master": master, "state_dtype": state_dtype, "clip_by": clip_by}
    mask = random_mask(shapes, 0.2)
    one, states = stepped(True, shapes, mask, dtype, **more)
    other, others = stepped(False, shapes, mask, dtype, **more)
    for name in shapes:
        assert torch.equal(bits(one[name]), bits(other[name])), name
    for number, state in states.items():
        for key, value in state.items():
            assert torch.equal(value, others[number][key]), key
