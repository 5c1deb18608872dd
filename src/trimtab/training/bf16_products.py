"""Fast matrix products in bf16 on a CPU that has no instructions for them.

torch multiplies bf16 matrices quickly where the processor has AVX-512 or AMX. With AVX2 alone, as
many laptops and some servers have, it falls back to loops that were 30 times slower than fp32 for a
training step of a 135M-parameter model (LOG.md, 2026-11-28). A product of bf16 matrices is a sum of
exact fp32 products that is rounded to bf16 at the end, so fp32 kernels give it: the result differs
only in the order of the sum, as between any two processors. Under `torch.inference_mode` torch does
not split a linear layer into the products that are replaced here: use `torch.no_grad`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.baddbmm.default: 1,
}
"""Operation -> place of its first matrix among the arguments; the second follows it."""

LEAST_SIZE = 32
"""Rows, columns and terms below which converting the matrices costs more than is gained: a model
that generates multiplies few rows with all its weights."""


class _Bf16Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is on, large products of bf16 matrices on the CPU are computed by fp32 kernels."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Convert, multiply and round, or do what is asked."""
        kwargs = kwargs or {}
        if func in PRODUCTS and _is_worth_it(*args[PRODUCTS[func] : PRODUCTS[func] + 2]):
            wide = [of.float() if isinstance(of, Tensor) else of for of in args]
            return func(*wide, **kwargs).bfloat16()
        return func(*args, **kwargs)


def _is_worth_it(first: Tensor, second: Tensor) -> bool:
    sizes = (*first.shape[-2:], second.shape[-1])
    is_bf16 = first.dtype == second.dtype == torch.bfloat16
    return is_bf16 and first.device.type == "cpu" and min(sizes) >= LEAST_SIZE


def fast_bf16() -> AbstractContextManager[Any]:
    """A context in which large products of bf16 matrices on the CPU go through fp32 kernels."""
    mode: AbstractContextManager[Any] = _Bf16Products()  # type: ignore[no-untyped-call]
    return mode


def is_slow(device: torch.device) -> bool:
    """Whether torch is slow at bf16 products on a device: a CPU without instructions for them."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bf16_products(
    device: torch.device, *, is_bf16: bool = True
) -> tuple[str, AbstractContextManager[Any]]:
    """How products of bf16 matrices are computed.

    Args:
        device: Where they are computed.
        is_bf16: Whether there are any.

    Returns:
        What a record says of it, and the context in which they are computed so.
    """
    if is_bf16 and is_slow(device):
        return "by fp32 kernels", fast_bf16()
    return "by torch", nullcontext()
