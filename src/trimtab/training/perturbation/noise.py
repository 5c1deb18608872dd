"""Perturbs sets of elements of a model by noise of a known size.

The sets are the mask, and sets of its size to compare it with:

=============  ====================================================================================
`mask`         what the mask selects
`outside`      the same number of elements of each tensor that it does not select, at random
`random`       the same number of elements of each tensor, at random among all
`magnitude`    the same number per tensor and exponent of the base's weight, at random
=============  ====================================================================================

All four have the same number of elements in every tensor. Where more than half of a tensor is
selected, a random part of the mask is used, as large as the rest of the tensor. The last two may
include elements of the mask; `Arm.num_in_mask` says how many.

Noise is rounded to the dtype of the weight, and every kind has a level. For Gaussian noise it is a
norm: of the noise of a tensor, relative to the chosen elements (`gaussian`), or of one element,
relative to the root mean square of the tensor (`gaussian-absolute`). For the others it is the share
of the chosen elements that are hit.

=====================  =============================================================================
`gaussian`             norm of the noise = level · norm of the chosen elements, in each tensor
`gaussian-absolute`    norm of the noise = level · rms of the tensor · sqrt(number of chosen ones)
`sign`                 a share of the chosen elements is negated: their sign bit is flipped
`bitflip`              a share of the chosen elements has a random bit of the mantissa flipped
=====================  =============================================================================

So the first scales with the elements it hits, and the second is the same for all elements of a
tensor and hits a set of small elements harder. These are norms before rounding; `Hit` has those in
the stored dtype. The same seed draws the same noise for every set and every level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, log2, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.elements.counts import summed
from trimtab.masks.mask import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.masks.random import random_tensor
from trimtab.masks.selection.quotas import random_matched

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ARMS = ("mask", "outside", "random", "magnitude")
"""In display order; the first is compared with the others."""


@dataclass(frozen=True)
class Arm:
    """A set of elements.

    Attributes:
        name: One of `ARMS`.
        elements: The set, as a mask.
        num_in_mask: How many of them the mask selects.
    """

    name: str
    elements: Mask
    num_in_mask: int


def arms_of(mask: Mask, base: Checkpoint, seed: int) -> dict[str, Arm]:
    """Draw the sets for one seed: name -> set, in the order of `ARMS`.

    `base` is the base of the mask, whose weights are matched by magnitude.
    """
    outside = mask.complement()
    room = {name: min(mask.num_selected(name), outside.num_selected(name)) for name in mask}
    chosen = _thinned(mask, room, seed, "mask")
    sets = (
        chosen,
        _thinned(outside, room, seed, "outside"),
        chosen.random_like(seed),
        random_matched(chosen, base, seed),
    )
    return {
        name: Arm(name, elements, _num_common(elements, mask))
        for name, elements in zip(ARMS, sets, strict=True)
    }


def _thinned(mask: Mask, room: dict[str, int], seed: int, arm: str) -> Mask:
    """Keep `room` of the elements that a mask selects in each tensor, at random."""
    if all(room[name] == mask.num_selected(name) for name in mask):
        return mask
    tensors = {}
    for name in mask:
        selected = mask.array(name)
        index = mask.indices(name)
        keep = random_tensor(index.shape, room[name], seed=seed, name=f"{arm}\0{name}").unpack()
        selected.reshape(-1)[index[~keep]] = False
        tensors[name] = PackedTensor.pack(selected)
    return Mask(tensors, mask.base, mask.provenance)


def _num_common(left: Mask, right: Mask) -> int:
    return sum(int(np.bitwise_count(left.packed(name) & right.packed(name)).sum()) for name in left)


@dataclass(frozen=True)
class Hit:
    """The effect of noise, in the dtype of the weights; can be added up.

    Attributes:
        num_chosen: Elements in the set.
        num_changed: Elements whose bits changed.
        squared_noise: Sum of the squares of after - before.
        squared_weights: Sum of the squares of before, over the chosen elements.
    """

    num_chosen: int = 0
    num_changed: int = 0
    squared_noise: float = 0.0
    squared_weights: float = 0.0

    def __add__(self, other: Hit) -> Hit:
        return summed((self, other))

    @property
    def relative_norm(self) -> float | None:
        """Norm of the noise ÷ norm of the chosen elements; None if they are all zero."""
        if not self.squared_weights:
            return None
        return sqrt(self.squared_noise / self.squared_weights)


def noisy(
    weights: Tensor, index: Tensor, noise: str, level: float, *, seed: int, name: str
) -> tuple[Tensor, Hit]:
    """Compute perturbed values for some elements of a weight, without changing it.

    Args:
        weights: All elements, `[num_elements]`, of a float dtype.
        index: Positions of the chosen elements, int64, each once.
        noise: A key of `NOISES`.
        level: Level of the noise, see the module docstring.
        seed: Determines the noise, together with the name.
        name: Name of the weight.

    Returns:
        The new values at `index`, and the effect.
    """
    import torch

    before = weights[index]
    generator = torch.Generator().manual_seed(
        xxhash.xxh3_64_intdigest(f"{seed}\0{noise}\0{name}".encode()) >> 1  # a signed 64-bit number
    )
    after = NOISES[noise](weights, before, level, generator)
    difference = after.double() - before.double()
    return after, Hit(
        len(index),
        int((_bits(after) != _bits(before)).sum()),
        float(difference.square().sum()),
        float(before.double().square().sum()),
    )


def level_problem(noise: str, level: float) -> str | None:
    """Why a level cannot be used; None if it can."""
    if not (isfinite(level) and level > 0):
        return f"a level of {level:g}: expected a number above 0"
    if noise in ("sign", "bitflip") and level > 1:
        return f"{noise} at level {level:g}: it is a share of the elements, at most 1"
    return None


def _gaussian(weights: Tensor, before: Tensor, level: float, generator: torch.Generator) -> Tensor:
    return _added(before, level * float(before.double().norm()), generator)


def _gaussian_absolute(
    weights: Tensor, before: Tensor, level: float, generator: torch.Generator
) -> Tensor:
    rms = float(weights.double().norm()) / sqrt(max(len(weights), 1))
    return _added(before, level * rms * sqrt(len(before)), generator)


def _added(before: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise that is scaled to exactly this norm."""
    import torch

    if not len(before):
        return before
    drawn = torch.randn(len(before), dtype=torch.float64, generator=generator)
    drawn *= norm / float(drawn.norm())
    return (before.double() + drawn.to(before.device)).to(before.dtype)


