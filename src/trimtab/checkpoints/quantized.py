"""Which stored tensors are not the weights themselves, and which scales turn them into weights.

A quantised weight is a tensor of few bits with scales stored next to it. Supported are symmetric
schemes: a weight is its stored element times one scale. How formats name and lay out scales:

- transformers' fine-grained fp8 and DeepSeek-V3: `weight_scale_inv`, one for each block of
  `weight_block_size`; multiplied, despite its name (`Fp8Dequantize` in
  transformers/integrations/finegrained_fp8.py, `weight_dequant` in DeepSeek-V3
  inference/kernel.py). Experts in one tensor have `gate_up_proj_scale_inv`.
- compressed-tensors (`float-quantized`, `int-quantized`): `weight_scale` of shape `[1]`,
  `[rows, 1]`, `[rows, columns / group_size]` or one for each block of `block_structure`
  (`_dequantize` in compressed_tensors/quantization/lifecycle/forward.py).
- NVIDIA ModelOpt: `weight_scale`, a scalar or `[rows]`; blocks as `[row blocks, 1, column blocks,
  1]` (modelopt/torch/export/quant_utils.py).
- fbgemm: `weight_scale` `[rows, 1]`; of stacked experts `[experts, 1, columns]` or
  `[experts, rows, 1]` (transformers/integrations/fbgemm_fp8.py).
- ComfyUI: `scale_weight`, a scalar (comfy/ops.py); Mistral: `qscale_weight`, a scalar.

Scales of activations (`input_scale`, `scale_input`, …) are ignored. Everything else next to a
quantised weight (zero points, a second scale, group indices, …) changes what it is and is refused
by
name, as are weights packed into integers (GPTQ, AWQ, bitsandbytes, MXFP4, NVFP4, …).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.dtypes import Bits, DType
from trimtab.errors import CheckpointError
from trimtab.words import first_few

Tensors = Mapping[str, StoredTensor]
Block = tuple[int, int]

AFTER_WEIGHT = ("_scale_inv", "_scale")
"""Suffixes of the name of a weight for its scales."""

IN_MODULE = ("scale_weight", "qscale_weight")
"""Names of scales that replace `weight`."""

SCALED = ("F8_E4M3", "F8_E5M2", "I8")
"""Dtypes of quantised weights that can be dequantised."""

SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")

OF_ACTIVATIONS = re.compile(
    r"(?:input|output|activation|act|prob|[qkv]|kv|kv_cache|[kv]_proj)_(?:global_)?"
    r"(?:scale(?:_ub)?|zero_point|amax)|scale_input|qscale_act"
)
CHANGES_A_WEIGHT = re.compile(
    r"scale|zero|amax|absmax|quant|qzeros|g_idx|scb|codebook|lora_|svd", re.IGNORECASE
)
PACKED = re.compile(
    r"(?:^|_)(?:q?weight|weight_packed|w_q|blocks|_data|codes|qdata)$", re.IGNORECASE
)
"""Last parts of the names of weights packed into integers."""


@dataclass(frozen=True, eq=False)
class BlockScale:
    """The scales of a weight, one for each block of its 2-D view.

    Attributes:
        tensor: As stored.
        weight: Shape of the weight.
        block: Rows and columns that share a scale, in each matrix of a stack.
    """

    tensor: StoredTensor
    weight: tuple[int, ...]
    block: Block

    def read(self) -> tuple[NDArray[np.float32], Block]:
        """The scales of the 2-D view `[prod(shape[:-1]), shape[-1]]`, and the block of each."""
        *stack, rows, columns = self.weight
        height, width = self.block
        stored = self.tensor.dtype.decode(self.tensor.read()).astype(np.float32).reshape(-1)
        grid = prod(stack), ceil(rows / height), ceil(columns / width)
        scales = np.broadcast_to(stored, grid) if stored.size == 1 else stored.reshape(grid)
        if rows % height and prod(stack) > 1:  # blocks end with their matrix
            scales, height = np.repeat(scales, height, axis=1)[:, :rows], 1
        return scales.reshape(-1, scales.shape[-1]), (height, width)


def find_scale(tensors: Tensors, name: str) -> StoredTensor | None:
    """The stored scales of a weight, under any name that this module knows."""
    weight = tensors.get(name)
    if weight is None or name.endswith(AFTER_WEIGHT):
        return None
    module, _, last = name.rpartition(".")
    is_small = weight.dtype.num_bytes == 1
    if last != "weight" and not is_small:
        return None
    names = [f"{name}{end}" for end in AFTER_WEIGHT]
    if last == "weight":
        names += [f"{module}.{end}" for end in IN_MODULE]
    if last == "weight" and is_small:
        names.append(f"{module}.scale")  # as DeepSeek's own conversion names it
    return next((tensors[candidate] for candidate in names if candidate in tensors), None)


def quantized_weights(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, str]:
    """The tensors that are not the weights themselves.

    Args:
        tensors: All tensors of a checkpoint.
        config: Its config.

    Returns:
        Name -> description of what is stored instead.
    """
    descriptions = {}
    siblings = _Siblings(tensors)
    for name, tensor in tensors.items():
        scale = find_scale(tensors, name)
        modifiers = siblings.modifiers(name, scale)
        if scale is not None:
            descriptions[name] = (
                f"{tensor.dtype.name} with scales in {scale.name.rpartition('.')[2]}"
            )
        elif _is_packed(tensor):
            descriptions[name] = f"weights packed into integers ({tensor.dtype.name})"
        elif tensor.dtype.name in SCALED[:2] and (modifiers or _quantization_config(config)):
            descriptions[name] = f"{tensor.dtype.name} without scales that are known"
    return descriptions


def refuse_quantized(
    tensors: Tensors, config: Mapping[str, Any], names: Iterable[str], checkpoint_id: str
) -> None:
    """Refuse quantised tensors, whose stored elements alone do not give the weights.

    Args:
        tensors: All tensors of a checkpoint.
        config: Its config.
        names: The tensors that are needed.
        checkpoint_id: Its id.

    Raises:
        CheckpointError: Some of them are quantised.
    """
    quantized = quantized_weights(tensors, config)
    if wrong := [f"{name} ({quantized[name]})" for name in names if name in quantized]:
        raise CheckpointError(
            f"{checkpoint_id} is quantised: {first_few(wrong)}, and the stored elements alone say "
            "nothing of a weight: load it where it can be dequantised, and save it in bf16 first"
        )


def block_scales(
    tensors: Tensors, config: Mapping[str, Any], checkpoint_id: str
) -> dict[str, BlockScale]:
    """The scales of every quantised weight of a checkpoint.

    Args:
        tensors: All tensors of the checkpoint.
        config: Its config.
        checkpoint_id: Its id.

    Returns:
        Name of a weight -> its scales.

    Raises:
        CheckpointError: Some have an unknown or ambiguous layout, or another tensor modifies a
            weight.
    """
    scales, problems = {}, []
    siblings = _Siblings(tensors)
    for name in quantized_weights(tensors, config):
        if not tensors[name].num_elements:
            continue
        scale = find_scale(tensors, name)
        try:
            scales[name] = _scale_of(tensors[name], scale, siblings.modifiers(name, scale), config)
        except CheckpointError as error:
            problems.append(str(error))
    if problems:
        raise CheckpointError(f"{checkpoint_id}: cannot dequantise {first_few(problems, '; ')}")
    return scales


def scales_of(tensors: Tensors, config: Mapping[str, Any]) -> dict[str, str]:
    """Name of each tensor that scales or modifies a quantised weight -> name of the weight."""
    siblings = _Siblings(tensors)
    weight_of: dict[str, str] = {}
    for name in quantized_weights(tensors, config):
        scale = find_scale(tensors, name)
        weight_of |= dict.fromkeys(siblings.modifiers(name, scale), name)
        if scale is not None:
            weight_of[scale.name] = name
    return weight_of


def dequantize_blocks(
    bits: Bits,
    dtype: DType,
    scales: NDArray[np.float32],
    row_start: int,
    block: tuple[int, int],
    columns: tuple[int, int] | None = None,
) -> NDArray[np.float32]:
    """Values of some rows of a block-quantised weight, or of a piece of a row.

    A weight `[rows, columns]` has scales `[ceil(rows / block_rows), ceil(columns /
    block_columns)]`,
    which are multiplied.

    Args:
        bits: `[num_rows, columns]` stored elements, from row `row_start` of the weight on.
        dtype: A dtype of 8 bits: fp8 or an integer.
        scales: `[block rows, block columns]` scales of the whole weight.
        row_start: Row of the weight at which `bits` starts; any row, not only a block's first.
        block: Rows and columns of a block; blocks at the lower and right edge may be smaller.
        columns: Column at which `bits` starts, and columns of the whole weight; None if `bits` has
            whole rows.

    Returns:
        `[num_rows, columns]` float32: element times the scale of its block, rounded once.

    Raises:
        CheckpointError: The scales do not cover the weight.

    Source:
        `weight_dequant` in DeepSeek-V3 inference/kernel.py, which multiplies in float32 too.
    """
    num_rows, num_columns = bits.shape
    row_stop = row_start + num_rows
    column_start, of_weight = columns or (0, num_columns)
    if scales.shape[0] < ceil(row_stop / block[0]) or scales.shape[1] != ceil(of_weight / block[1]):
        raise CheckpointError(
            f"block scales of shape {scales.shape} with blocks of {block[0]} × {block[1]} do not "
            f"fit a weight of {of_weight} columns and at least {row_stop} rows"
        )
    of_row = np.arange(row_start, row_stop) // block[0]
    of_column = np.arange(column_start, column_start + num_columns) // block[1]
    values: NDArray[np.float32] = bits.view(dtype.storage).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        values *= scales[of_row][:, of_column]
    return values


class _Siblings:
    """The tensors in the module of each weight."""

    def __init__(self, tensors: Tensors) -> None:
        self._in_module: dict[str, list[str]] = {}
        for name in tensors:
            self._in_module.setdefault(name.rpartition(".")[0], []).append(name)

    def modifiers(self, name: str, scale: StoredTensor | None) -> list[str]:
        """Tensors that change what a weight is, other than its scales."""
        module, _, last = name.rpartition(".")
        names = self._in_module.get(module, [])
        if last != "weight":
            names = [other for other in names if other.startswith(f"{name}_")]
        return [
            other
            for other in (*names, *self._in_module.get(name, ()))
            if other != name
            and (scale is None or other != scale.name)
            and not OF_ACTIVATIONS.fullmatch(
                word := other.rpartition(".")[2].removeprefix(f"{last}_")
            )
            and CHANGES_A_WEIGHT.search(word)
        ]


def _is_packed(tensor: StoredTensor) -> bool:
    """Whether a tensor holds weights packed into integers, by its name."""
    last = tensor.name.rpartition(".")[2]
    return tensor.dtype.kind in ("int", "uint") and PACKED.search(last) is not None


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The quantisation settings of a config; empty if there are none."""
    settings = config.get("quantization_config")
    return settings if isinstance(settings, Mapping) else {}


