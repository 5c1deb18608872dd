"""The optimizers that `benchmarks.optimizer` compares, and the model that each of them trains.

All take AdamW steps without weight decay and clip the gradient to one norm. The peers are written
as frugally as their method allows: a mask is kept as bool and applied in place, a bf16 gradient is
freed as soon as its fp32 copy exists, and torch's fused kernels do the steps. PEFT is imported by
those who need it: that takes seconds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab import Mask
from trimtab.training import SparseAdamW
from trimtab.training.optimizers.elements import Master

__all__ = [
    "BASELINES",
    "FULL",
    "LARGE",
    "MASKED",
    "NOTHING",
    "SEQUENCE",
    "SMALL",
    "Contestant",
    "Nothing",
    "make_model",
    "random_mask",
    "tokens",
]

SEQUENCE = 64
LEARNING_RATE = 1e-5
MAX_GRAD_NORM = 1.0
LORA_RANK = 16
SEED = 0

LINEAR = [f"{kind}_proj" for kind in ("q", "k", "v", "o", "gate", "up", "down")] + ["lm_head"]
"""Every layer that PEFT's sparse adapters can train; they cannot train embeddings and norms."""

FULL = {
    "vocab_size": 16384,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 10,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
"""A Llama of 96 million parameters."""

LARGE = FULL | {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
"""A Llama of 1.17 billion parameters."""

SMALL = FULL | {"vocab_size": 1024, "hidden_size": 384, "num_hidden_layers": 2}
"""One that is large enough for every kernel to run as in the full one, on all threads."""


def make_model(shape: dict[str, int]) -> nn.Module:
    """A bf16 Llama with random weights, alike every time."""
    torch.manual_seed(SEED)
    config = LlamaConfig(**shape, use_cache=False)
    model: nn.Module = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    return model.train()


def tokens(length: int = SEQUENCE) -> Tensor:
    """One sequence, which the small model can read, too."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(SMALL["vocab_size"], (1, length), generator=generator)


def random_mask(model: nn.Module, density: float) -> Mask:
    """The same share of each tensor, at random."""

    def first(num_elements: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
        return np.arange(num_elements) < round(density * num_elements)

    shapes = {name: p.shape for name, p in model.named_parameters()}
    arrays = {name: first(shape.numel()).reshape(shape) for name, shape in shapes.items()}
    return Mask.from_arrays(arrays).random_like(SEED)


class Contestant(ABC):
    """A model and what trains it.

    Attributes:
        model: The model to call.
        num_trained: Elements that are trained.
        hook_seconds: What hooks of the optimizer took of all backward passes so far.
        step_seconds: What clipping and torch's fused step took of all calls of `optimize` so far,
            where that is less than all.
        num_bytes_kept: Bytes that the optimizer says it keeps between steps; 0 if it does not say.
    """

    def __init__(self, model: nn.Module, num_trained: int) -> None:
        self.model = model
        self.num_trained = num_trained
        self.hook_seconds = 0.0
        self.step_seconds = 0.0
        self.num_bytes_kept = 0

    @abstractmethod
    def optimize(self) -> None:
        """From the gradients to the stepped weights."""

    def clear(self) -> None:
        """Free the gradients."""
        self.model.zero_grad()


class Nothing(Contestant):
    """Forward and backward through all layers, without a gradient of any weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 0)
        model.requires_grad_(False)
        model.enable_input_require_grads()  # type: ignore[operator]

    def optimize(self) -> None:
        """See `Contestant`."""


class Dense(Contestant):
    """`torch.optim.AdamW(fused=True)` and `clip_grad_norm_` on the parameters as they are."""

    def __init__(self, model: nn.Module, mask: Mask | None = None) -> None:
        trained = [p for p in model.parameters() if p.requires_grad]
        num_elements = sum(p.numel() for p in trained)
        super().__init__(model, num_elements if mask is None else mask.num_selected())
        self._parameters = trained
        self._optimizer = AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
        self._outside: list[Tensor] | None = None
        if mask is not None:
            names = (name for name, _ in model.named_parameters())
            self._outside = [~torch.from_numpy(mask.array(name)) for name in names]

    def optimize(self) -> None:
        """See `Contestant`."""
        if self._outside is not None:
            for parameter, outside in zip(self._parameters, self._outside, strict=True):
                # the fastest of what torch does with a bool mask
                _gradient(parameter).masked_fill_(outside, 0.0)
        started = perf_counter()
        clip_grad_norm_(self._parameters, MAX_GRAD_NORM)
        self._optimizer.step()
        self.step_seconds += perf_counter() - started


class DenseMasters(Dense):
    """The same on fp32 masters of all weights, with fp32 gradients."""

    def __init__(self, model: nn.Module, mask: Mask | None = None) -> None:
        super().__init__(model, mask)
        self._weights = self._parameters
        self._parameters = [nn.Parameter(weights.detach().float()) for weights in self._weights]
        self._optimizer = AdamW(self._parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def optimize(self) -> None:
        """See `Contestant`."""
        for weights, master in zip(self._weights, self._parameters, strict=True):
            master.grad = _gradient(weights).float()
            weights.grad = None
        super().optimize()
        with torch.no_grad():
            for weights, master in zip(self._weights, self._parameters, strict=True):
                weights.copy_(master)

    def clear(self) -> None:
        """See `Contestant`."""
        self._optimizer.zero_grad()


class Sparse(Contestant):
    """trimtab's `SparseAdamW`.

    Autograd calls the hooks of a parameter in the order in which they were registered, so one
    before and one after those of the optimizer can time them.
    """

    def __init__(
        self,
        model: nn.Module,
        mask: Mask,
        *,
        master: Master = "lo16",
        state_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(model, mask.num_selected())
        self._mask = mask  # as a script does that saves it with each checkpoint
        self._started = 0.0
        self._hook(self._start)
        self.optimizer = SparseAdamW(
            model.named_parameters(),
            mask,
            lr=LEARNING_RATE,
            max_grad_norm=MAX_GRAD_NORM,
            master=master,
            state_dtype=state_dtype,
        )
        self._hook(self._stop)
        result = self.optimizer.describe()
        self.num_bytes_kept = sum(result[f"{one}_bytes"] for one in ("index", "gradient", "state"))

    def optimize(self) -> None:
        """See `Contestant`."""
        self.optimizer.step()

    def clear(self) -> None:
        """See `Contestant`."""
        self.optimizer.zero_grad()

    def _hook(self, function: Callable[[Tensor], None]) -> None:
        for parameter in self.model.parameters():
            parameter.register_post_accumulate_grad_hook(function)  # type: ignore[no-untyped-call]

    def _start(self, parameter: Tensor) -> None:
        self._started = perf_counter()

    def _stop(self, parameter: Tensor) -> None:
        self.hook_seconds += perf_counter() - self._started


def lora(model: nn.Module, mask: Mask) -> Contestant:
    """PEFT's LoRA on all linear layers but the head, as is its custom; knows no mask."""
    from peft import LoraConfig, get_peft_model

    return Dense(get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules="all-linear")))


def shira(model: nn.Module, mask: Mask) -> Contestant:
    """PEFT's SHiRA: its own random mask of about the same size, in the linear layers alone.

    It trains rank × (rows + columns) elements of each, and has one rank for all.
    """
    from peft import ShiraConfig, get_peft_model

    shapes = [m.weight.shape for m in model.modules() if isinstance(m, nn.Linear)]
    num_elements = sum(shape.numel() for shape in shapes)
    rank = round(mask.density * num_elements / sum(sum(shape) for shape in shapes))
    config = ShiraConfig(r=rank, target_modules=LINEAR, random_seed=SEED)
    return Dense(get_peft_model(model, config))


def supertuning(model: nn.Module, mask: Mask) -> Contestant:
    """PEFT's Supertuning, which chooses the elements of the linear layers by magnitude."""
    from peft import SupertuningConfig, get_peft_model

    config = SupertuningConfig(sparsity=1 - mask.density, target_modules=LINEAR)
    return Dense(get_peft_model(model, config))


NOTHING = "forward and backward alone"

BASELINES: dict[str, Callable[[nn.Module], Contestant]] = {
    "dense AdamW, bf16": Dense,
    "dense AdamW, fp32 masters": DenseMasters,
}
"""Those that train everything."""

MASKED: dict[str, Callable[[nn.Module, Mask], Contestant]] = {
    "masked dense AdamW, fp32 masters": DenseMasters,
    "masked dense AdamW, bf16": Dense,
    "SparseAdamW": Sparse,
    "SparseAdamW, fp32 masters": lambda model, mask: Sparse(model, mask, master="fp32"),
    "SparseAdamW, bf16 states": lambda model, mask: Sparse(model, mask, state_dtype=torch.bfloat16),
    "SparseAdamW, 8-bit states": lambda model, mask: Sparse(
        model, mask, state_dtype=torch.int8, master="lo8"
    ),
    "PEFT SHiRA": shira,
    "PEFT Supertuning": supertuning,
    "PEFT LoRA, rank 16": lora,
}
"""Those that train what a mask selects, or something of a like size."""


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
