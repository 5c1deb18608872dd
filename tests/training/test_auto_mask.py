"""Masks that a run finds, and the state that goes over from everything to the mask."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.auto_mask import (
    GradientSums,
    moved_elements,
    nearly_all,
    put_back,
    select_state,
    share_new,
)
from trimtab.training.layout import Layout
from trimtab.training.optimizers.elements import decode_state

pytestmark = pytest.mark.train

DIGEST = BaseTensor("BF16", "0" * 32)
SHAPES = {"a.weight": (5, 7), "b.weight": (33,), "c.bias": (9,)}


def model(dtype: torch.dtype, seed: int = 0) -> nn.ParameterDict:
    generator = torch.Generator().manual_seed(seed)
    tensors = {n.replace(".", "_"): torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    return nn.ParameterDict({name: tensor.to(dtype) for name, tensor in tensors.items()})


def named(one: nn.ParameterDict) -> list[tuple[str, nn.Parameter]]:
    return list(zip(SHAPES, one.parameters(), strict=True))


def give_gradients(one: nn.ParameterDict, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros(())
    for parameter in one.parameters():
        loss = loss + (parameter * torch.randn(parameter.shape, generator=generator)).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def narrow_mask(seed: int = 1) -> Mask:
    random = np.random.default_rng(seed)
    arrays = {name: random.random(shape) < 0.4 for name, shape in SHAPES.items()}
    arrays["a.weight"][-1, -1] = arrays["b.weight"][-1] = True
    arrays["c.bias"][:] = False
    return Mask.from_arrays(arrays)


@pytest.mark.parametrize(
    ("kind", "dtype", "settings"),
    [
        (SparseAdamW, torch.bfloat16, {"master": "lo16"}),
        (SparseAdamW, torch.bfloat16, {"master": "fp32"}),
        (SparseAdamW, torch.bfloat16, {"master": "none", "state_dtype": torch.bfloat16}),
        (SparseAdamW, torch.float32, {"betas": (0.8, 0.9)}),
        (SparseSGD, torch.bfloat16, {"momentum": 0.9}),
        (SparseSGD, torch.float32, {}),
    ],
)
def test_chosen_elements_go_on_as_if_nothing_had_happened(
    kind: Any, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    settings = {"lr": 0.01, "weight_decay": 0.1, "no_decay": lambda n: "bias" in n, **settings}
    wide, narrow = nearly_all(SHAPES), narrow_mask()
    whole = model(dtype)
    optimizer = kind(named(whole), wide, **settings)
    for step in range(3):
        give_gradients(whole, step)
        optimizer.step()
    saved = optimizer.state_dict()
    assert len(saved["param_groups"]) == 2

    part = copy.deepcopy({name: p.detach() for name, p in whole.items()})
    masked = nn.ParameterDict(part)
    going_on = kind(named(masked), narrow, **settings)
    going_on.load_state_dict(select_state(saved, wide, narrow))
    assert len(going_on.param_groups) == 1  # nothing of the only tensor without decay is left
    for step in range(3, 6):
        for one, by in ((whole, optimizer), (masked, going_on)):
            give_gradients(one, step)
            by.step()
    for (name, in_whole), (_, in_part) in zip(named(whole), named(masked), strict=True):
        selected = torch.from_numpy(narrow.array(name))
        before = part[name.replace(".", "_")]
        assert torch.equal(in_part[selected], in_whole[selected])
        assert torch.equal(in_part[~selected], before[~selected])
        assert not torch.equal(in_whole[~selected], before[~selected])
    optimizer.close()
    going_on.close()


def test_ties_of_lo16_keep_their_elements() -> None:
    state = {"remainder": torch.arange(6, dtype=torch.int16), "step": torch.tensor(3.0)}
    saved = {
        "state": {0: {**state, "ties": torch.tensor([0, 2, 5], dtype=torch.int32)}},
        "param_groups": [{"params": [0], "lr": 1.0}],
        "trimtab": {"mask": "", "base": {}, "tensors": {"w": ["bfloat16", "lo16"]}}
        | {"groups": [["w"]]},
    }
    wide = Mask.from_arrays({"w": np.array([1, 1, 0, 1, 1, 1, 1], dtype=np.bool_)})
    narrow = Mask.from_arrays({"w": np.array([0, 1, 0, 1, 0, 0, 1], dtype=np.bool_)})
    selected = select_state(saved, wide, narrow)["state"][0]
    assert selected["remainder"].tolist() == [1, 2, 5]
    assert selected["ties"].tolist() == [1, 2]
    assert selected["ties"].dtype == torch.int32
    assert selected["step"] == 3.0


def test_codes_are_selected_as_what_they_stand_for() -> None:
    optimizer = SparseAdamW(
        {"w": torch.nn.Parameter(torch.randn(700))}.items(),
        wide := Mask.from_arrays({"w": np.arange(700) % 7 > 0}),
        lr=1e-3,
        state_dtype=torch.int8,
    )
    (elements,) = optimizer.elements.values()
    for seed in range(3):
        elements.parameter.grad = torch.randn(700, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
    saved = optimizer.state_dict()
    narrow = Mask.from_arrays({"w": np.arange(700) % 7 > 4})
    selected = select_state(saved, wide, narrow)["state"][0]
    assert selected.keys() == saved["state"][0].keys()
    assert selected["exp_avg_scale"].shape == (2,)  # of 200 elements, in blocks of 128
    left = torch.from_numpy(np.searchsorted(wide.indices("w"), narrow.indices("w")))
    before, after = decode_state(saved["state"][0]), decode_state(selected)
    for key, code in (("exp_avg", 0.02), ("exp_avg_sq", 0.02)):
        scale = before[key][left].abs().max()
        assert ((after[key] - before[key][left]).abs() <= code * scale).all()
        assert after[key].abs().max() == scale


def stored(tmp_path: Path, tensors: dict[str, Tensor]) -> Any:
    save_file(tensors, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path)


@pytest.mark.parametrize("wide", [torch.bfloat16, torch.float32])
def test_what_moved_is_seen_in_the_dtype_of_the_base(tmp_path: Path, wide: torch.dtype) -> None:
    values = torch.tensor([1.0, 1.0, 0.0, float("inf"), -2.0, 3.0], dtype=torch.bfloat16)
    now = values.to(wide, copy=True)
    now[1] += 0.25
    now[2] = -0.0
    if wide == torch.float32:
        now[5] += 1e-4  # less than bf16 can tell
    parameter = nn.Parameter(now)
    with stored(tmp_path, {"w": values}) as base:
        mask = moved_elements([("w", parameter)], base.tensors, {"w": DIGEST}, {"x": 1})
        assert mask.array("w").tolist() == [False, True, True, False, False, False]
        pairs = {"w": parameter}
        put_back(pairs, Layout.of_pairs(pairs.items(), None), base.tensors, mask)
    expected = now.clone()
    expected[5] = 3.0
    assert parameter.dtype == wide
    assert torch.equal(parameter, expected)
    assert mask.provenance == {"x": 1}


def test_share_of_new_elements() -> None:
    def mask(*elements: int) -> Mask:
        selected = np.zeros(20, dtype=np.bool_)
        selected[list(elements)] = True
        return Mask.from_arrays({"a": selected[:9], "b": selected[9:]})

    assert share_new(mask(1, 2, 15), mask(1, 2, 15)) == 0.0
    assert share_new(mask(1, 2, 15, 16), mask(1, 2)) == 0.0
    assert share_new(mask(1, 2), mask(1, 3, 15, 16)) == 0.75
    assert share_new(mask(), mask(1)) == 1.0
    assert share_new(mask(1), mask()) == 1.0


def summed(gradients: dict[str, list[float]]) -> GradientSums:
    parameters = [(name, nn.Parameter(torch.zeros(len(item)))) for name, item in gradients.items()]
    sums = GradientSums(parameters)
    for (_, parameter), item in zip(parameters, gradients.values(), strict=True):
        (parameter * torch.tensor(item)).sum().backward()  # type: ignore[no-untyped-call]
        assert parameter.grad is None
    sums.close()
    return sums


@given(
    values=st.lists(
        st.sampled_from([0.0, 1e-40, 1.0, -1.0, 1.0000001, 2.0, -3e38]), min_size=2, max_size=40
    ),
    density=st.floats(0.01, 0.99),
)
def test_largest_sums_of_all_tensors_together(values: list[float], density: float) -> None:
    gradients = {"a": values[: len(values) // 2], "b": values[len(values) // 2 :]}
    mask = summed(gradients).largest(density, {})
    sizes = np.abs(np.array(values, dtype=np.float32))
    order = np.argsort(-sizes, kind="stable")[: round(density * len(values))]
    expected = np.zeros(len(values), dtype=np.bool_)
    expected[order] = True
    expected &= sizes > 0
    assert np.concatenate([mask.array("a"), mask.array("b")]).tolist() == expected.tolist()


def test_absolute_gradients_of_several_passes_add_up() -> None:
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    sums = GradientSums([("w", parameter)])
    for factor in (torch.tensor([1.0, -2.0, 0.5]), torch.tensor([-1.0, 2.0, 2.0])):
        (parameter * factor).sum().backward()  # type: ignore[no-untyped-call]
    assert sums.largest(1 / 3, {}).array("w").tolist() == [False, True, False]
    assert sums.largest(2 / 3, {}).array("w").tolist() == [False, True, True]
    sums.close()
    (parameter * 2).sum().backward()  # type: ignore[no-untyped-call]
    assert parameter.grad is not None


def test_sums_that_are_not_finite_are_refused() -> None:
    with pytest.raises(SettingsError, match="the gradient of b has NaN or infinity"):
        summed({"a": [1.0], "b": [float("nan")]}).largest(0.5, {})