def _sign(weights: Tensor, before: Tensor, level: float, generator: torch.Generator) -> Tensor:
    after = before.clone()
    hit = _some(before, level, generator)
    after[hit] = -before[hit]
    return after


def _bitflip(weights: Tensor, before: Tensor, level: float, generator: torch.Generator) -> Tensor:
    import torch

    after = before.clone()
    hit = _some(before, level, generator)
    num_bits = round(-log2(torch.finfo(before.dtype).eps))  # of the mantissa
    drawn = torch.randint(num_bits, (len(hit),), generator=generator).to(before.device)
    bits = _bits(after)
    bits[hit] ^= torch.ones_like(drawn).bitwise_left_shift(drawn).to(bits.dtype)
    return after


def _some(before: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Random positions of a share of some elements, rounded to a whole number of them."""
    import torch

    order = torch.randperm(len(before), generator=generator)
    return order[: round(share * len(before))].to(before.device)


def _bits(values: Tensor) -> Tensor:
    """The bit patterns of values as integers of the same width: a view."""
    import torch

    return values.view(getattr(torch, f"int{8 * values.element_size()}"))


NOISES: Mapping[str, Callable[[Tensor, Tensor, float, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "gaussian-absolute": _gaussian_absolute,
    "sign": _sign,
    "bitflip": _bitflip,
}
"""Kind of noise -> function of all elements, the chosen ones, level and generator to new values."""


@contextmanager
def perturbed(model: Any, elements: Mask, noise: str, level: float, *, seed: int) -> Iterator[Hit]:
    """Perturb some elements of a model within the block, and restore their bits afterwards.

    Args:
        model: A torch module.
        elements: Which to perturb, under the names of files or of the model.
        noise: A key of `NOISES`.
        level: Level of the noise.
        seed: Seed of the noise.

    Yields:
        The effect of the noise.
    """
    import torch

    from trimtab.training.layout import Layout

    parameters = dict(model.named_parameters())
    elements = Layout.of(model).in_memory(elements)
    replaced = []
    total = Hit()
    try:
        with torch.no_grad():
            for name in elements:
                if not elements.num_selected(name):
                    continue
                flat = parameters[name].detach().view(-1)
                index = torch.from_numpy(elements.indices(name)).to(flat.device)
                after, hit = noisy(flat, index, noise, level, seed=seed, name=name)
                replaced.append((flat, index, flat[index]))
                flat[index] = after
                total += hit
        yield total
    finally:
        with torch.no_grad():
            for flat, index, before in replaced:
                flat[index] = before


def fingerprint(model: Any) -> str:
    """xxh3-128 of the bits of all parameters, in hexadecimal."""
    from trimtab.training.optimizers.distributed import raw_bytes

    hasher = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        hasher.update(name.encode())
        hasher.update(raw_bytes(parameter).numpy().data)
    return hasher.hexdigest()
