"""Tiny seeded checkpoints on disk, written by the safetensors library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}

Tensors = dict[str, torch.Tensor]


def llama_tensors(seed: int = 0, dtype: torch.dtype = torch.bfloat16, vocab: int = 40) -> Tensors:
    """Weights of a two-layer Llama with tied embeddings."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (vocab, 32), "model.norm.weight": (32,)}
    for layer in range(2):
        at = f"model.layers.{layer}"
        shapes[f"{at}.input_layernorm.weight"] = (32,)
        shapes[f"{at}.self_attn.q_proj.weight"] = (32, 32)
        shapes[f"{at}.self_attn.k_proj.weight"] = (16, 32)
        shapes[f"{at}.mlp.up_proj.weight"] = (48, 32)
        shapes[f"{at}.mlp.down_proj.weight"] = (32, 48)
    return {
        name: (torch.randn(shape, generator=generator) * 0.02).to(dtype)
        for name, shape in shapes.items()
    }


def moved(tensors: Tensors, density: float = 0.2, seed: int = 1) -> Tensors:
    """The same weights with a share of them moved by about one step of bf16."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, tensor in tensors.items():
        hit = torch.rand(tensor.shape, generator=generator) < density
        step = torch.randn(tensor.shape, generator=generator) * 0.01
        result[name] = torch.where(hit, tensor.float() * (1 + step) + 1e-4, tensor.float()).to(
            tensor.dtype
        )
    return result


def save(folder: Path, tensors: Mapping[str, torch.Tensor], config: Any = LLAMA) -> Path:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_sharded(folder: Path, tensors: Mapping[str, torch.Tensor], num_shards: int) -> Path:
    """Write the same checkpoint in several files with an index."""
    folder.mkdir(parents=True)
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        mine = names[shard::num_shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return folder
