"""What `structure` is given, checked: that masks, base and config are of one model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from trimtab.checkpoints import Checkpoint
from trimtab.checkpoints.folder import read_config, read_json
from trimtab.errors import CheckpointNotFoundError, MaskMismatchError
from trimtab.masks.packed import PackedMask
from trimtab.words import first_few, plural

__all__ = ["check_digests", "config_of", "is_matrix", "shapes_of"]


def config_of(
    base: Checkpoint | None, config: str | os.PathLike[str] | None
) -> tuple[str | None, Mapping[str, Any]]:
    """Where the config comes from, and the config; None and empty if there is none.

    Raises:
        CheckpointError: It cannot be read.
    """
    if config is not None:
        path = Path(config)
        is_folder = path.is_dir() or not os.path.lexists(path)
        found = read_config(path) if is_folder else read_json(path)
        if not found:
            raise CheckpointNotFoundError(f"{path}: expected a config.json, and there is none")
        return str(path), found
    if base is not None and base.config:
        return base.id, base.config
    return None, {}


def shapes_of(masks: Sequence[PackedMask], base: Checkpoint | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of all masks; a mask that lacks one selects nothing of it.

    Raises:
        MaskMismatchError: Two masks, or a mask and base, do not fit.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    problems = []
    for mask in masks:
        for name in mask:
            expected = shapes.setdefault(name, mask.shape(name))
            if mask.shape(name) != expected:
                problems.append(f"{name} has shape {mask.shape(name)}, in the first {expected}")
    if problems:
        raise MaskMismatchError(
            f"the masks are not of one model, in {plural(len(problems), 'tensor')}: "
            f"{first_few(problems, '; ')}"
        )
    for name, shape in shapes.items() if base is not None else ():
        assert base is not None
        found = base.tensors[name].shape if name in base.tensors else None
        is_empty = all(name not in mask or not mask.num_selected(name) for mask in masks)
        if found != shape and not (found is None and is_empty):
            where = "is not in base" if found is None else f"has shape {found} in base"
            problems.append(f"{name} {where}, in the masks {shape}")
    if problems:
        raise MaskMismatchError(
            f"the masks do not fit base, in {plural(len(problems), 'tensor')}: "
            f"{first_few(problems, '; ')}. "
            "Use the base that they were made from"
        )
    return shapes


def is_matrix(shape: tuple[int, ...] | None) -> bool:
    """Whether a tensor has rows and columns; None for one that is not there."""
    return shape is not None and len(shape) > 1 and prod(shape) > 0


def check_digests(masks: Sequence[PackedMask], digests: Mapping[str, str]) -> None:
    """Refuse weights that are not those that a mask was made against, now that they are read."""
    problems = [
        f"{name} has the digest {digests[name]}, and {of.digest} when the mask was made"
        for mask in masks
        for name, of in mask.base.items()
        if name in digests and digests[name] != of.digest
    ]
    if problems:
        raise MaskMismatchError(
            f"base is not what the masks were made against: {first_few(problems, '; ')}. Use the "
            "base that they were made from"
        )
