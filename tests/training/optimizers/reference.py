"""What the sparse optimizers must equal: torch's own on fp32 masters with masked gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.masks.mask import Mask
from trimtab.training.optimizers.elements import Scratch, load_master
from trimtab.training.optimizers.sparse import SparseOptimizer

Parameters = dict[str, torch.nn.Parameter]
Gradients = Mapping[str, Tensor]


def parameters_of(
    shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, seed: int = 0
) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype))
        for name, shape in shapes.items()
    }


def gradients_of(parameters: Parameters, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)
        for name, p in parameters.items()
    }


def random_mask(
    shapes: Mapping[str, tuple[int, ...]], density: float, seed: int = 0, **more: Any
) -> Mask:
    """At least one element selected, and at least one not, over all tensors."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.bool_]] = {
        name: np.asarray(generator.random(shape) < density) for name, shape in shapes.items()
    }
    first, *_, last = [*arrays, *arrays]
    arrays[first].reshape(-1)[0] = True
    arrays[last].reshape(-1)[-1] = False
    return Mask.from_arrays(arrays, **more)


def backward(parameters: Parameters, gradients: Gradients) -> None:
    """Give the parameters exactly these gradients, by way of autograd."""
    sum((p * gradients[name]).sum() for name, p in parameters.items()).backward()  # type: ignore[union-attr]


def bits(values: Tensor) -> Tensor:
    """Bit patterns, which tell +0.0 from -0.0 and equal NaNs."""
    return values.detach().view({2: torch.int16, 4: torch.int32}[values.itemsize])


def masters_of(optimizer: SparseOptimizer, name: str) -> Tensor:
    """The fp32 masters of the selected elements of a parameter that was stepped."""
    elements = optimizer.elements[name]
    state, master = optimizer.state[elements.parameter], optimizer._binding.masters[name]
    return torch.cat(
        [load_master(elements, master, part, state, Scratch()).clone() for part in elements.parts()]
    )


class Reference:
    """A dense optimizer of torch on fp32 masters, whose gradients are set to 0 off the mask."""

    def __init__(
        self,
        parameters: Parameters,
        mask: Mask,
        make: Callable[[list[Tensor]], torch.optim.Optimizer],
    ) -> None:
        self.start = {name: p.detach().clone() for name, p in parameters.items()}
        self.selected = {
            name: torch.from_numpy(mask.array(name))
            if name in mask
            else torch.zeros(p.shape, dtype=torch.bool)
            for name, p in parameters.items()
        }
        self.masters = {name: p.detach().float().clone() for name, p in parameters.items()}
        self.optimizer = make(list(self.masters.values()))
        self.norm: Tensor | None = None

    def step(self, microbatches: Sequence[Gradients], max_grad_norm: float | None = None) -> None:
        for name, master in self.masters.items():
            total: Tensor | None = None
            for gradients in microbatches:
                masked = torch.where(self.selected[name], gradients[name].float(), 0.0)
                total = masked if total is None else total + masked
            master.grad = total
        squares = [master.grad.double().square().sum() for master in self._graded()]
        self.norm = torch.stack(squares).sum().sqrt().float()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._graded(), max_grad_norm, self.norm)
        self.optimizer.step()

    def weights(self) -> dict[str, Tensor]:
        """The weights: rounded masters inside the mask, what they were at the start outside."""
        return {
            name: torch.where(self.selected[name], self.masters[name].to(item.dtype), item)
            for name, item in self.start.items()
        }

    def check(self, parameters: Parameters) -> None:
        for name, expected in self.weights().items():
            assert torch.equal(bits(parameters[name]), bits(expected)), name

    def moment(self, name: str, key: str) -> Tensor:
        """What the state holds of the selected elements."""
        moment: Tensor = self.optimizer.state[self.masters[name]][key]
        return moment[self.selected[name]]

    def _graded(self) -> list[Any]:
        return list(self.masters.values())
