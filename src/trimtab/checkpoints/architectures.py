"""The tables behind names: what each architecture calls its tensors, and which ones it fuses.

Names decide the kind, so a checkpoint without a config still gets kinds. Only the split of a fused
tensor asks the config, because the name alone does not say how the parts are laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Sizes: TypeAlias = Mapping[str, int]
"""The positive integers of a config."""

SAME_NAME = (
    # Llama, Qwen2, Qwen3, Mistral, Gemma, OLMo-2 and most others
    *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
    # Phi-3 and GLM, where the config does not fit the shape
    *("qkv_proj", "gate_up_proj"),
    # DeepSeek-V2 and V3: multi-head latent attention, and the multi-token-prediction layer
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "eh_proj"),
)

KINDS: Mapping[str, str] = {
    **{name: name for name in SAME_NAME},
    # Embeddings and heads
    "embed_tokens": "embed",
    "wte": "embed",
    "wpe": "embed",
    "embed_in": "embed",
    "embed_out": "lm_head",
    "shared_head.head": "lm_head",
    # GPT-2
    "attn.c_attn": "qkv_proj",
    "attn.c_proj": "o_proj",
    "mlp.c_fc": "up_proj",
    "mlp.c_proj": "down_proj",
    # GPT-NeoX, Pythia
    "attention.query_key_value": "qkv_proj",
    "attention.dense": "o_proj",
    "mlp.dense_h_to_4h": "up_proj",
    "mlp.dense_4h_to_h": "down_proj",
    # Mixture of experts: one expert per tensor (Mixtral says w1, w3, w2), then all in one
    "experts.#.gate_proj": "expert.gate_proj",
    "experts.#.up_proj": "expert.up_proj",
    "experts.#.down_proj": "expert.down_proj",
    "experts.#.w1": "expert.gate_proj",
    "experts.#.w3": "expert.up_proj",
    "experts.#.w2": "expert.down_proj",
    "experts.gate_up_proj": "expert.gate_up_proj",
    "experts.down_proj": "expert.down_proj",
    # Experts that see every token: DeepSeek, Qwen2-MoE
    "shared_experts.gate_proj": "shared_expert.gate_proj",
    "shared_experts.up_proj": "shared_expert.up_proj",
    "shared_experts.down_proj": "shared_expert.down_proj",
    "shared_expert.gate_proj": "shared_expert.gate_proj",
    "shared_expert.up_proj": "shared_expert.up_proj",
    "shared_expert.down_proj": "shared_expert.down_proj",
    # Routers
    "mlp.gate": "router",
    "mlp.router": "router",
    "mlp.shared_expert_gate": "router",
    "block_sparse_moe.gate": "router",
    "feed_forward.router": "router",
    "gate.e_score_correction_bias": "router",
    # GPT-OSS: a logit for each head that attends to nothing
    "self_attn.sinks": "sinks",
    # Qwen3-Next: layers of linear attention (gated delta rule)
    "linear_attn.in_proj_qkvz": "linear_attn.in_proj_qkvz",
    "linear_attn.in_proj_ba": "linear_attn.in_proj_ba",
    "linear_attn.conv1d": "linear_attn.conv1d",
    "linear_attn.A_log": "linear_attn.A_log",
    "linear_attn.dt_bias": "bias",
    "linear_attn.out_proj": "linear_attn.out_proj",
    # Stored, but never trained: causal masks of GPT-2 and GPT-NeoX, rotary frequencies
    "attn.bias": "buffer",
    "attn.masked_bias": "buffer",
    "attention.bias": "buffer",
    "attention.masked_bias": "buffer",
    "rotary_emb.inv_freq": "buffer",
}
"""End of a tensor's dotted path (without `.weight` or `.bias`; `#` is any number) -> kind."""

MODALITIES: Mapping[str, str] = {
    "vision_tower": "vision",
    "vision_model": "vision",
    "visual": "vision",
    "audio_tower": "audio",
    "multi_modal_projector": "projector",
    "mm_projector": "projector",
    "connector": "projector",
}
"""Part of a multimodal model outside the language model -> kind of all its tensors."""


@dataclass(frozen=True)
class Fusion:
    """How the parts of a fused tensor lie along one axis of its 2-D view.

    Attributes:
        parts: Label and kind of each part, in order.
        axis: Along which they lie; a bias, being a single row, is always cut along its columns.
        dimensions: Of the tensor; a bias has one less.
        layout: Config -> how often the sequence of parts repeats, and the size of each part in
            one repetition. Raises KeyError if the config does not say.
    """

    parts: tuple[tuple[str, str], ...]
    axis: Literal["rows", "columns"]
    dimensions: int
    layout: Callable[[Sizes], tuple[int, tuple[int, ...]]]


