"""The trained checkpoint of a run: in which dtypes it is saved, and what changed in it."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from trimtab.checkpoints.folder import FILES
from trimtab.masks import Mask, extract_mask
from trimtab.training import runtime
from trimtab.training.folders import read_json, write_json
from trimtab.training.runs.base_model import BaseModel

__all__ = ["count_update", "save_weights", "saved_dtypes"]

TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}

FP32 = "F32"


def save_weights(model: Any, base: BaseModel, save_dtype: str, folder: Path) -> None:
    """Save the weights, with the base's other files.

    Args:
        model: The trained model; its tensors are rounded in place.
        base: What it was made from.
        save_dtype: `stored`, as the base stores each tensor, or `fp32`.
        folder: An empty folder.
    """
    import torch

    stored_dtypes = base.stored_dtypes(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        stored = stored_dtypes[name]
        if stored in TORCH and tensor.is_floating_point():
            dtype = FP32 if save_dtype == "fp32" else stored
            tensor.data = tensor.data.to(getattr(torch, TORCH[dtype]))
    with runtime.quiet():
        model.save_pretrained(folder)
    for file in base.folder.iterdir():
        is_wanted = any(fnmatch(file.name, pattern) for pattern in FILES)
        if is_wanted and not file.name.endswith(".index.json"):
            shutil.copy2(file, folder / file.name)
    if save_dtype == "fp32":
        _say_fp32(folder / "config.json")


def _say_fp32(config: Path) -> None:
    """Write the dtype into a config: transformers loads weights in the one that it finds there."""
    said = read_json(config)
    names = [name for name in ("dtype", "torch_dtype") if name in said] or ["dtype"]
    write_json(config, {**said, **dict.fromkeys(names, TORCH[FP32])})


def saved_dtypes(base: BaseModel, save_dtype: str) -> str:
    """In which dtypes `save_weights` saves."""
    wide = {FP32 if save_dtype == "fp32" and of in TORCH else of for of in base.record.dtypes}
    return ", ".join(sorted(wide))


def count_update(
    base: BaseModel, saved: Path, save_dtype: str, mask: Mask | None
) -> dict[str, Any]:
    """What saved weights differ in from the base, bit for bit, in the mask and outside.

    Weights that are saved in fp32 are compared with the base widened to it, which is exact.

    Args:
        base: The base.
        saved: Folder of the weights.
        save_dtype: As in `save_weights`.
        mask: What was trained; None for everything.
    """
    changed = extract_mask(base.folder, saved, cast="fp32" if save_dtype == "fp32" else None)
    inside = 0
    for name in changed:
        if mask is None:
            inside += changed.num_selected(name)
        elif name in mask:
            inside += int((changed.array(name) & mask.array(name)).sum())
    return {
        "criterion": "bits",
        "num_elements": changed.num_elements(),
        "num_changed": changed.num_selected(),
        "num_changed_outside_mask": changed.num_selected() - inside,
    }
