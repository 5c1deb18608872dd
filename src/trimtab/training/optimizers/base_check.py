"""Whether parameters still are the base that a mask was made against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor

from trimtab.errors import MaskMismatchError
from trimtab.masks import Mask
from trimtab.training.optimizers.sharding import whole

__all__ = ["check_mask"]

STORED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Names of dtypes in a checkpoint -> dtypes of torch, for tensors that can be trained."""


def check_mask(parameters: Sequence[tuple[str, Tensor]], mask: Mask, *, weights: bool) -> None:
    """Check that a mask belongs to the parameters.

    Args:
        parameters: Pairs.
        mask: The mask.
        weights: Compare the weights, too, with what the mask says of its base.

    Raises:
        MaskMismatchError: A name, a shape or the weights differ; names every mismatch.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters}
    digests = {
        name: _digest(parameter, mask.base[name].dtype)
        for name, parameter in parameters
        if weights and name in mask.base and mask.num_selected(name)
    }
    try:
        mask.check(shapes, digests)
    except MaskMismatchError as error:
        missing = [name for name in mask if name not in shapes and mask.num_selected(name)]
        if not missing:
            raise
        raise MaskMismatchError(
            f"{error}. A tied tensor goes by one name only, the first that named_parameters() lists"
        ) from None


def _digest(parameter: Tensor, stored: str) -> str:
    """xxh3-128 of the bytes that the parameter has in a checkpoint.

    A model is often loaded in a wider dtype than its checkpoint has. Such a parameter is taken
    back to that dtype, if that loses nothing; otherwise it is no copy of the base, and its own
    bytes are hashed.
    """
    weights = whole(parameter.detach()).cpu().contiguous()
    narrow = weights.to(STORED.get(stored, weights.dtype))
    if torch.equal(_bytes(narrow.to(weights.dtype)), _bytes(weights)):
        weights = narrow
    return xxhash.xxh3_128_hexdigest(_bytes(weights).numpy().data)


def _bytes(values: Tensor) -> Tensor:
    return values.view(-1).view(torch.uint8)