QKV = (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"))


def _phi3_qkv(config: Sizes) -> tuple[int, tuple[int, ...]]:
    heads = config["num_attention_heads"]
    key_value_heads = config.get("num_key_value_heads", heads)
    head = config.get("head_dim") or config["hidden_size"] // heads
    return 1, (heads * head, key_value_heads * head, key_value_heads * head)


def _gate_up(config: Sizes) -> tuple[int, tuple[int, ...]]:
    return 1, (config["intermediate_size"],) * 2


def _gpt2_qkv(config: Sizes) -> tuple[int, tuple[int, ...]]:
    return 1, (config["n_embd"],) * 3


def _neox_qkv(config: Sizes) -> tuple[int, tuple[int, ...]]:
    heads = config["num_attention_heads"]
    return heads, (config["hidden_size"] // heads,) * 3


EXPERT_GATE_UP = (("gate", "expert.gate_proj"), ("up", "expert.up_proj"))


def _experts_gate_up(num_experts: str, width: str) -> Fusion:
    # transformers 5 says num_local_experts where the architecture's own config had another word.
    def layout(config: Sizes) -> tuple[int, tuple[int, ...]]:
        experts = config.get(num_experts) or config["num_local_experts"]
        return experts, (config[width],) * 2

    return Fusion(EXPERT_GATE_UP, "rows", 3, layout)


FUSIONS: Mapping[str, Mapping[str, Fusion]] = {
    "phi3": {
        "qkv_proj": Fusion(QKV, "rows", 2, _phi3_qkv),
        "gate_up_proj": Fusion((("gate", "gate_proj"), ("up", "up_proj")), "rows", 2, _gate_up),
    },
    # Conv1D keeps its weight as [in, out].
    "gpt2": {"attn.c_attn": Fusion(QKV, "columns", 2, _gpt2_qkv)},
    # The query, key and value of a head lie together, head after head.
    "gpt_neox": {"attention.query_key_value": Fusion(QKV, "rows", 2, _neox_qkv)},
    # transformers 5 keeps all experts of a layer in one tensor [experts, 2 · width, hidden].
    "mixtral": {"experts.gate_up_proj": _experts_gate_up("num_local_experts", "intermediate_size")},
    "qwen2_moe": {"experts.gate_up_proj": _experts_gate_up("num_experts", "moe_intermediate_size")},
    "qwen3_moe": {"experts.gate_up_proj": _experts_gate_up("num_experts", "moe_intermediate_size")},
    "qwen3_next": {
        "experts.gate_up_proj": _experts_gate_up("num_experts", "moe_intermediate_size")
    },
    "olmoe": {"experts.gate_up_proj": _experts_gate_up("num_experts", "intermediate_size")},
    "glm4_moe": {
        "experts.gate_up_proj": _experts_gate_up("n_routed_experts", "moe_intermediate_size")
    },
    # [experts, hidden, 2 · width]: the other way round. GPT-OSS has gate and up by turns, a column
    # each, and stays whole.
    "llama4_text": {"experts.gate_up_proj": Fusion(EXPERT_GATE_UP, "columns", 3, _gate_up)},
    "deepseek_v2": {
        "experts.gate_up_proj": _experts_gate_up("n_routed_experts", "moe_intermediate_size")
    },
    "deepseek_v3": {
        "experts.gate_up_proj": _experts_gate_up("n_routed_experts", "moe_intermediate_size")
    },
}
"""`model_type` of the config -> end of a dotted path -> how that tensor is fused."""

TIED: Mapping[str, str] = {
    "model.embed_tokens.weight": "lm_head.weight",
    "model.language_model.embed_tokens.weight": "lm_head.weight",
    "language_model.model.embed_tokens.weight": "language_model.lm_head.weight",
    "embed_tokens.weight": "lm_head.weight",
    "transformer.wte.weight": "lm_head.weight",
    "wte.weight": "lm_head.weight",
    "gpt_neox.embed_in.weight": "embed_out.weight",
}
"""Input embedding -> the head that repeats it if the config ties them."""

TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text", "gpt2"})
"""Model types whose config ties the embeddings unless it says otherwise."""
