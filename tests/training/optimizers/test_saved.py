"""Resume bit for bit; dtypes are kept, and a state of another run is refused."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.optimizers.reference import (
    Parameters,
    backward,
    bits,
    gradients_of,
    masters_of,
    parameters_of,
    random_mask,
)
from trimtab.errors import OptimizerError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.optimizers.sparse import SparseOptimizer

pytestmark = pytest.mark.train

BF16, FP32, FP16, INT8 = torch.bfloat16, torch.float32, torch.float16, torch.int8
SHAPES = {"a": (23, 9), "b": (31,)}

CASES = [
    (SparseAdamW, BF16, {}),
    (SparseAdamW, BF16, {"master": "fp32"}),
    (SparseAdamW, BF16, {"master": "none"}),
    (SparseAdamW, BF16, {"state_dtype": BF16}),
    (SparseAdamW, BF16, {"state_dtype": INT8}),
    (SparseAdamW, BF16, {"state_dtype": INT8, "master": "lo8"}),
    (SparseAdamW, FP32, {"state_dtype": INT8}),
    (SparseAdamW, FP32, {"state_dtype": BF16}),
    (SparseAdamW, FP16, {}),
    (SparseSGD, BF16, {"momentum": 0.9}),
    (SparseSGD, BF16, {}),
    (SparseSGD, FP32, {}),
]


@pytest.fixture
def mask() -> Mask:
    return random_mask(SHAPES, 0.5)


def train(parameters: Parameters, optimizer: SparseOptimizer, steps: range) -> None:
    for step in steps:
        backward(parameters, gradients_of(parameters, step))
        optimizer.step()


def through_torch(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
@pytest.mark.parametrize(("optimizer_class", "dtype", "more"), CASES)
def test_a_copy_trains_its_copies_as_the_original_would(
    copied: Any, optimizer_class: Any, dtype: Any, more: Any, mask: Mask
) -> None:
    parameters = parameters_of(SHAPES, dtype)
    optimizer = optimizer_class(parameters.items(), mask, lr=0.01, max_grad_norm=1.0, **more)
    train(parameters, optimizer, range(3))
    backward(parameters, gradients_of(parameters, 99))  # collected and unused: not copied
    others, other = copied((parameters, optimizer))
    optimizer.zero_grad()
    before = {name: bits(item.detach().clone()) for name, item in parameters.items()}
    train(others, other, range(3, 6))
    assert all(torch.equal(bits(parameters[name]), before[name]) for name in SHAPES)
    train(parameters, optimizer, range(3, 6))
    assert all(torch.equal(bits(others[name]), bits(parameters[name])) for name in SHAPES)
    assert other.describe() == optimizer.describe()


def test_a_copy_of_a_scheduled_or_closed_optimizer(mask: Mask) -> None:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(parameters, optimizer, range(1))
    schedule.step()
    others, other = through_torch((parameters, optimizer))  # step is wrapped by the schedule
    assert other.param_groups[0]["lr"] == 0.005
    optimizer.close()
    _, closed = copy.deepcopy((parameters, optimizer))
    with pytest.raises(OptimizerError, match="closed"):
        closed.step()
    train(others, other, range(1, 2))
    optimizer.reopen()
    train(parameters, optimizer, range(1, 2))
    assert all(torch.equal(bits(others[name]), bits(parameters[name])) for name in SHAPES)


@pytest.mark.parametrize("master", ["fp32", "none", "lo16"])
def test_a_reopened_optimizer_goes_on_from_the_weights_that_are_there(
    master: Any, mask: Mask
) -> None:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, master=master)
    train(parameters, optimizer, range(3))
    optimizer.close()
    others = parameters_of(SHAPES, BF16, seed=7)
    for name, parameter in parameters.items():
        parameter.data.copy_(others[name])
    optimizer.reopen()
    train(parameters, optimizer, range(3, 4))
    for name, parameter in parameters.items():
        assert (
            parameter.detach() - others[name].detach()
        ).abs().max() < 0.04  # a step, and rounding


def test_parameters_alone_are_copied_as_parameters_of_nobody(mask: Mask) -> None:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    for others in (through_torch(parameters), copy.deepcopy(parameters)):
        SparseAdamW(others.items(), mask, lr=0.01).close()
    with pytest.raises(OptimizerError, match="a belongs to another sparse optimizer"):
        copy.copy(optimizer)  # it would have the very parameters
    train(parameters, optimizer, range(1))


def test_a_grad_scaler_is_told_what_to_do(mask: Mask) -> None:
    scaler = torch.amp.GradScaler("cpu")
    parameters = parameters_of(SHAPES, FP32)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    scaler.scale(torch.ones(()))
    backward(parameters, gradients_of(parameters, 0))
    with pytest.raises(OptimizerError, match=r"GradScaler .* bf16, .* clip_by=\"full\""):
        scaler.step(optimizer)
    optimizer.close()


def test_a_grad_scaler_with_gradients_left_in_place(mask: Mask) -> None:
    found = []
    for factor in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=factor)
        parameters = parameters_of(SHAPES, FP32)
        optimizer = SparseAdamW(
            parameters.items(), mask, lr=0.01, clip_by="full", max_grad_norm=1.0
        )
        gradients = gradients_of(parameters, 0, float(scaler.scale(torch.ones(()))))
        backward(parameters, gradients)
        scaler.step(optimizer)
        scaler.update()
        found.append(parameters)
        optimizer.close()
    assert all(torch.equal(found[0][name], found[1][name]) for name in SHAPES)
    assert not torch.equal(found[0]["a"], parameters_of(SHAPES, FP32)["a"])


def saved_at_step_5(mask: Mask, **more: Any) -> tuple[Parameters, dict[str, Any]]:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, **more)
    train(parameters, optimizer, range(5))
    optimizer.close()
    return parameters, optimizer.state_dict()


@pytest.mark.parametrize(("kind", "dtype", "settings"), CASES)
@pytest.mark.parametrize("density", [0.5, 0.95])
def test_resumed_run_is_the_uninterrupted_one(
    kind: Callable[..., SparseOptimizer],
    dtype: torch.dtype,
    settings: dict[str, Any],
    density: float,
    tmp_path: Path,
) -> None:
    mask = random_mask(SHAPES, density)
    whole = parameters_of(SHAPES, dtype)
    optimizer = kind(whole.items(), mask, lr=0.01, weight_decay=0.1, **settings)
    train(whole, optimizer, range(20))
    torch.save(
        {
            "weights": {name: p.detach().clone() for name, p in whole.items()},
            "optimizer": optimizer.state_dict(),
        },
        tmp_path / "state.pt",
    )
    train(whole, optimizer, range(20, 40))

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = {name: torch.nn.Parameter(tensor) for name, tensor in saved["weights"].items()}
    again = kind(resumed.items(), mask, lr=0.5, weight_decay=0.0, **settings)
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(20, 40))
    for name in SHAPES:
        assert torch.equal(bits(resumed[name]), bits(whole[name]))
    expected, found = optimizer.state_dict(), again.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    for number, state in expected["state"].items():
        for key, value in state.items():
            assert found["state"][number][key].dtype == value.dtype
            assert torch.equal(found["state"][number][key], value)


def test_resume_with_ties() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(40).bfloat16())}
    mask = random_mask({"w": (40,)}, 0.5)
    optimizer = SparseSGD(parameters.items(), mask, lr=1.0)
    backward(parameters, {"w": torch.full((40,), -(2.0**-8)).bfloat16()})  # half a bf16 step
    optimizer.step()
    saved = optimizer.state_dict()
    k = mask.num_selected()
    assert saved["state"][0]["ties"].tolist() == list(range(k))
    assert saved["state"][0]["remainder"].tolist() == [-32768] * k
    optimizer.close()
    again = SparseSGD(parameters.items(), mask, lr=1.0)
    again.load_state_dict(saved)
    found = again.state_dict()["state"][0]
    assert torch.equal(found["ties"], saved["state"][0]["ties"])
    assert masters_of(again, "w").tolist() == [1.0 + 2.0**-8] * k


def test_loaded_state_is_a_copy(mask: Mask) -> None:
    parameters, saved = saved_at_step_5(mask)
    before = copy.deepcopy(saved)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    optimizer.load_state_dict(saved)
    train(parameters, optimizer, range(5, 9))
    for number, state in before["state"].items():
        for key, value in state.items():
            assert torch.equal(saved["state"][number][key], value), key


def test_state_before_the_first_step_can_be_loaded(mask: Mask) -> None:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    saved = optimizer.state_dict()
    assert saved["state"] == {}
    optimizer.load_state_dict(saved)
    train(parameters, optimizer, range(2))


def test_skipped_steps_are_counted_on(mask: Mask) -> None:
    parameters = parameters_of(SHAPES, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, nonfinite="skip")
    backward(parameters, {n: g * float("nan") for n, g in gradients_of(parameters, 0).items()})
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.close()
    again = SparseAdamW(parameters.items(), mask, lr=0.01)
    again.load_state_dict(saved)
    assert again.num_skipped_steps == 1


def refused(optimizer: SparseOptimizer, saved: dict[str, Any], message: str) -> None:
    own = optimizer.state_dict()
    with pytest.raises(OptimizerError, match=message) as caught:
        optimizer.load_state_dict(saved)
    assert "\n" not in str(caught.value)
    assert optimizer.state_dict()["param_groups"] == own["param_groups"]
    assert optimizer.state_dict()["state"].keys() == own["state"].keys()


def test_state_of_another_run_is_refused(mask: Mask) -> None:
    parameters, saved = saved_at_step_5(mask)

    def check(message: str, of: Mask = mask, kind: Any = SparseAdamW, **settings: Any) -> None:
        optimizer = kind(parameters.items(), of, lr=0.02, **settings)
        refused(optimizer, saved, message)
        optimizer.close()

    other = random_mask(SHAPES, 0.5, seed=1)
    check(f"its mask has the digest '{mask.digest}', here '{other.digest}'", of=other)
    check("it was saved by 'SparseAdamW', here 'SparseSGD'", kind=SparseSGD)
    check("its running means are 'float32', here 'bfloat16'", state_dtype=BF16)
    check("a: dtype and master .*lo16.*, here .*fp32", master="fp32")
    check("its groups hold other parameters", no_decay=lambda name: name == "a")
    many = "digest .*; its running means are .*; a: dtype and master .*; b: dtype and master"
    check(many, of=other, state_dtype=BF16, master="none")


def test_state_of_another_base_is_refused() -> None:
    plain = random_mask(SHAPES, 0.5)
    arrays = {name: plain.array(name) for name in plain}
    bases = [{"a": BaseTensor("BF16", digit * 32)} for digit in "01"]
    first, second = (Mask.from_arrays(arrays, base=base) for base in bases)
    assert first.digest == second.digest
    parameters, saved = saved_at_step_5(first, check_base=False)
    optimizer = SparseAdamW(parameters.items(), second, lr=0.01, check_base=False)
    refused(optimizer, saved, "a: base '0{32}', here '1{32}'")


def test_state_of_a_dense_optimizer_is_refused(mask: Mask) -> None:
    parameters = parameters_of(SHAPES, BF16)
    dense = torch.optim.AdamW(parameters.values()).state_dict()
    refused(SparseAdamW(parameters.items(), mask, lr=0.01), dense, "no record 'trimtab'")


def first(saved: dict[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = saved["state"][0]
    return state


def replace(key: str, change: Callable[[Tensor], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda saved: first(saved).update({key: change(first(saved)[key])})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: first(saved).pop("step"), "a has .*, not .*'step'"),
        (lambda saved: first(saved).update(extra=1), "a has .*'extra'"),
        (replace("exp_avg", lambda v: v.bfloat16()), "exp_avg of a is not a vector of float32"),
        (replace("exp_avg_sq", lambda v: v[1:]), "exp_avg_sq of a is not a vector"),
        (replace("remainder", lambda v: v.int()), "remainder of a is not a vector of int16"),
        (replace("remainder", lambda v: 3), "remainder of a"),
        (replace("step", lambda v: v[None]), "step of a is not a number"),
        (replace("ties", lambda v: torch.tensor([5, 2]).int()), "ties of a is not a positions"),
        (replace("ties", lambda v: torch.tensor([-1]).int()), "ties of a"),
        (replace("ties", lambda v: torch.tensor([10**6]).int()), "ties of a"),
        (lambda saved: saved["state"].update({7: {}}), "no parameter has the number 7"),
        (lambda saved: saved["param_groups"][0].update(params=[0]), "groups have other sizes"),
        (lambda saved: saved["trimtab"].update(format=2), "format 1"),
    ],
)
def test_damaged_state_is_refused(
    mask: Mask, damage: Callable[[dict[str, Any]], Any], message: str
) -> None:
    parameters, saved = saved_at_step_5(mask)
    saved = copy.deepcopy(saved)
    damage(saved)
    refused(SparseAdamW(parameters.items(), mask, lr=0.01), saved, message)


@pytest.mark.parametrize("master", ["lo16", "lo8"])
def test_codes_pass_through_torchs_distributed_checkpoints(master: Any) -> None:
    """As fp32 there, since their blocks differ with the number of processes."""
    shapes = {"a": (40, 30), "b": (7,)}
    mask = random_mask(shapes, 0.5)
    settings = {"lr": 1e-2, "state_dtype": INT8, "master": master}
    parameters = parameters_of(shapes, BF16)
    optimizer = SparseAdamW(parameters.items(), mask, **settings)
    for step in range(3):
        backward(parameters, gradients_of(parameters, step))
        optimizer.step()
    content = optimizer.sharded_state_dict()
    means = content["state"]["a"]
    assert means["exp_avg"].dtype == means["exp_avg_sq"].dtype == FP32
    assert not any(key.endswith("_scale") for key in means)
    twin = {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
    again = SparseAdamW(twin.items(), mask, **settings)
    again.load_sharded_state_dict(copy.deepcopy(content))
    for number, state in optimizer.state_dict()["state"].items():
        found = again.state_dict()["state"][number]
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())