def _scale_of(
    weight: StoredTensor,
    scale: StoredTensor | None,
    modifiers: Sequence[str],
    config: Mapping[str, Any],
) -> BlockScale:
    if modifiers:
        raise CheckpointError(
            f"{weight.name}: {first_few(modifiers)} next to it changes what it is, in a way that "
            "trimtab does not know (it knows one symmetric scale for an element)"
        )
    if scale is None or weight.dtype.name not in SCALED:
        raise CheckpointError(
            f"{weight.name}: it is stored as {weight.dtype.name}"
            + ("" if scale is None else f" with {scale.name}")
            + f", expected {', '.join(SCALED)} with its scales in weight_scale_inv, weight_scale "
            "or scale_weight"
        )
    if scale.dtype.name not in SCALE_DTYPES:
        raise CheckpointError(
            f"{weight.name}: {scale.name} is stored as {scale.dtype.name}, expected scales in one "
            f"of {', '.join(SCALE_DTYPES)}"
        )
    if len(weight.shape) < 2:
        raise CheckpointError(f"{weight.name}: shape {weight.shape} is no matrix that has scales")
    blocks = set(_blocks(weight.shape, scale.shape, _quantization_config(config)))
    if len(blocks) != 1:
        sizes = ", ".join(
            f"{rows} × {columns}"
            for rows, columns in sorted(_block_sizes(_quantization_config(config)))
        )
        raise CheckpointError(
            f"{weight.name}: {scale.name} has shape {scale.shape} for a weight of shape "
            f"{weight.shape}, which "
            + (
                f"can be read as blocks of {' or '.join(f'{r} × {c}' for r, c in sorted(blocks))}"
                if blocks
                else "is neither one scale, nor one for each row or column"
            )
            + f"; block sizes in config.json under quantization_config: {sizes or 'none'}"
        )
    return BlockScale(scale, weight.shape, blocks.pop())


