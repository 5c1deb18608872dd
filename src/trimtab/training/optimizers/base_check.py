"""Whether parameters are those of a mask, and still the base that it was made against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xxhash
from torch import Tensor

from trimtab.masks import Mask
from trimtab.training.layout import STORED, Layout
from trimtab.training.optimizers.sharding import whole

__all__ = ["check_base"]


def check_base(parameters: Sequence[tuple[str, Tensor]], mask: Mask, layout: Layout) -> None:
    """Compare weights with what a mask says of its base.

    Args:
        parameters: Pairs.
        mask: The mask, under the names of files.
        layout: Of the parameters.

    Raises:
        MaskMismatchError: Weights differ; names every such tensor, up to a handful.
    """
    by_name = dict(parameters)
    digests = {}
    for name, piece in layout.stored.items():
        if name in mask.base and mask.num_selected(name) and by_name.keys() >= {*piece.sources}:
            sources = {source: whole(by_name[source].detach()) for source in piece.sources}
            digests[name] = _digest(piece.of(sources), mask.base[name].dtype)
    mask.check({name: mask.shape(name) for name in mask}, digests)


def _digest(parameter: Tensor, stored: str) -> str:
    """xxh3-128 of the bytes that a tensor has in a checkpoint.

    A model is often loaded in a wider dtype than its checkpoint has. Such a parameter is taken
    back to that dtype, if that loses nothing; otherwise it is no copy of the base, and its own
    bytes are hashed.
    """
    weights = parameter.cpu().contiguous()
    narrow = weights.to(STORED.get(stored, weights.dtype))
    if torch.equal(_bytes(narrow.to(weights.dtype)), _bytes(weights)):
        weights = narrow
    return xxhash.xxh3_128_hexdigest(_bytes(weights).numpy().data)


def _bytes(values: Tensor) -> Tensor:
    return values.view(-1).view(torch.uint8)
