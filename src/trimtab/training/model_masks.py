"""Masks made on the spot from the weights of a model in memory, under the names of its files.

The parameters are read as if they were a checkpoint (`weights_of`), so that the kinds of mask are
those of `trimtab mask make`, and a mask made here has the bits of one made from the files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.checkpoints.checkpoint import Checkpoint
from trimtab.checkpoints.tensors import FilePool, MemoryFile, StoredTensor
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import MaskError, SettingsError
from trimtab.masks.makers.kinds import KINDS, kinds_hint, make_mask
from trimtab.masks.mask import Mask
from trimtab.training.layout import STORED, Layout
from trimtab.training.optimizers.distributed import as_sharded
from trimtab.words import first_few

NARROW = ("BF16", "F16")
"""Dtypes in which weights that were loaded as fp32 are often stored."""

DEFAULT_KIND, DEFAULT_DENSITY = "random", 0.05
"""The mask of `train_only(trainer)`; docs/train.md has the measurement, on small models."""

RATE_RATIOS = {0.005: 100.0, 0.01: 100.0, 0.05: 30.0, 0.2: 3.0, 1.0: 1.0}
"""Density -> learning rate of a random mask that is good on both tasks of a model of 0.2 M weights
(docs/train.md), over the best one of training everything; from a grid of factors of about 3."""

NAMES = {dtype: name for name, dtype in STORED.items()}
"""Dtype in torch -> its name in checkpoints."""


def mask_from_model(model: Any, kind: str, *, density: float, seed: int = 0) -> Mask:
    """Make a mask from the weights of a model in memory.

    Every tensor has the density, to within one element: embeddings, head, norms and biases like the
    matrices of the layers. Not selected from are frozen parameters (`requires_grad` is False),
    parameters that no checkpoint has, such as a new head (train those whole, with `also`), and
    those whose stored values transformers computes. Tied parameters count once.

    Args:
        model: The model, whole: before it is sharded. Its parameters may be on any device.
        kind: A kind of mask that needs weights alone: `random`, `low-magnitude`, `high-magnitude`,
            `principal`, `off-principal`, `safe` or `absorption`; see `trimtab mask make`.
        density: Share of the elements of each tensor, above 0 and at most 1.
        seed: Decides a random mask, and which of equal weights are selected.

    Returns:
        The mask, under the names of the tensors in files, with digests of the weights it was made
        from. Weights loaded as fp32 have the digests of the bf16 or fp16 tensors that they were
        loaded from, if no value needs more.

    Raises:
        MaskError: There is no such kind; the density is not such a number; a weight is NaN; or
            parameters are sharded or not loaded.
    """
    with weights_of(model) as weights:
        return make_mask(weights, kind, density=density, seed=seed)


def suggested_learning_rate(everything: float, density: float) -> float:
    """A learning rate to start from for a mask that is random or follows from weights.

    A mask needs larger steps than training everything: fewer weights have to make the change. The
    ratios were measured with AdamW on one model of 0.2 M weights and two tasks, in factors of about
    3: 100 at densities of 0.5 and 1 %, 30 at 5 % and 3 at 20 % (docs/train.md). In between they are
    interpolated logarithmically. They are a place to start from: try a third and three times as
    much.

    Args:
        everything: A learning rate that is good for training everything.
        density: Density of the mask, above 0 and at most 1. Below the smallest that was measured,
            the ratio is that of the smallest.

    Raises:
        SettingsError: The learning rate is not above 0, or the density is not such a number.
    """
    if not everything > 0 or not 0 < density <= 1:
        raise SettingsError(
            f"learning rate {everything} and density {density}: expected a rate above 0, and a "
            "density above 0 and at most 1"
        )
    densities, ratios = np.log([*RATE_RATIOS]), np.log([*RATE_RATIOS.values()])
    return float(everything * np.exp(np.interp(np.log(density), densities, ratios)))


def mask_of(
    model: Any, mask: Mask | str | os.PathLike[str], density: float | None, seed: int
) -> tuple[Mask, Mapping[str, Any] | None]:
    """The mask that an argument stands for: a mask, its file, or a kind.

    Args:
        model: The model to make a mask from.
        mask: A mask, the path of its file, or a kind as in `mask_from_model`. A string that is a
            kind is one, even if there is such a file: pass that as a `Path`.
        density: As in `mask_from_model`, for kinds only; None for `DEFAULT_DENSITY`.
        seed: As in `mask_from_model`.

    Returns:
        The mask; and if it was made here, the step of its provenance that says how.

    Raises:
        SettingsError: A density without a kind.
        MaskError: As in `mask_from_model`; or it is neither a kind nor the file of a mask.
    """
    if isinstance(mask, str) and mask in KINDS:
        share = DEFAULT_DENSITY if density is None else density
        made = mask_from_model(model, mask, density=share, seed=seed)
        return made, made.provenance["steps"][-1]
    if not isinstance(mask, Mask):
        if not Path(mask).exists():
            hint = kinds_hint(os.fspath(mask))
            raise MaskError(f"mask={os.fspath(mask)!r} is no file, and no kind of mask: {hint}")
        mask = Mask.load(mask)
    if density is not None:
        raise SettingsError(
            f"density={density} is for a mask that is made here: expected mask= one of "
            f"{', '.join(KINDS)}"
        )
    return mask, None


def weights_of(model: Any) -> Checkpoint:
    """The trainable weights of a model in memory, as an open checkpoint; nothing is copied.

    Raises:
        MaskError: Parameters are sharded, or not loaded.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    _refuse_absent(dict(named))
    new = set(newly_initialised(named, Mask({}, {}, {})))
    parameters = {name: p.detach() for name, p in named if name not in new and p.dtype in NAMES}
    layout, source = Layout.of(model), base_of(model)
    values = {
        name: _reader(piece, parameters)
        for name, piece in layout.stored.items()
        if all(source in parameters for source in piece.sources)
    }
    config = getattr(model, "config", None)
    to_dict = getattr(config, "to_dict", dict)
    identity = source["id"] or type(model).__name__
    dtypes = stored_dtypes({name: read() for name, read in values.items()})
    tensors = {
        name: _in_memory(name, dtypes[name], layout.stored[name].shape, read)
        for name, read in values.items()
    }
    return Checkpoint(
        identity, source["revision"], to_dict(), tensors, {}, FilePool(), folder=Path(identity)
    )


