"""Noise of a known size on sets of elements of a model, for as long as a block lasts.

The sets are the mask, and sets of its size to compare it with:

=============  ====================================================================================
`mask`         what the mask selects
`outside`      as many elements of each tensor that it does not select, at random
`random`       as many elements of each tensor, at random among all
`magnitude`    as many elements of each tensor and exponent of the base's weight, at random
=============  ====================================================================================

All four have the same number of elements in every tensor, so a tensor that is more than half
selected is thinned to what is left outside: the mask itself is, at random. The last two may take
elements of the mask, too; `Arm.num_in_mask` says how many.

Noise is rounded to the dtype of the weight, and every kind has a level. For Gaussian noise it is a
norm: of the noise of a tensor, relative to the chosen elements (`gaussian`), or of one element,
relative to the root mean square of the whole tensor (`gaussian-absolute`). For the others it is the
share of the chosen elements that are hit.

=====================  =============================================================================
`gaussian`             norm of the noise = level · norm of the chosen elements, in each tensor
`gaussian-absolute`    norm of the noise = level · rms of the tensor · sqrt(number of chosen ones)
`sign`                 a share of the chosen elements is negated: their sign bit is flipped
`bitflip`              a share of the chosen elements has one bit of the mantissa flipped, any alike
=====================  =============================================================================

So the first is as large as the elements it hits, and the second is the same for all elements of a
tensor: a set of small elements suffers more from it. Both hold before rounding; `Hit` says what is
left of it in the stored dtype. The same seed draws the same noise for every set and every level.
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
"""In the order in which they are shown; the others are what the first is set against."""


@dataclass(frozen=True)
class Arm:
    """A set of elements.

    Attributes:
        name: One of `ARMS`.
        elements: Which.
        num_in_mask: How many of them the mask selects.
    """

    name: str
    elements: Mask
    num_in_mask: int


def arms_of(mask: Mask, base: Checkpoint, seed: int) -> dict[str, Arm]:
    """Draw the sets for one seed: name -> set, in the order of `ARMS`.

    `base` is what the mask was made against: its weights say which elements have one magnitude.
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


def _thinned(mask: Mask, room: dict[str, int], seed: int, what: str) -> Mask:
    """So many of the elements that a mask selects in each tensor, at random."""
    if all(room[name] == mask.num_selected(name) for name in mask):
        return mask
    tensors = {}
    for name in mask:
        selected = mask.array(name)
        places = mask.indices(name)
        kept = random_tensor(places.shape, room[name], seed=seed, name=f"{what}\0{name}").unpack()
        selected.reshape(-1)[places[~kept]] = False
        tensors[name] = PackedTensor.pack(selected)
    return Mask(tensors, mask.base, mask.provenance)


def _num_common(left: Mask, right: Mask) -> int:
    return sum(int(np.bitwise_count(left.packed(name) & right.packed(name)).sum()) for name in left)


@dataclass(frozen=True)
class Hit:
    """What noise did, in the dtype of the weights; addable.

    Attributes:
        num_chosen: Elements that it could hit.
        num_changed: Elements that have other bits than before.
        squared_noise: Sum of the squares of after - before.
        squared_weights: Sum of the squares of before, over the chosen elements.
    """

    num_chosen: int = 0
    num_changed: int = 0
    squared_noise: float = 0.0
    squared_weights: float = 0.0

    def __add__(self, other: Hit) -> Hit:
        return summed(self, other)

    @property
    def relative_norm(self) -> float | None:
        """Norm of the noise ÷ norm of the chosen elements; None if they are all zero."""
        if not self.squared_weights:
            return None
        return sqrt(self.squared_noise / self.squared_weights)


def noisy(
    weights: Tensor, places: Tensor, noise: str, level: float, *, seed: int, name: str
) -> tuple[Tensor, Hit]:
    """New values for some elements of a weight, which is left as it is.

    Args:
        weights: All elements, `[num_elements]`, of a float dtype.
        places: Of the chosen elements, int64, each once.
        noise: A key of `NOISES`.
        level: How much of it, see above.
        seed: With the name it decides the draw.
        name: Of the weight.

    Returns:
        The new values at `places`, and what became of them.
    """
    import torch

    before = weights[places]
    generator = torch.Generator().manual_seed(
        xxhash.xxh3_64_intdigest(f"{seed}\0{noise}\0{name}".encode()) >> 1  # a signed 64-bit number
    )
    after = NOISES[noise](weights, before, level, generator)
    difference = after.double() - before.double()
    bits = _BITS[before.element_size()]
    return after, Hit(
        len(places),
        int((after.view(_dtype(bits)) != before.view(_dtype(bits))).sum()),
        float(difference.square().sum()),
        float(before.double().square().sum()),
    )


def level_problem(noise: str, level: float) -> str | None:
    """Why a level cannot be used, in words; None if it can."""
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
    """Add Gaussian noise that is scaled to have this very norm."""
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
    bits = after.view(_dtype(_BITS[before.element_size()]))
    bits[hit] ^= torch.ones_like(drawn).bitwise_left_shift(drawn).to(bits.dtype)
    return after


def _some(before: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Places of a share of some elements, rounded to a whole number of them."""
    import torch

    order = torch.randperm(len(before), generator=generator)
    return order[: round(share * len(before))].to(before.device)


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


_BITS = {2: "int16", 4: "int32", 8: "int64"}
"""Bytes of an element -> integer of its width, to see its bits."""

NOISES: Mapping[str, Callable[[Tensor, Tensor, float, torch.Generator], Tensor]] = {
    "gaussian": _gaussian,
    "gaussian-absolute": _gaussian_absolute,
    "sign": _sign,
    "bitflip": _bitflip,
}
"""Kind of noise -> all elements, the chosen ones, level and generator to new values of these."""


@contextmanager
def perturbed(model: Any, elements: Mask, noise: str, level: float, *, seed: int) -> Iterator[Hit]:
    """Perturb some elements of a model, and put their old bits back.

    Args:
        model: A torch module.
        elements: Which to perturb, under the names of files or of the model.
        noise: A key of `NOISES`.
        level: How much of it.
        seed: Of the noise.

    Yields:
        What the noise did.
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
                places = torch.from_numpy(elements.indices(name)).to(flat.device)
                after, hit = noisy(flat, places, noise, level, seed=seed, name=name)
                replaced.append((flat, places, flat[places]))
                flat[places] = after
                total += hit
        yield total
    finally:
        with torch.no_grad():
            for flat, places, before in replaced:
                flat[places] = before


def fingerprint(model: Any) -> str:
    """xxh3-128 over the bits of all parameters, in hexadecimal."""
    import torch

    hasher = xxhash.xxh3_128()
    for name, parameter in model.named_parameters():
        hasher.update(name.encode())
        hasher.update(parameter.detach().cpu().view(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
