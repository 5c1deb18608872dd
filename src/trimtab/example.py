"""Tiny synthetic checkpoints to try the commands on, identical on every machine, without torch.

The pages of the documentation show what the commands print for them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trimtab.checkpoints.safetensors import file_start
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import OutputExistsError
from trimtab.outputs import new_folder

EXAMPLE: Mapping[str, str] = {
    "base": "a Llama of two layers with random weights, stored as bf16",
    "tuned": "base after 20 random steps of 1e-5",
    "sub": "the same walk with a little noise, only where tuned changed",
    "other": "tuned as another tool might write it: fp32, other names, one norm left out",
    "run": "checkpoint-10 to checkpoint-80 of a longer walk whose steps get smaller",
}
"""Name of each part of the example -> what it is."""

CONFIG: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}

Values: TypeAlias = dict[str, NDArray[np.float64]]
"""Name -> elements, in fp64."""


def write_example(folder: str | os.PathLike[str] = ".") -> list[Path]:
    """Write the example's checkpoints into a folder.

    Checkpoints that exist with the right content are left alone, so an interrupted call can be
    repeated.

    Args:
        folder: The folder; created if it is missing.

    Returns:
        The checkpoint folders that were written.

    Raises:
        OutputExistsError: Something else has one of their names. Nothing is written then.
    """
    wanted = {Path(folder) / name: files for name, files in example_checkpoints()}
    existing = {path for path in wanted if os.path.lexists(path)}
    conflicts = [path for path in existing if not _holds(path, wanted[path])]
    if conflicts:
        names = ", ".join(sorted(str(path) for path in conflicts))
        raise OutputExistsError(
            f"already there, and not the example's: {names}; nothing was written. "
            "Give an empty folder: `trimtab example FOLDER`"
        )
    missing = [path for path in wanted if path not in existing]
    for path in missing:
        with new_folder(path) as draft:
            for name, content in wanted[path].items():
                (draft / name).write_bytes(content)
    return missing


def example_checkpoints() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The example: the name of each checkpoint folder, and the files in it."""
    base = _rounded(_base())
    moves, noise = (_normal(base, seed) for seed in (1, 2))
    walk = 1e-5 * 20**0.5  # as far as 20 steps in random directions get
    tuned = _rounded({name: array + walk * moves[name] for name, array in base.items()})
    again = {name: array + walk * (moves[name] + 0.1 * noise[name]) for name, array in base.items()}
    sub = {
        name: np.where(tuned[name] == base[name], base[name], array)
        for name, array in _rounded(again).items()
    }
    yield "base", _files(base)
    yield "tuned", _files(tuned)
    yield "sub", _files(sub)
    other = {name.removeprefix("model."): array for name, array in tuned.items()}
    del other["norm.weight"]
    yield "other", _files(other, "F32")
    now = {name: array.copy() for name, array in base.items()}
    for step in range(1, 81):
        for name, move in _normal(base, 100 + step).items():
            now[name] += 8e-6 * (1 - step / 80) * move
        if step % 10 == 0:
            yield f"run/checkpoint-{step}", _files(now)


def _base() -> Values:
    """Weights of a two-layer Llama with tied embeddings, in the order of transformers."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (40, 32)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj.weight": (32, 32),
            f"{at}.self_attn.k_proj.weight": (16, 32),
            f"{at}.self_attn.v_proj.weight": (16, 32),
            f"{at}.self_attn.o_proj.weight": (32, 32),
            f"{at}.mlp.gate_proj.weight": (48, 32),
            f"{at}.mlp.up_proj.weight": (48, 32),
            f"{at}.mlp.down_proj.weight": (32, 48),
            f"{at}.input_layernorm.weight": (32,),
            f"{at}.post_attention_layernorm.weight": (32,),
        }
    shapes["model.norm.weight"] = (32,)
    random = _normal({name: np.zeros(shape) for name, shape in shapes.items()}, 0)
    return {name: array * 0.02 + (1 if "norm" in name else 0) for name, array in random.items()}


def _normal(like: Values, seed: int) -> Values:
    """Normal numbers of the same shapes, from raw PCG64 output, which is stable across NumPys."""
    source = np.random.PCG64(seed)
    result = {}
    for name, array in like.items():
        raw = source.random_raw(2 * array.size) >> np.uint64(11)
        radius, angle = ((raw + 0.5) / 2**53).reshape(2, *array.shape)
        result[name] = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)  # Box and Muller
    return result


def _rounded(values: Values) -> Values:
    bf16 = DTYPES["BF16"]
    return {name: bf16.decode(bf16.encode(array)) for name, array in values.items()}


def _files(values: Values, dtype: str = "BF16") -> dict[str, bytes]:
    """A checkpoint folder as `save_pretrained` writes it: name of each file -> its bytes."""
    start = file_start(
        {name: (dtype, array.shape) for name, array in values.items()}, {"format": "pt"}
    )
    data = b"".join(DTYPES[dtype].encode(array).tobytes() for array in values.values())
    config = {**CONFIG, "dtype": "float32"} if dtype == "F32" else CONFIG
    return {
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        "model.safetensors": start + data,
    }


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder holds these files, byte for byte."""
    return all(
        (path := folder / name).is_file()
        and path.stat().st_size == len(content)
        and path.read_bytes() == content
        for name, content in files.items()
    )
