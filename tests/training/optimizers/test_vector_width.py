"""Padding makes a compact vector round as the dense tensor does, element for element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.training.optimizers.kernels import num_padding, vector_width

pytestmark = pytest.mark.train


def adamw(vectors: list[Tensor]) -> None:
    weights, gradient, mean, square = vectors
    torch._fused_adamw_(
        [weights],
        [gradient],
        [mean],
        [square],
        [],
        [torch.tensor(3.0)],
        lr=1e-3,
        beta1=0.9,
        beta2=0.999,
        weight_decay=0.01,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


def test_width_is_a_power_of_two() -> None:
    assert vector_width() in {1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize("density", [0.05, 0.5])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 31, 64, 65, 1000, 1003, 100_003])
def test_padded_vectors_get_the_bits_of_the_dense_tensor(n: int, density: float) -> None:
    generator = torch.Generator().manual_seed(n)
    dense = [torch.rand(n, generator=generator) for _ in range(4)]
    selected = torch.rand(n, generator=generator) < density
    selected[-1] = True
    index = selected.nonzero().flatten().int()
    padding = num_padding(index, n)
    compact = [torch.cat([torch.zeros(padding), values[selected]]) for values in dense]
    adamw(dense)
    adamw(compact)
    for whole, part in zip(dense, compact, strict=True):
        assert torch.equal(whole[selected], part[padding:])


def test_padding_counts_what_lies_before_the_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.training.optimizers.kernels.vector_width", lambda: 8)
    # Of 21 elements the last 5 are the tail: 16 to 20.
    assert num_padding(torch.tensor([0, 15], dtype=torch.int32), 21) == 6
    assert num_padding(torch.tensor([0, 15, 16, 20], dtype=torch.int32), 21) == 6
    assert num_padding(torch.tensor([16, 20], dtype=torch.int32), 21) == 0
    assert num_padding(torch.arange(16, dtype=torch.int32), 16) == 0
