"""One tiny model of each supported architecture, built in code."""

from __future__ import annotations

from typing import Any

COMMON = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
NEOX = {key: value for key, value in COMMON.items() if key != "num_key_value_heads"}
QWEN_MOE = {"moe_intermediate_size": 8, "num_experts": 3, "num_experts_per_tok": 2}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "first_k_dense_replace": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
}
GPT2 = {
    "vocab_size": 32,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "llama": COMMON | {"attention_bias": True, "mlp_bias": True},
    "qwen2": COMMON,
    "qwen3": COMMON | {"head_dim": 6},
    "mistral": COMMON,
    "mixtral": COMMON | {"num_local_experts": 3},
    "qwen3_moe": COMMON | QWEN_MOE | {"head_dim": 6},
    "qwen2_moe": COMMON | QWEN_MOE | {"shared_expert_intermediate_size": 8},
    "gemma2": COMMON | {"head_dim": 6},
    "gemma3_text": COMMON | {"head_dim": 6},
    "phi3": COMMON,
    "gpt2": GPT2,
    "gpt_neox": NEOX,
    "olmo2": COMMON,
    "deepseek_v2": COMMON | DEEPSEEK,
    "deepseek_v3": COMMON | DEEPSEEK,
    "olmoe": COMMON | {"num_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 8},
    "glm4_moe": COMMON
    | {
        "head_dim": 8,
        "attention_bias": True,
        "use_qk_norm": True,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "qwen3_next": COMMON
    | QWEN_MOE
    | {
        "head_dim": 8,
        "shared_expert_intermediate_size": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "layer_types": ["full_attention", "linear_attention"],
    },
    "gpt_oss": COMMON
    | {
        "head_dim": 4,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "llama4_text": COMMON
    | {
        "head_dim": 8,
        "num_local_experts": 3,
        "intermediate_size": 8,
        "intermediate_size_mlp": 24,
        "interleave_moe_layer_step": 2,
    },
}


def build_model(model_type: str, **options: Any) -> Any:
    """A seeded causal language model of 2 layers with random weights.

    Args:
        model_type: A key of `SETTINGS`.
        options: Of its config, except `attn_implementation`.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    implementation = options.pop("attn_implementation", "eager")
    config = CONFIG_MAPPING[model_type](**(SETTINGS[model_type] | options))
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation)


def build_qwen2_vl() -> Any:
    """A tiny Qwen2-VL: language model and vision tower with its merger."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text = COMMON | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 0]}}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "patch_size": 4}
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=text, vision_config=vision | {"mlp_ratio": 2})
    )


def build_gemma3_with_vision() -> Any:
    """A tiny multimodal Gemma 3: language model, vision tower and projector."""
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = COMMON | {"head_dim": 6}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    )
