"""Noise in a model, for as long as a block lasts: afterwards every bit is what it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import xxhash

from trimtab.masks import Mask
from trimtab.training.robustness.noise import Hit, noisy

__all__ = ["fingerprint", "perturbed"]


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
