"""Tensors that are trained whole beside a mask: `also=["score"]`, as PEFT's `modules_to_save`.

They make a wider mask, so that nothing else needs to know of them: the optimizer keeps state for
their elements as for any, and vectors of a tensor that is selected whole have no positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from trimtab.errors import SettingsError
from trimtab.masks import Mask
from trimtab.masks.packed import PackedTensor
from trimtab.words import first_few

__all__ = ["frozen_notice", "names_of", "newly_initialised", "with_whole"]


def names_of(also: str | Iterable[str], names: Iterable[str]) -> list[str]:
    """The tensors that are meant.

    Args:
        also: Names of modules or parameters, or the ends of such names, in whole parts: `score` is
            `score.weight` and `model.score.bias`, and not `model.scores.weight`.
        names: Names of all parameters.

    Returns:
        Those that are meant, in the order of all.

    Raises:
        SettingsError: Some name nothing.
    """
    names = list(names)
    asked = [also] if isinstance(also, str) else list(also)
    found: set[str] = set()
    problems = []
    for part in asked:
        meant = [name for name in names if part and f".{part}." in f".{name}."]
        found.update(meant)
        if not meant:
            modules = {name.rpartition(".")[0].rpartition(".")[2] for name in names}
            near = get_close_matches(part, [*modules, *names], n=1)
            hint = f": did you mean {near[0]}?" if near else ""
            problems.append(
                f"also: no module or parameter of the model has the name {part!r}{hint}"
            )
    if problems:
        raise SettingsError("; ".join(problems))
    return [name for name in names if name in found]


def with_whole(mask: Mask, shapes: Mapping[str, Sequence[int]], names: Sequence[str]) -> Mask:
    """The mask with some tensors selected whole, whether it has them or not.

    Args:
        mask: The mask.
        shapes: Name of a parameter -> its shape.
        names: Keys of `shapes`.
    """
    if not names:
        return mask
    tensors = {
        name: PackedTensor(mask.shape(name), mask.packed(name), mask.num_selected(name))
        for name in mask
    }
    for name in names:
        tensors[name] = PackedTensor.pack(np.ones(tuple(shapes[name]), dtype=np.bool_))
    return Mask(tensors, mask.base, mask.provenance)


def newly_initialised(named_parameters: Iterable[tuple[str, Any]], mask: Mask) -> list[str]:
    """Names of the parameters that no checkpoint had, as the new head of a classifier.

    transformers marks every parameter that it has loaded. Where none is marked, a mask that was
    made against a base tells. Whatever makes most of a model new is no news to who made it.
    """
    pairs = list(named_parameters)
    loaded = {name for name, parameter in pairs if getattr(parameter, "_is_hf_initialized", False)}
    known = loaded or (set(mask) if mask.base else set())
    new = [name for name, _ in pairs if name not in known]
    return new if 2 * len(new) < len(pairs) else []


def frozen_notice(names: Sequence[str]) -> str:
    """Say that parameters stay at what they were initialised with."""
    modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
    shown = ", ".join(f'"{module}"' for module in modules[:3])
    return (
        f"{first_few(list(names))}: no checkpoint has these weights, and the mask does not train "
        f"them: they keep the values that they were initialised with. also=[{shown}] trains them"
    )
