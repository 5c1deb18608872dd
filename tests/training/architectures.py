"""A tiny model of each architecture whose files name or cut tensors in a way of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

SMALL = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

TEXT: Mapping[str, dict[str, Any]] = {
    "Llama": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {**EXPERTS, "num_experts": 4},
    "DeepseekV3": {**EXPERTS, **ROUTED, **LATENT, "v_head_dim": 8, "head_dim": 4},
    "Qwen3Next": {
        **EXPERTS, **LINEAR, "num_experts": 4, "shared_expert_intermediate_size": 8
    },
    "Glm4Moe": {**EXPERTS, **ROUTED},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "GPTNeoX": {},
    "GPT2": {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2},
}  # fmt: skip
"""Architecture -> what its config has besides `SMALL`."""

NAMES = {"GPT2": "GPT2LMHeadModel"}


def _text(name: str) -> Any:
    import transformers

    own = TEXT[name]
    ids = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    common = {key: SMALL[key] for key in ids} if name == "GPT2" else SMALL
    config_class = "Llama4TextConfig" if name == "Llama4" else f"{name}Config"
    config = getattr(transformers, config_class)(**{**common, **own})
    return getattr(transformers, NAMES.get(name, f"{name}ForCausalLM"))(config)


def _gemma3() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {**SMALL, "head_dim": 8}
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4)
    )


def _qwen2_vl() -> Any:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    text = {**SMALL, "rope_parameters": rope}
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))


def _llava() -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {**SMALL, "model_type": "llama"}
    vision = {**VISION, "model_type": "clip_vision_model", "projection_dim": 16}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision))


MODELS: Mapping[str, Callable[[], Any]] = {
    **{name: partial(_text, name) for name in TEXT},
    "Gemma3": _gemma3,
    "Qwen2VL": _qwen2_vl,
    "Llava": _llava,
}
"""Name -> builds a seeded model in fp32, by `build`."""

FUSED = ("Mixtral", "Qwen3Moe", "DeepseekV3", "Qwen3Next", "Glm4Moe", "Olmoe")
"""Those that hold experts fused and store them one by one."""


def build(name: str, seed: int = 0) -> Any:
    """A model of an architecture, with weights that a seed decides."""
    torch.manual_seed(seed)
    return MODELS[name]()
