"""Find the weights in a folder: which files, and what their index says is in each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trimtab import inputs
from trimtab.checkpoints.messages import first_few
from trimtab.errors import CheckpointError

__all__ = [
    "FILES",
    "GGUF_CURE",
    "INDEX_FILES",
    "SINGLE_FILES",
    "WeightFiles",
    "check_files",
    "find_weights",
    "read_config",
    "read_json",
]

SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names of weights in one file, preferred first."""

INDEX_FILES = tuple(f"{name}.index.json" for name in SINGLE_FILES)
"""Names of the index of weights in several files (shards)."""

FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""What there is in a model's folder beside the weights."""

GGUF_CURE = (
    "GGUF weights are quantised for inference: load them with transformers (gguf_file=...) and "
    "save_pretrained the model to compare it"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold the weights of a checkpoint.

    Attributes:
        paths: In the order of their names, which number the shards.
        shard_of: Tensor -> file name by the index; empty if there is none.
    """

    paths: tuple[Path, ...]
    shard_of: Mapping[str, str] = field(default_factory=dict)


def find_weights(folder: Path) -> WeightFiles:
    """Find the weights as transformers would: safetensors first, one file before shards.

    The shards that an index names need not be there: their absence shows when they are opened.

    Raises:
        CheckpointError: There are none, or the index cannot be used.
    """
    for single, index in zip(SINGLE_FILES, INDEX_FILES, strict=True):
        if os.path.lexists(folder / single):
            return WeightFiles((folder / single,))
        if os.path.lexists(folder / index):
            return _read_index(folder / index)
    raise CheckpointError(_what_it_is_instead(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder, or an empty dict if it has none.

    What ModelOpt says of quantisation in a file of its own is put where transformers has it.

    Raises:
        CheckpointError: A file is there but is not a JSON object.
    """
    path, modelopt = folder / "config.json", folder / "hf_quant_config.json"
    # What is there but leads nowhere, as a link to itself, is refused and not taken for absent.
    config = read_json(path) if os.path.lexists(path) else {}
    if "quantization_config" not in config and os.path.lexists(modelopt):
        said = read_json(modelopt).get("quantization")
        if isinstance(said, dict):
            config["quantization_config"] = {"quant_method": "modelopt", **said}
    return config


def check_files(folder: Path) -> None:
    """Check what other libraries will read of a model's folder: the files beside its weights.

    A pipe among them would hang what opens it.

    Raises:
        CheckpointError: One is no file, or too long.
    """
    for pattern in FILES:
        for path in folder.glob(pattern):
            with inputs.open_regular(path, CheckpointError) as file:
                size = os.fstat(file.fileno()).st_size
            if size > inputs.MAX_RESULT_BYTES:
                raise CheckpointError(f"{path}: has {size} bytes, too long for what it should be")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or is no JSON object in UTF-8.
    """
    data = inputs.read_json(path, CheckpointError)
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found a {type(data).__name__}")
    return data


def _read_index(path: Path) -> WeightFiles:
    shard_of = read_json(path).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise CheckpointError(f"{path}: has no weight_map from tensors to shards")
    shards = set(map(str, shard_of.values()))
    # A shard lies beside its index; anything else, such as ../x, is not followed.
    foreign = sorted(
        repr(shard)
        for shard in shards
        if shard in ("", ".", "..") or not shard.isprintable() or set(shard) & set("/\\:")
    )
    if foreign:
        raise CheckpointError(f"{path}: names shards outside its folder: {first_few(foreign)}")
    return WeightFiles(tuple(path.parent / shard for shard in sorted(shards)), shard_of)


def _what_it_is_instead(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return f"{folder}: the folder is empty"
    if "adapter_config.json" in names:
        return (
            f"{folder}: a LoRA adapter, not a whole checkpoint: merge it into its base first "
            "(PEFT's merge_and_unload, then save_pretrained)"
        )
    gguf = [name for name in names if name.endswith(".gguf")]
    if gguf:
        return f"{folder}: {first_few(gguf)}: {GGUF_CURE}"
    looked_for = ", ".join((*SINGLE_FILES, *INDEX_FILES))
    return f"{folder}: not a checkpoint: looked for {looked_for}; found {first_few(names)}"