def _refuse_absent(parameters: Mapping[str, Tensor]) -> None:
    if sharded := [name for name, p in parameters.items() if as_sharded(p) is not None]:
        raise MaskError(
            f"{first_few(sharded)}: sharded over processes, and a mask is made from whole tensors: "
            "make it before the model is sharded, or from its files with `trimtab mask make`"
        )
    if absent := [name for name, p in parameters.items() if p.device.type == "meta"]:
        raise MaskError(
            f"{first_few(absent)}: not loaded (on the meta device): load the weights first, or "
            "make the mask from the files with `trimtab mask make`"
        )


def _reader(piece: Any, parameters: Mapping[str, Tensor]) -> Callable[[], Tensor]:
    """Returns the values of a stored tensor, as a view of its parameter where possible."""
    return lambda: piece.of(parameters)


def stored_dtypes(values: Mapping[str, Tensor]) -> dict[str, str]:
    """The dtypes in which weights are probably stored: fp32 ones in a narrower one, if lossless.

    The narrower dtype is the one that holds most of the fp32 elements without a change.

    Args:
        values: Name -> values of each stored tensor.
    """
    dtypes = {name: NAMES[tensor.dtype] for name, tensor in values.items()}
    fits: dict[str, set[str]] = {narrow: set() for narrow in NARROW}
    for name, tensor in values.items():
        if dtypes[name] == "F32":
            for narrow in NARROW:
                if torch.equal(tensor.to(STORED[narrow]).to(tensor.dtype), tensor):
                    fits[narrow].add(name)
    num_wide = sum(values[name].numel() for name, dtype in dtypes.items() if dtype == "F32")
    nums = {narrow: sum(values[name].numel() for name in fits[narrow]) for narrow in NARROW}
    best = max(NARROW, key=lambda narrow: nums[narrow])
    if 2 * nums[best] > num_wide:
        dtypes |= dict.fromkeys(fits[best], best)
    return dtypes


def _in_memory(
    name: str, dtype: str, shape: tuple[int, ...], values: Callable[[], Tensor]
) -> StoredTensor:
    stored = DTYPES[dtype]

    def fill(offset: int, out: NDArray[np.uint8]) -> None:
        first = offset // stored.num_bytes
        part = values().reshape(-1)[first : first + len(out) // stored.num_bytes]
        raw = part.to(STORED[dtype]).cpu().contiguous().view(torch.uint8)
        out[:] = raw.numpy()

    num_bytes = stored.num_bytes * int(np.prod(shape, dtype=np.int64))
    return StoredTensor(name, stored, tuple(shape), MemoryFile(Path(name), num_bytes, fill), 0)


def base_of(model: Any) -> dict[str, Any]:
    """The checkpoint that a model was loaded from, for the record."""
    config = getattr(model, "config", None)
    return {
        "id": getattr(config, "_name_or_path", None),
        "revision": getattr(config, "_commit_hash", None),
    }


def newly_initialised(named_parameters: Iterable[tuple[str, Any]], mask: Mask) -> list[str]:
    """Names of parameters that were not loaded from a checkpoint, such as a new classifier head.

    transformers marks every parameter that it loads. If none is marked, the tensors of a mask with
    a base count as loaded. Models that are mostly new are assumed to be so on purpose.
    """
    pairs = list(named_parameters)
    loaded = {name for name, parameter in pairs if getattr(parameter, "_is_hf_initialized", False)}
    known = loaded or (set(mask) if mask.base else set())
    new = [name for name, _ in pairs if name not in known]
    return new if 2 * len(new) < len(pairs) else []