def _blocks(
    weight: tuple[int, ...], scale: tuple[int, ...], settings: Mapping[str, Any]
) -> Iterator[Block]:
    """Every block that the shapes and the config allow, cut to the weight."""
    *stack, rows, columns = weight
    if len(scale) == len(weight) + 2 and scale[-3] == scale[-1] == 1:  # ModelOpt's blocks
        scale = (*scale[:-4], scale[-4], scale[-2])
    if prod(scale) == 1:
        yield rows, columns
    elif len(scale) == 1:
        # One for each row. For a square weight this needs a config: NumPy and torch would broadcast
        # such a vector over the columns.
        if not stack and scale[0] == rows and (rows != columns or _says_rows(settings)):
            yield 1, columns
    elif list(scale[:-2]) == stack:
        if scale[-2] in (1, rows) and scale[-1] in (1, columns):
            yield rows // scale[-2], columns // scale[-1]
        for height, width in _block_sizes(settings):
            height, width = min(height, rows), min(width, columns)
            if (ceil(rows / height), ceil(columns / width)) == scale[-2:]:
                yield height, width


def _says_rows(settings: Mapping[str, Any]) -> bool:
    return settings.get("quant_method") == "modelopt" or any(
        weights.get("strategy") == "channel" for weights in _groups(settings)
    )


def _groups(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The weight settings of each group of a compressed-tensors config."""
    groups = settings.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            yield weights


def _block_sizes(settings: Mapping[str, Any]) -> set[Block]:
    """Block sizes that a config names."""
    sizes: list[Any] = [settings.get("weight_block_size")]
    if settings.get("quant_algo") == "FP8_PB_WO":
        sizes.append([128, 128])  # ModelOpt's only size
    for weights in _groups(settings):
        sizes += [weights.get("block_structure"), [1, weights.get("group_size")]]
    return {
        (size[0], size[1])
        for size in sizes
        if isinstance(size, list) and len(size) == 2 and all(_is_size(n) for n in size)
    }


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0
