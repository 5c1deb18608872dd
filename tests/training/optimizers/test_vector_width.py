"""Padding makes a compact vector round as the dense tensor does, element for element."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trimtab.training.optimizers.kernels import tail_of, vector_width

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
def test_whole_vectors_and_a_padded_tail_get_the_bits_of_the_dense_tensor(
    n: int, density: float
) -> None:
    generator = torch.Generator().manual_seed(n)
    dense = [torch.rand(n, generator=generator) for _ in range(4)]
    selected = torch.rand(n, generator=generator) < density
    selected[-1] = True
    index = selected.nonzero().flatten()
    length, padding, _ = tail_of(index, n, torch.device("cpu"))
    compact = [values[selected] for values in dense]
    num_whole = len(index) - length
    tail = [torch.cat([torch.zeros(padding), values[num_whole:]]) for values in compact]
    adamw(dense)
    adamw([values[:num_whole] for values in compact])
    adamw(tail)
    for whole, part, rest in zip(dense, compact, tail, strict=True):
        part[num_whole:] = rest[padding:]
        assert torch.equal(whole[selected], part)


def test_what_remains_after_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.training.optimizers.kernels.vector_width", lambda: 8)

    def tail(index: list[int], n: int) -> tuple[int, int, int]:
        return tail_of(torch.tensor(index), n, torch.device("cpu"))

    # Of 21 elements the last 5 are the tail: 16 to 20.
    assert tail([0, 15], 21) == (2, 6, 0)
    assert tail([0, 15, 16, 20], 21) == (4, 6, 2)
    assert tail([*range(9), 16, 20], 21) == (3, 7, 2)
    assert tail([16, 20], 21) == (0, 0, 2)
    assert tail([*range(16)], 16) == (0, 0, 0)
