"""What happens to gradients, in which order, and what happens when they are bad or absent."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from tests.training.optimizers.reference import (
    Parameters,
    Reference,
    backward,
    bits,
    gradients_of,
    parameters_of,
    random_mask,
)
from trimtab.errors import OptimizerError, SettingsError
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.optimizers.kernels import BLOCK

pytestmark = pytest.mark.train

SHAPES = {"a": (9, 7), "b": (5,), "free": (4, 3)}
MASKED = {"a": (9, 7), "b": (5,)}


@pytest.fixture
def parameters() -> Parameters:
    return parameters_of(SHAPES, torch.bfloat16)


@pytest.fixture
def mask() -> Mask:
    return random_mask(MASKED, 0.4)


@pytest.fixture
def optimizer(parameters: Parameters, mask: Mask) -> Iterator[SparseAdamW]:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    yield optimizer
    optimizer.close()


def snapshot(parameters: Parameters, optimizer: torch.optim.Optimizer) -> Any:
    weights = {name: bits(p).clone() for name, p in parameters.items()}
    state = optimizer.state_dict()["state"]
    return weights, {i: {k: v.clone() for k, v in item.items()} for i, item in state.items()}


def assert_same(left: Any, right: Any) -> None:
    for before, after in zip(left, right, strict=True):
        assert before.keys() == after.keys()
    for name, weights in left[0].items():
        assert torch.equal(weights, right[0][name])
    for number, state in left[1].items():
        for key, value in state.items():
            assert torch.equal(value, right[1][number][key])


def test_gradients_are_freed_as_soon_as_they_are_there(
    parameters: Parameters, optimizer: SparseAdamW
) -> None:
    seen: list[list[bool]] = []

    def watch(parameter: torch.Tensor) -> None:
        seen.append([p.grad is None for p in parameters.values()])

    for parameter in parameters.values():
        parameter.register_post_accumulate_grad_hook(watch)  # type: ignore[no-untyped-call]
    backward(parameters, gradients_of(parameters, 0))
    assert seen == [[True, True, True]] * 3


def test_memory_follows_the_mask() -> None:
    parameters = parameters_of({"w": (1000, 100)}, torch.bfloat16)
    mask = random_mask({"w": (1000, 100)}, 0.05)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    backward(parameters, gradients_of(parameters, 0))
    optimizer.step()
    result = optimizer.describe()
    k = mask.num_selected()
    held = sum(v.untyped_storage().nbytes() for v in optimizer.state[parameters["w"]].values())
    num_blocks = -(-k // BLOCK)
    assert result["index_bytes"] == 2 * k + 4 * num_blocks
    assert result["gradient_bytes"] == 2 * k
    assert result["state_bytes"] == 10 * k
    assert result["state_bytes"] <= held <= result["state_bytes"] + 4 + 4 * k // 1000


@pytest.mark.parametrize("density", [0.05, 0.2])
def test_memory_of_8_bit_states(density: float) -> None:
    parameters = parameters_of({"w": (1000, 100)}, torch.bfloat16)
    mask = random_mask({"w": (1000, 100)}, density)
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, master="lo8", state_dtype=torch.int8)
    backward(parameters, gradients_of(parameters, 0))
    positions = optimizer.elements["w"].kernels.positions
    gradient = optimizer.elements["w"].gradient
    assert gradient is not None
    held = positions.bases.nbytes + positions.offsets.nbytes + gradient.nbytes
    optimizer.step()
    held += sum(v.nbytes for v in optimizer.state[parameters["w"]].values()) - 4  # the step
    result = optimizer.describe()
    assert held == sum(result[f"{kind}_bytes"] for kind in ("index", "gradient", "state"))
    assert held <= 7.15 * mask.num_selected()


def test_gradient_set_by_hand_is_collected(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    reference = Reference(
        parameters, mask, lambda m: torch.optim.AdamW(m, lr=0.01, weight_decay=0.0, fused=True)
    )
    gradients = gradients_of(parameters, 0)
    for name, parameter in parameters.items():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    reference.step([gradients])
    reference.check(parameters)
    assert parameters["a"].grad is None


def test_distributed_checkpointing_can_make_the_state(
    parameters: Parameters, optimizer: SparseAdamW
) -> None:
    from torch.distributed.checkpoint.state_dict import _init_optim_state

    before, _ = snapshot(parameters, optimizer)
    _init_optim_state(optimizer)
    after, state = snapshot(parameters, optimizer)
    assert_same((before, {}), (after, {}))
    assert len(state) == 2


def test_gradient_of_any_memory_layout(mask: Mask) -> None:
    results = []
    for transpose in (False, True):
        parameters = parameters_of(SHAPES, torch.float32)
        optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
        gradient = gradients_of(parameters, 0)["a"]
        parameters["a"].grad = gradient.T.contiguous().T if transpose else gradient
        optimizer.step()
        results.append(bits(parameters["a"]))
    assert torch.equal(*results)


def test_parameter_without_gradient_is_not_stepped(
    parameters: Parameters, optimizer: SparseAdamW
) -> None:
    before = bits(parameters["b"]).clone()
    (parameters["a"] * 2.0).sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.equal(bits(parameters["b"]), before)
    assert list(optimizer.state_dict()["state"]) == [0]


def test_step_without_gradients_does_nothing(
    parameters: Parameters, optimizer: SparseAdamW
) -> None:
    optimizer.step()
    assert optimizer.grad_norm is None
    backward(parameters, gradients_of(parameters, 0))
    optimizer.step()
    before = snapshot(parameters, optimizer)
    optimizer.step()
    assert_same(before, snapshot(parameters, optimizer))


def test_zero_grad_forgets_what_was_collected(
    parameters: Parameters, optimizer: SparseAdamW
) -> None:
    before = snapshot(parameters, optimizer)
    backward(parameters, gradients_of(parameters, 0))
    optimizer.zero_grad()
    optimizer.step()
    assert_same(before, snapshot(parameters, optimizer))


def test_gradients_are_added_up_in_fp32(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseSGD(parameters.items(), mask, lr=1.0)
    reference = Reference(parameters, mask, lambda m: torch.optim.SGD(m, lr=1.0, fused=True))
    # In bf16 the small ones would vanish beside the large one.
    microbatches = [gradients_of(parameters, 0, scale) for scale in (1.0, *[1e-3] * 20)]
    for gradients in microbatches:
        backward(parameters, gradients)
    optimizer.step()
    reference.step(microbatches)
    reference.check(parameters)


def test_tied_parameter_gets_one_gradient() -> None:
    table = nn.Parameter(torch.randn(6, 4))
    mask = random_mask({"embed": (6, 4)}, 0.5)
    optimizer = SparseSGD([("embed", table), ("head", table)], mask, lr=1.0)
    start = table.detach().clone()
    ((table * 2.0).sum() + (table * 3.0).sum()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    expected = start - 5.0 * torch.from_numpy(mask.array("embed"))
    assert torch.equal(table.detach(), expected)


def test_closure_gives_loss_and_gradients(parameters: Parameters, optimizer: SparseAdamW) -> None:
    def closure() -> float:
        assert torch.is_grad_enabled()
        backward(parameters, gradients_of(parameters, 0))
        return 0.25

    before = bits(parameters["a"]).clone()
    assert optimizer.step(closure) == 0.25
    assert not torch.equal(bits(parameters["a"]), before)


def test_masked_norm_counts_selected_elements(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseSGD(parameters.items(), mask, lr=0.0, max_grad_norm=1e9)
    gradients = gradients_of(parameters, 0)
    backward(parameters, gradients)
    optimizer.step()
    selected = [gradients[n].float()[torch.from_numpy(mask.array(n))] for n in mask]
    expected = torch.nn.utils.get_total_norm(selected)
    assert optimizer.grad_norm == pytest.approx(float(expected), rel=1e-6)


def test_full_norm_counts_everything(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseSGD(parameters.items(), mask, lr=0.5, max_grad_norm=0.1, clip_by="full")
    start = {name: p.detach().clone() for name, p in parameters.items()}
    gradients = gradients_of(parameters, 0)
    backward(parameters, gradients)
    assert all(p.grad is not None for p in parameters.values())
    optimizer.step()
    assert all(p.grad is None for p in parameters.values())
    norm = torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
    assert optimizer.grad_norm == float(norm.float())
    clip = (0.1 / (norm.float() + 1e-6)).item()
    for name, item in start.items():
        step = 0.5 * clip * gradients[name].float()
        selected = torch.from_numpy(mask.array(name)) if name in mask else torch.tensor(False)
        expected = torch.where(selected, (item.float() - step).bfloat16(), item)
        assert torch.allclose(parameters[name].detach().float(), expected.float(), rtol=2**-8)
        assert torch.equal(parameters[name].detach()[~selected], item[~selected])


def test_full_clipping_equals_torch_bit_for_bit(parameters: Parameters, mask: Mask) -> None:
    masters = {name: nn.Parameter(p.detach().float()) for name, p in parameters.items()}
    dense = torch.optim.AdamW(masters.values(), lr=0.01, weight_decay=0.1, fused=True)
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.5}
    optimizer = SparseAdamW(parameters.items(), mask, clip_by="full", **settings)
    for step in range(10):
        gradients = gradients_of(parameters, step)
        backward(parameters, gradients)
        optimizer.step()
        norm = torch.stack([g.double().square().sum() for g in gradients.values()]).sum().sqrt()
        for name, master in masters.items():
            master.grad = gradients[name].float()
        torch.nn.utils.clip_grads_with_norm_(masters.values(), 0.5, norm.float())
        for name, master in masters.items():
            assert master.grad is not None
            selected = torch.from_numpy(mask.array(name)) if name in mask else torch.tensor(False)
            master.grad = torch.where(selected, master.grad, 0.0)
        dense.step()
    for name in mask:
        selected = torch.from_numpy(mask.array(name))
        expected = masters[name].detach().bfloat16()[selected]
        assert torch.equal(bits(parameters[name].detach()[selected]), bits(expected))


def test_full_norm_of_gradients_of_any_layout(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseSGD(parameters.items(), mask, lr=0.0, clip_by="full")
    gradients = gradients_of(parameters, 0)
    expected = torch.nn.utils.get_total_norm([g.float() for g in gradients.values()])
    parameters["a"].grad = gradients["a"].T.contiguous().T
    parameters["b"].grad = gradients["b"]
    parameters["free"].grad = gradients["free"].to_sparse()
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("clip_by", ["masked", "full"])
def test_nonfinite_gradient_raises_and_changes_nothing(
    parameters: Parameters, mask: Mask, bad: float, clip_by: Literal["masked", "full"]
) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, clip_by=clip_by)
    backward(parameters, gradients_of(parameters, 0))
    optimizer.step()
    before = snapshot(parameters, optimizer)
    gradients = gradients_of(parameters, 1)
    gradients["b"][torch.from_numpy(mask.array("b"))] = bad
    backward(parameters, gradients)
    with pytest.raises(OptimizerError, match=r"NaN or infinity in the gradient of b: .*skip"):
        optimizer.step()
    assert_same(before, snapshot(parameters, optimizer))
    optimizer.step()  # the bad gradient is forgotten
    assert_same(before, snapshot(parameters, optimizer))
    backward(parameters, gradients_of(parameters, 2))
    optimizer.step()
    assert all(p.isfinite().all() for p in parameters.values())


def test_nonfinite_gradient_can_be_skipped_and_is_counted(
    parameters: Parameters, mask: Mask
) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, nonfinite="skip")
    before = snapshot(parameters, optimizer)
    gradients = gradients_of(parameters, 1)
    gradients["a"][torch.from_numpy(mask.array("a"))] = float("nan")
    backward(parameters, gradients)
    optimizer.step()
    assert_same(before, snapshot(parameters, optimizer))
    assert optimizer.num_skipped_steps == 1
    assert optimizer.grad_norm is not None
    assert np.isnan(optimizer.grad_norm)
    assert optimizer.describe()["num_skipped_steps"] == 1


def test_nan_off_the_mask_is_of_no_concern(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    gradients = gradients_of(parameters, 1)
    for name, gradient in gradients.items():
        selected = torch.from_numpy(mask.array(name)) if name in mask else torch.tensor(False)
        gradient[~selected.expand_as(gradient)] = float("nan")
    backward(parameters, gradients)
    optimizer.step()
    assert all(p.isfinite().all() for p in parameters.values())


def test_full_norm_finds_nan_anywhere(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01, clip_by="full")
    gradients = gradients_of(parameters, 1)
    gradients["free"][0] = float("nan")
    backward(parameters, gradients)
    with pytest.raises(OptimizerError, match="gradient of free"):
        optimizer.step()
    assert all(p.grad is None for p in parameters.values())


def test_sparse_gradient_is_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    mask = random_mask({"weight": (5, 3)}, 0.5)
    optimizer = SparseSGD(embedding.named_parameters(), mask, lr=0.1)
    with pytest.raises(OptimizerError, match="weight has a sparse gradient"):
        embedding(torch.tensor([1])).sum().backward()
    optimizer.close()


def test_learning_rate_schedule_and_decay_groups(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(
        parameters.items(), mask, lr=0.01, weight_decay=0.5, no_decay=lambda name: name == "b"
    )
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["a"], ["b"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]

    def dense(masters: list[torch.Tensor]) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": masters[:1]},
            {"params": masters[1:], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.5, fused=True)

    reference = Reference(parameters, mask, dense)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1.0 / (1 + step))
        for one in (optimizer, reference.optimizer)
    ]
    for step in range(5):
        gradients = gradients_of(parameters, step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients])
        reference.check(parameters)
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 / 6)


def test_parameter_groups(parameters: Parameters, mask: Mask) -> None:
    """Equal to torch's with the same groups, under a schedule of each, and after a resume."""

    def groups(named: list[tuple[str, Any]]) -> list[dict[str, Any]]:
        first, second, *others = named
        return [
            {"params": others},
            {"params": [second], "lr": 0.1, "weight_decay": 0.0},
            {"params": [first], "weight_decay": 0.5},
        ]

    def made(net: Parameters) -> tuple[SparseAdamW, Any]:
        optimizer = SparseAdamW(groups([*net.items()]), mask, lr=0.01)
        factors = [lambda step: 1.0 / (1 + step), lambda step: 0.5**step]
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factors)

    optimizer, schedule = made(parameters)
    assert [group["param_names"] for group in optimizer.param_groups] == [["b"], ["a"]]
    reference = Reference(
        parameters,
        mask,
        lambda masters: torch.optim.AdamW(
            [
                {"params": masters[1:2], "lr": 0.1, "weight_decay": 0.0},
                {"params": masters[:1], "weight_decay": 0.5},
            ],
            lr=0.01,
            fused=True,
        ),
    )
    factors = [lambda step: 1.0 / (1 + step), lambda step: 0.5**step]
    theirs = torch.optim.lr_scheduler.LambdaLR(reference.optimizer, factors)
    for step in range(6):
        gradients = gradients_of(parameters, step)
        backward(parameters, gradients)
        optimizer.step()
        reference.step([gradients])
        reference.check(parameters)
        schedule.step()
        theirs.step()
        if step == 2:
            saved = optimizer.state_dict(), schedule.state_dict()
            optimizer.close()
            optimizer, schedule = made(parameters)
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 / 7, 0.01 * 0.5**6])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"betas": (0.9, 0.9)}, "group 1 sets betas, expected only lr and weight_decay"),
        ({"lr": -1.0}, "group 1: lr must not be negative, as -1.0 is"),
        ({"again": True}, "in several parameter groups: a"),
        ({"no_decay": str.islower}, "set weight_decay of a group"),
        ({"nothing": True}, "group 1 is no mapping with params"),
    ],
)
def test_groups_that_are_refused(
    parameters: Parameters, mask: Mask, more: dict[str, Any], message: str
) -> None:
    a, *others = parameters.items()
    second: Any = {"params": others, **more}
    options: dict[str, Any] = {}
    if "again" in more:
        second = {"params": [a, *others]}
    elif "no_decay" in more:
        options["no_decay"] = second.pop("no_decay")
    elif "nothing" in more:
        second = others
    with pytest.raises(SettingsError, match=message):
        SparseAdamW([{"params": [a]}, second], mask, lr=0.01, **options)
    with pytest.raises(OptimizerError, match="expected pairs of name and parameter"):
        SparseAdamW([{"params": [*parameters.values()]}], mask, lr=0.01)


