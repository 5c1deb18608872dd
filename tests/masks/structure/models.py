"""Small masks of models whose units are known, and their configs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.masks.mask import Mask

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 160,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}
HEAD = 8
HIDDEN, FFN, VOCAB, LAYERS = 48, 160, 300, 2

Shapes = Mapping[str, tuple[int, ...]]


def llama_shapes() -> dict[str, tuple[int, ...]]:
    """Tensors of the model of `LLAMA`, whose embeddings are tied."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (6 * HEAD, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (2 * HEAD, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (2 * HEAD, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, 6 * HEAD),
            f"{at}.mlp.gate_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.up_proj.weight": (FFN, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, FFN),
        }
    return shapes


def random_arrays(
    shapes: Shapes, density: float = 0.1, seed: int = 0
) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Bool arrays with each element selected by itself."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.random(shape) < density) for name, shape in shapes.items()}


def random_mask(shapes: Shapes, density: float = 0.1, seed: int = 0) -> Mask:
    """A mask of them."""
    return Mask.from_arrays(random_arrays(shapes, density, seed))


def config_folder(folder: Path, config: Mapping[str, Any] = LLAMA) -> Path:
    """A folder that has nothing but a config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    return folder
