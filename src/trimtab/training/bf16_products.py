"""Fast matrix products in bf16 on a CPU that has no instructions for them.

torch multiplies bf16 matrices quickly on processors with AVX-512 or AMX. With AVX2 alone it falls
back to loops that were 30 times slower than fp32 for a training step of a 135M-parameter model
(LOG.md, 2026-11-28). The product of two bf16 values is exact in fp32, so fp32 kernels give the same
result up to the order of the sum, as between any two processors. Under `torch.inference_mode` torch
does not split a linear layer into the products that are replaced here: use `torch.no_grad`.
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
"""Operation -> index of its first matrix among the arguments; the second one follows."""

LEAST_SIZE = 32
"""Smallest dimension for which converting the matrices pays off: during generation, few rows are
multiplied with all weights."""


class _Bf16Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Computes large products of bf16 matrices on the CPU with fp32 kernels."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Convert, multiply and round; or run the operation as it is."""
        kwargs = kwargs or {}
        if func in PRODUCTS and _is_worth_it(*args[PRODUCTS[func] : PRODUCTS[func] + 2]):
            wide = [arg.float() if isinstance(arg, Tensor) else arg for arg in args]
            return func(*wide, **kwargs).bfloat16()
        return func(*args, **kwargs)


def _is_worth_it(first: Tensor, second: Tensor) -> bool:
    sizes = (*first.shape[-2:], second.shape[-1])
    is_bf16 = first.dtype == second.dtype == torch.bfloat16
    return is_bf16 and first.device.type == "cpu" and min(sizes) >= LEAST_SIZE


def fast_bf16() -> AbstractContextManager[Any]:
    """Context in which large products of bf16 matrices on the CPU use fp32 kernels."""
    mode: AbstractContextManager[Any] = _Bf16Products()  # type: ignore[no-untyped-call]
    return mode


def is_slow(device: torch.device) -> bool:
    """Whether torch is slow at bf16 products on a device: a CPU without bf16 instructions."""
    return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def bf16_products(
    device: torch.device, *, is_bf16: bool = True
) -> tuple[str, AbstractContextManager[Any]]:
    """Choose how products of bf16 matrices are computed.

    Args:
        device: Device of the matrices.
        is_bf16: Whether there are bf16 matrices at all.

    Returns:
        A description for the record of the run, and the context manager to compute in.
    """
    if is_bf16 and is_slow(device):
        return "by fp32 kernels", fast_bf16()
    return "by torch", nullcontext()