def test_closed_optimizer_leaves_the_gradients_to_the_next(
    parameters: Parameters, mask: Mask
) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    optimizer.close()
    optimizer.close()
    backward(parameters, gradients_of(parameters, 0))
    assert all(p.grad is not None for p in parameters.values())
    with pytest.raises(OptimizerError, match="closed"):
        optimizer.step()
    before = bits(parameters["a"]).clone()
    after = SparseAdamW(parameters.items(), mask, lr=0.01)
    after.step()
    assert not torch.equal(bits(parameters["a"]), before)


def test_dropped_optimizer_lets_go(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(parameters.items(), mask, lr=0.01)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    backward(parameters, gradients_of(parameters, 0))
    assert all(p.grad is not None for p in parameters.values())
    SparseAdamW(parameters.items(), mask, lr=0.01)


def test_further_parameters_are_refused(optimizer: SparseAdamW) -> None:
    with pytest.raises(OptimizerError, match="no further parameters"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_description_is_plain_and_complete(parameters: Parameters, mask: Mask) -> None:
    optimizer = SparseAdamW(
        parameters.items(), mask, lr=0.01, max_grad_norm=1.0, state_dtype=torch.bfloat16
    )
    result = optimizer.describe()
    assert result.pop("index_bytes") > 2 * mask.num_selected()
    assert result.pop("gradient_bytes") > 0
    assert result.pop("state_bytes") > 0
    assert result == {
        "optimizer": "SparseAdamW",
        "mask": mask.digest,
        "also": [],
        "num_selected": mask.num_selected(),
        "num_elements": 63 + 5 + 12,
        "density": mask.num_selected() / 80,
        "master": {"bfloat16": "lo16"},
        "state_dtype": "bfloat16",
        "max_grad_norm": 1.0,
        "clip_by": "masked",
        "nonfinite": "raise",
        "num_skipped_steps": 0,
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative"),
        ({"lr": float("nan")}, "lr must not be negative, as nan is"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be above 0, or None"),
        ({"clip_by": "all"}, "clip_by must be one of 'masked', 'full', not 'all'"),
        ({"master": "lo4"}, "master must be one of None, 'lo16', 'lo8', 'fp32', 'none', not 'lo4'"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of 'raise', 'skip'"),
        (
            {"state_dtype": torch.float16},
            "state_dtype must be torch.float32 or torch.bfloat16 or",
        ),
        ({"betas": (0.9, 1.0)}, r"betas must lie in \[0, 1\)"),
        ({"eps": -1e-8}, "eps must not be negative"),
    ],
)
def test_settings_out_of_range_are_refused(
    parameters: Parameters, mask: Mask, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        SparseAdamW(parameters.items(), mask, **{"lr": 0.01, **settings})


def test_negative_momentum_is_refused(parameters: Parameters, mask: Mask) -> None:
    with pytest.raises(SettingsError, match="momentum must not be negative"):
        SparseSGD(parameters.items(), mask, lr=0.1, momentum=-0.9)
