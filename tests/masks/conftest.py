"""Three checkpoints of one model and a mask: what the tests of identity share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import xxhash
from numpy.typing import NDArray

from tests.measure.checkpoints import LLAMA, Tensors, llama_tensors, moved, save
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask


class Three(NamedTuple):
    """Three checkpoints of one model, and the mask of what FULL changed."""

    base: Tensors
    full: Tensors
    sub: Tensors
    mask: Mask


def bits_of(tensor: torch.Tensor) -> NDArray[np.uint16]:
    return tensor.view(torch.int16).numpy().view(np.uint16)


def change_mask(base: Tensors, full: Tensors) -> Mask:
    """The elements whose bits differ, and what base was."""
    return Mask.from_arrays(
        {name: bits_of(base[name]) != bits_of(full[name]) for name in base},
        base={
            name: BaseTensor("BF16", xxhash.xxh3_128_hexdigest(bits_of(tensor).tobytes()))
            for name, tensor in base.items()
        },
    )


def within(mask: Mask, base: Tensors, tuned: Tensors) -> Tensors:
    """`tuned` where the mask is set, and base elsewhere."""
    return {
        name: torch.where(torch.from_numpy(mask.array(name)), tuned[name], tensor)
        for name, tensor in base.items()
    }


@pytest.fixture
def three() -> Three:
    base = llama_tensors()
    full = moved(base)
    mask = change_mask(base, full)
    # Half of what full changed went the same way in sub, a quarter another way, the rest nowhere.
    other = moved(base, density=1.0, seed=9)
    rng = np.random.default_rng(0)
    mixed = {}
    for name, tensor in base.items():
        way = torch.from_numpy(rng.random(tensor.shape))
        mixed[name] = torch.where(
            way < 0.5, full[name], torch.where(way < 0.75, other[name], tensor)
        )
    return Three(base, full, within(mask, base, mixed), mask)


def saved(three: Three, folder: Path, config: Any = LLAMA) -> tuple[Path, Path, Path]:
    base, full, sub = (
        save(folder / side, tensors, config)
        for side, tensors in zip(("base", "full", "sub"), three[:3], strict=True)
    )
    return base, full, sub
