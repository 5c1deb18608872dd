"""What cannot be trained is refused in one sentence, before anything is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from torch import nn

from tests.training.optimizers.reference import bits, parameters_of, random_mask
from trimtab.errors import MaskError, MaskMismatchError, OptimizerError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW, SparseSGD
from trimtab.training.optimizers.binding import TAKEN

pytestmark = pytest.mark.train

BF16 = torch.bfloat16
SHAPES = {"a": (6, 5), "b": (8,)}


def refused(kind: type[Exception], message: str, parameters: Any, mask: Mask, **more: Any) -> None:
    pairs = list(parameters)
    before = [p.detach().clone() for _, p in pairs if isinstance(p, torch.Tensor)]
    with pytest.raises(kind, match=message) as caught:
        SparseAdamW(pairs, mask, lr=0.01, **more)
    assert "\n" not in str(caught.value)
    after = [p for _, p in pairs if isinstance(p, torch.Tensor)]
    for parameter, was in zip(after, before, strict=True):
        assert not parameter._post_accumulate_grad_hooks
        if parameter.device.type != "meta":
            assert torch.equal(parameter.nan_to_num(), was.nan_to_num())


def test_mask_of_another_model() -> None:
    mask = random_mask({"a": (6, 4), "b": (8,), "c": (3,), "lm_head": (7,)}, 0.5)
    for name in ("c", "lm_head"):
        assert mask.num_selected(name)
    message = r"a has shape \(6, 5\).*\(6, 4\).*c is not in the model.*lm_head.*tied"
    refused(MaskMismatchError, message, parameters_of(SHAPES, BF16).items(), mask)


def test_names_without_selected_elements_are_let_pass() -> None:
    arrays = {name: random_mask(SHAPES, 0.5).array(name) for name in SHAPES}
    mask = Mask.from_arrays({**arrays, "buffer": np.zeros(3, dtype=np.bool_)})
    SparseAdamW(parameters_of(SHAPES, BF16).items(), mask, lr=0.01).close()


def digest(weights: torch.Tensor) -> str:
    return xxhash.xxh3_128_hexdigest(bits(weights).numpy().tobytes())


def with_base(weights: torch.Tensor, dtype: str) -> Mask:
    return random_mask(SHAPES, 0.5, base={"a": BaseTensor(dtype, digest(weights))})


def test_other_weights_than_the_base() -> None:
    parameters = parameters_of(SHAPES, BF16)
    mask = with_base(parameters["a"] + 1.0, "BF16")
    refused(MaskMismatchError, "a has the digest", parameters.items(), mask)
    SparseAdamW(parameters.items(), mask, lr=0.01, check_base=False).close()


def test_the_base_itself_and_its_wider_copies() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        parameters = parameters_of(SHAPES, BF16)
        mask = with_base(parameters["a"], "BF16")
        loaded = [(name, nn.Parameter(p.detach().to(dtype))) for name, p in parameters.items()]
        SparseAdamW(loaded, mask, lr=0.01).close()
    with torch.no_grad():
        loaded[0][1][0, 0] += 1e-6
    refused(MaskMismatchError, "a has the digest", loaded, mask)


def test_narrower_copy_of_the_base() -> None:
    parameters = parameters_of(SHAPES, torch.float32)
    mask = with_base(parameters["a"], "F32")
    loaded = [(name, nn.Parameter(p.detach().to(BF16))) for name, p in parameters.items()]
    refused(MaskMismatchError, "a has the digest", loaded, mask)


def test_base_with_negative_zero_and_nan_is_compared_by_bits() -> None:
    parameters = parameters_of(SHAPES, BF16)
    with torch.no_grad():
        parameters["a"][0, :2] = torch.tensor([-0.0, float("nan")])
    mask = with_base(parameters["a"], "BF16")
    SparseAdamW(parameters.items(), mask, lr=0.01).close()
    with torch.no_grad():
        parameters["a"][0, 0] = 0.0
    refused(MaskMismatchError, "a has the digest", parameters.items(), mask)


def test_empty_and_full_masks() -> None:
    parameters = parameters_of(SHAPES, BF16)
    for fill, message in ((False, "selects no element"), (True, "selects every element.*AdamW")):
        mask = Mask.from_arrays({name: np.full(shape, fill) for name, shape in SHAPES.items()})
        refused(MaskError, message, parameters.items(), mask)


def test_all_of_some_tensors_is_no_full_mask() -> None:
    parameters = parameters_of(SHAPES, BF16)
    mask = Mask.from_arrays({"a": np.ones((6, 5), dtype=np.bool_)})
    SparseAdamW(parameters.items(), mask, lr=0.01).close()
    parameters["b"].requires_grad_(False)
    refused(MaskError, "selects every element", parameters.items(), mask)


def test_frozen_tensor() -> None:
    parameters = parameters_of(SHAPES, BF16)
    parameters["a"].requires_grad_(False)
    mask = Mask.from_arrays({"a": np.eye(6, 5, dtype=np.bool_), "b": np.arange(8) < 2})
    refused(OptimizerError, r"a is frozen: call requires_grad_\(True\)", parameters.items(), mask)


def test_second_name_of_a_tied_tensor() -> None:
    table = nn.Parameter(torch.randn(6, 5))
    pairs = [("embed", table), ("head", table), ("b", nn.Parameter(torch.zeros(3)))]
    mask = random_mask({"head": (6, 5)}, 0.5)
    optimizer = SparseAdamW(pairs, mask, lr=0.1)
    table.grad = torch.ones_like(table)
    before = table.detach().clone()
    optimizer.step()
    assert torch.equal(table != before, torch.from_numpy(mask.array("head")))
    optimizer.close()
    both = random_mask({"head": (6, 5), "embed": (6, 5)}, 0.5)
    refused(MaskMismatchError, "head is tied to embed, and the mask has both", pairs, both)


def test_tensor_of_another_open_optimizer() -> None:
    parameters = parameters_of(SHAPES, BF16)
    mask = random_mask(SHAPES, 0.5)
    first = SparseSGD(parameters.items(), mask, lr=0.1)
    with pytest.raises(OptimizerError, match=r"a belongs to another .*close\(\).*; b belongs"):
        SparseAdamW(parameters.items(), mask, lr=0.01)
    first.close()
    assert parameters["a"] not in TAKEN
    SparseAdamW(parameters.items(), mask, lr=0.01).close()


def test_tensors_that_cannot_be_written_to() -> None:
    mask = random_mask({"a": (6, 5)}, 0.5)
    other = ("b", nn.Parameter(torch.zeros(30)))
    meta = nn.Parameter(torch.zeros(6, 5, device="meta"))
    refused(OptimizerError, "a has no data", [("a", meta), other], mask)
    turned = nn.Parameter(torch.zeros(5, 6).T)
    refused(OptimizerError, "a is not contiguous", [("a", turned), other], mask)
    double = nn.Parameter(torch.zeros(6, 5).double())
    refused(OptimizerError, "a is float64: load the model in", [("a", double), other], mask)


@pytest.mark.parametrize("master", ["lo16", "none"])
def test_fp16_needs_an_fp32_master(master: Any) -> None:
    parameters = parameters_of(SHAPES, torch.float16)
    message = f"a is float16, which needs master='fp32', not '{master}'; b is float16"
    refused(OptimizerError, message, parameters.items(), random_mask(SHAPES, 0.5), master=master)


def test_parameters_without_names() -> None:
    model = nn.Linear(3, 2)
    mask = random_mask({"weight": (2, 3)}, 0.5)
    for wrong in (model.parameters(), dict(model.named_parameters()), [], [("weight", 3)]):
        with pytest.raises(OptimizerError, match=r"model\.named_parameters\(\)"):
            SparseAdamW(wrong, mask, lr=0.01)  # type: ignore[arg-type]


def test_wrapped_models() -> None:
    mask = random_mask(SHAPES, 0.5)
    for attribute, value, message in (
        ("_is_flat_param", True, "FSDP1.*use FSDP2"),
        ("ds_id", 3, "DeepSpeed ZeRO-3.*use FSDP2"),
    ):
        parameters = parameters_of(SHAPES, BF16)
        setattr(parameters["a"], attribute, value)
        refused(OptimizerError, message, parameters.items(), mask)
    wrapped = [(f"module.{name}", p) for name, p in parameters_of(SHAPES, BF16).items()]
    refused(OptimizerError, "DistributedDataParallel", wrapped, mask)
