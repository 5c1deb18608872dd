"""bf16 products by fp32 kernels, against fp64 and against torch's own."""

from __future__ import annotations

import pytest
import torch

from trimtab.training.bf16_products import LEAST_SIZE, fast_bf16

pytestmark = pytest.mark.train


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def check(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Rounded once, from a sum that is as exact as fp32 makes it."""
    assert found.dtype == torch.bfloat16
    half_a_step = exact.abs() * 2.0**-8  # at most
    assert ((found.double() - exact).abs() <= half_a_step + 1e-4).all()


def test_products_are_rounded_sums() -> None:
    a, b, c = random(40, 64), random(64, 48), random(40, 48)
    x, y, z = random(3, 40, 64), random(3, 64, 48), random(3, 40, 48)
    with fast_bf16():
        found = a @ b, torch.addmm(c, a, b, beta=0.5), x @ y, torch.baddbmm(z, x, y, alpha=2)
    wide = [of.double() for of in (a, b, c, x, y, z)]
    check(found[0], wide[0] @ wide[1])
    check(found[1], 0.5 * wide[2] + wide[0] @ wide[1])
    check(found[2], wide[3] @ wide[4])
    check(found[3], wide[5] + 2 * (wide[3] @ wide[4]))


def test_gradients_go_the_same_way() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    inputs = random(40, 64).float()
    with fast_bf16(), torch.autocast("cpu", torch.bfloat16):
        out = torch.nn.functional.linear(inputs, weight)
    assert out.dtype == torch.bfloat16
    with fast_bf16():
        out.float().sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    expected = inputs.double().sum(0).expand(48, 64)
    assert torch.allclose(weight.grad.double(), expected, rtol=2.0**-7, atol=1e-2)


@pytest.mark.parametrize("rows", [1, LEAST_SIZE - 1])
def test_few_rows_are_left_to_torch(rows: int) -> None:
    a, b = random(rows, 64), random(64, 48)
    with fast_bf16():
        found = a @ b
    assert torch.equal(found, a @ b)


def test_other_dtypes_are_left_alone() -> None:
    a, b = random(40, 64).float(), random(64, 48).float()
    with fast_bf16():
        assert torch.equal(a @ b, torch.mm(a, b))
        assert (a.double() @ b.double()).dtype == torch.float64
