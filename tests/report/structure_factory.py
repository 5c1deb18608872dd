"""Structures of small made-up masks, of the model of `tests.masks.structure.models`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from tests.masks.structure.models import LLAMA, config_folder, llama_shapes, random_arrays
from tests.measure.checkpoints import save
from trimtab.masks.mask import Mask
from trimtab.masks.structure import structure
from trimtab.masks.structure_result import Structure

__all__ = ["make_structure"]


def make_structure(folder: Path, num_masks: int = 1, *, has_base: bool = False) -> Structure:
    """Count masks that favour one head and some neurons.

    Args:
        folder: Where a config, a base and the masks are put.
        num_masks: How many masks.
        has_base: Whether there is a base, with a null that is matched by magnitude.
    """
    paths = []
    for seed in range(num_masks):
        arrays = random_arrays(llama_shapes(), 0.1, seed)
        rng = np.random.default_rng(seed)
        for name, array in arrays.items():
            if "1.self_attn.q_proj" in name:
                array[16:24] |= rng.random((8, 48)) < 0.4
            if "up_proj" in name:
                array[:20] |= rng.random((20, 48)) < 0.3
        paths.append(folder / f"mask-{seed}.safetensors")
        Mask.from_arrays(arrays).save(paths[-1])
    if not has_base:
        return structure(*paths, config=config_folder(folder / "config"))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).bfloat16()
        for name, shape in llama_shapes().items()
    }
    return structure(*paths, base=save(folder / "base", tensors, LLAMA))
