"""What cannot be trained through a mask, found before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from trimtab.errors import MaskError, OptimizerError
from trimtab.masks import Mask
from trimtab.training.optimizers.binding import TAKEN
from trimtab.training.optimizers.masters import POSSIBLE, Master, master_for
from trimtab.training.optimizers.saved import short
from trimtab.training.optimizers.sharding import local, sharding_trouble
from trimtab.words import first_few

__all__ = [
    "named",
    "refuse_parameters",
    "refuse_taken",
    "refuse_trivial_mask",
    "refuse_wrapped_model",
]

Named = Sequence[tuple[str, Tensor]]


def named(parameters: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The (name, parameter) pairs.

    Raises:
        OptimizerError: They are something else, or none.
    """
    pairs = list(parameters)
    if not pairs or not all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], Tensor)
        for pair in pairs
    ):
        raise OptimizerError(
            "expected the names of the parameters with them, for the mask goes by name: pass "
            f"model.named_parameters() ({'nothing' if not pairs else 'something else'} was passed)"
        )
    return pairs


def refuse_wrapped_model(parameters: Named) -> None:
    """Refuse parameters that a wrapper shards, or whose gradients it reduces.

    Raises:
        OptimizerError: The message says what to use instead.
    """
    if any(getattr(parameter, "_is_flat_param", False) for _, parameter in parameters):
        raise OptimizerError(
            "the parameters are flattened by FSDP1, which hides where an element lies: use FSDP2 "
            "(fully_shard)"
        )
    if any(hasattr(parameter, "ds_id") for _, parameter in parameters):
        raise OptimizerError(
            "the parameters are partitioned by DeepSpeed ZeRO-3, which owns their gradients: use "
            "FSDP2 (fully_shard)"
        )
    if all(name.startswith("module.") for name, _ in parameters):
        raise OptimizerError(
            "the model is wrapped in DistributedDataParallel (all names begin with `module.`), "
            "which would send dense gradients: use the model inside, `.module`, for training and "
            "for its named_parameters(); the optimizer averages gradients between processes itself"
        )


def refuse_trivial_mask(parameters: Named, mask: Mask) -> None:
    """Refuse a mask that selects nothing, or everything that can be trained.

    Raises:
        MaskError: It does.
    """
    if not mask.num_selected():
        raise MaskError("the mask selects no element: there is nothing to train")
    trainable = {id(p): p.numel() for _, p in parameters if p.requires_grad}
    if mask.num_selected() >= sum(trainable.values()):
        raise MaskError(
            "the mask selects every element of the model: torch.optim.AdamW or SGD does the same "
            "at less cost"
        )


def refuse_parameters(parameters: Named, mask: Mask, master: Master | None) -> None:
    """Refuse parameters with selected elements that cannot be trained, naming them all.

    Args:
        parameters: Pairs.
        mask: The mask.
        master: What the user asked for.

    Raises:
        OptimizerError: Some cannot.
    """
    problems = [
        f"{name} {trouble}"
        for name, parameter in parameters
        if name in mask
        and mask.num_selected(name)
        and (trouble := _trouble(parameter, master)) is not None
    ]
    if problems:
        raise OptimizerError(f"the mask cannot be trained: {first_few(problems, '; ')}")


OF_ANOTHER = "belongs to another sparse optimizer, which takes its gradients: close() that first"


def refuse_taken(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse parameters whose gradients another optimizer collects.

    Raises:
        OptimizerError: Some are such; names them.
    """
    if taken := [f"{name} {OF_ANOTHER}" for name, parameter in parameters if parameter in TAKEN]:
        raise OptimizerError(first_few(taken, "; "))


def _trouble(parameter: Tensor, master: Master | None) -> str | None:
    """Why the selected elements of a parameter cannot be trained, and what to do."""
    if parameter.device.type == "meta":
        return "has no data (it is on the meta device): load its weights first"
    if not parameter.requires_grad:
        return "is frozen: call requires_grad_(True) on it, or take it out of the mask"
    if parameter in TAKEN:
        return OF_ANOTHER
    if trouble := sharding_trouble(parameter):
        return trouble
    if not local(parameter.detach()).is_contiguous():
        return "is not contiguous in memory: make it so, with .contiguous()"
    if parameter.dtype not in POSSIBLE:
        return f"is {short(parameter.dtype)}: load the model in bfloat16 or float32"
    fixed = parameter.dtype == torch.float32 or master is None
    if not fixed and master_for(parameter.dtype, master) != master:
        possible = " or ".join(repr(kind) for kind in POSSIBLE[parameter.dtype])
        return f"is {short(parameter.dtype)}, which needs master={possible}, not {master!r}"
    return None
