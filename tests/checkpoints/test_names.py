"""Names against real models of every architecture, and splits against what the models compute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.checkpoints.models import SETTINGS, build_gemma3_with_vision, build_model, build_qwen2_vl
from trimtab.checkpoints.architectures import FUSIONS, KINDS
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.names import (
    LONGEST_END,
    TensorPart,
    core_name,
    match_renamed,
    parts_of,
    tied_names,
)

needs_models = pytest.mark.train


def kind_of(name: str, shape: tuple[int, ...] = (4, 4), **config: Any) -> str:
    (part,) = parts_of(name, shape, config)
    return part.kind


def cut(array: NDArray[Any], part: TensorPart) -> list[NDArray[Any]]:
    """The pieces of an array that a part names."""
    view = array.reshape(prod(array.shape[:-1]), array.shape[-1] if array.shape else 1)
    return [
        view[box.row_start : box.row_stop, box.column_start : box.column_stop]
        for box in part.rectangles
    ]


def assert_tiles(shape: tuple[int, ...], parts: tuple[TensorPart, ...]) -> None:
    covered = np.zeros(shape, dtype=np.int64)
    for part in parts:
        for piece in cut(covered, part):
            assert piece.size
            piece += 1
    assert (covered == 1).all()


ATTENTION = {f"self_attn.{name}.weight": name for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
MLP = {f"mlp.{name}.weight": name for name in ("gate_proj", "up_proj", "down_proj")}
NORMS = {"input_layernorm.weight": "norm", "post_attention_layernorm.weight": "norm"}
LLAMA = ATTENTION | MLP | NORMS
HEAD_NORMS = {"self_attn.q_norm.weight": "norm", "self_attn.k_norm.weight": "norm"}
BIASES = {f"self_attn.{name}.bias": "bias" for name in ("q_proj", "k_proj", "v_proj")}
EXPERTS = {f"mlp.experts.2.{name}.weight": f"expert.{name}" for name in MLP.values()}
ROUTER = {"mlp.gate.weight": "router"}
GEMMA_NORMS = {f"{at}_feedforward_layernorm.weight": "norm" for at in ("pre", "post")}
DEEPSEEK = (
    NORMS
    | EXPERTS
    | ROUTER
    | {f"mlp.shared_experts.{name}.weight": f"shared_expert.{name}" for name in MLP.values()}
    | {
        "self_attn.q_a_proj.weight": "q_a_proj",
        "self_attn.q_a_layernorm.weight": "norm",
        "self_attn.q_b_proj.weight": "q_b_proj",
        "self_attn.kv_a_proj_with_mqa.weight": "kv_a_proj_with_mqa",
        "self_attn.kv_a_layernorm.weight": "norm",
        "self_attn.kv_b_proj.weight": "kv_b_proj",
        "self_attn.o_proj.weight": "o_proj",
    }
)
QKV = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
QKV_BIAS = dict.fromkeys(QKV, "bias")
TOP = {
    "model.embed_tokens.weight": "embed",
    "model.norm.weight": "norm",
    "lm_head.weight": "lm_head",
}

# Names of the second layer (of MoE models, of the third expert), and outside the layers.
EXPECTED: dict[str, tuple[str, Mapping[str, Any], Mapping[str, str]]] = {
    "llama": (
        "model.layers.1.",
        LLAMA
        | BIASES
        | {"self_attn.o_proj.bias": "bias"}
        | {f"mlp.{name}.bias": "bias" for name in MLP.values()},
        TOP,
    ),
    "qwen2": ("model.layers.1.", LLAMA | BIASES, TOP),
    "qwen3": ("model.layers.1.", LLAMA | HEAD_NORMS, TOP),
    "mistral": ("model.layers.1.", LLAMA, TOP),
    "mixtral": (
        "model.layers.1.",
        ATTENTION
        | NORMS
        | {
            "block_sparse_moe.gate.weight": "router",
            "block_sparse_moe.experts.2.w1.weight": "expert.gate_proj",
            "block_sparse_moe.experts.2.w2.weight": "expert.down_proj",
            "block_sparse_moe.experts.2.w3.weight": "expert.up_proj",
        },
        TOP,
    ),
    "qwen3_moe": ("model.layers.1.", ATTENTION | HEAD_NORMS | NORMS | EXPERTS | ROUTER, TOP),
    "qwen2_moe": (
        "model.layers.1.",
        ATTENTION
        | BIASES
        | NORMS
        | EXPERTS
        | ROUTER
        | {f"mlp.shared_expert.{name}.weight": f"shared_expert.{name}" for name in MLP.values()}
        | {"mlp.shared_expert_gate.weight": "router"},
        TOP,
    ),
    "gemma2": ("model.layers.1.", LLAMA | GEMMA_NORMS, TOP),
    "gemma3_text": ("model.layers.1.", LLAMA | GEMMA_NORMS | HEAD_NORMS, TOP),
    "phi3": (
        "model.layers.1.",
        NORMS
        | {
            "self_attn.qkv_proj.weight": QKV,
            "self_attn.o_proj.weight": "o_proj",
            "mlp.gate_up_proj.weight": {"gate": "gate_proj", "up": "up_proj"},
            "mlp.down_proj.weight": "down_proj",
        },
        TOP,
    ),
    "gpt2": (
        "transformer.h.1.",
        {
            "ln_1.weight": "norm",
            "ln_1.bias": "norm",
            "attn.c_attn.weight": QKV,
            "attn.c_attn.bias": QKV_BIAS,
            "attn.c_proj.weight": "o_proj",
            "attn.c_proj.bias": "bias",
            "ln_2.weight": "norm",
            "ln_2.bias": "norm",
            "mlp.c_fc.weight": "up_proj",
            "mlp.c_fc.bias": "bias",
            "mlp.c_proj.weight": "down_proj",
            "mlp.c_proj.bias": "bias",
        },
        {
            "transformer.wte.weight": "embed",
            "transformer.wpe.weight": "embed",
            "transformer.ln_f.weight": "norm",
            "transformer.ln_f.bias": "norm",
            "lm_head.weight": "lm_head",
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers.1.",
        {
            "input_layernorm.weight": "norm",
            "input_layernorm.bias": "norm",
            "post_attention_layernorm.weight": "norm",
            "post_attention_layernorm.bias": "norm",
            "attention.query_key_value.weight": QKV,
            "attention.query_key_value.bias": QKV_BIAS,
            "attention.dense.weight": "o_proj",
            "attention.dense.bias": "bias",
            "mlp.dense_h_to_4h.weight": "up_proj",
            "mlp.dense_h_to_4h.bias": "bias",
            "mlp.dense_4h_to_h.weight": "down_proj",
            "mlp.dense_4h_to_h.bias": "bias",
        },
        {
            "gpt_neox.embed_in.weight": "embed",
            "gpt_neox.final_layer_norm.weight": "norm",
            "gpt_neox.final_layer_norm.bias": "norm",
            "embed_out.weight": "lm_head",
        },
    ),
    "olmo2": (
        "model.layers.1.",
        ATTENTION
        | MLP
        | HEAD_NORMS
        | {"post_attention_layernorm.weight": "norm", "post_feedforward_layernorm.weight": "norm"},
        TOP,
    ),
    "deepseek_v2": ("model.layers.1.", DEEPSEEK, TOP),
    "deepseek_v3": (
        "model.layers.1.",
        DEEPSEEK | {"mlp.gate.e_score_correction_bias": "router"},
        TOP,
    ),
    "olmoe": ("model.layers.1.", ATTENTION | HEAD_NORMS | NORMS | EXPERTS | ROUTER, TOP),
    "glm4_moe": (
        "model.layers.1.",
        ATTENTION
        | BIASES
        | HEAD_NORMS
        | NORMS
        | EXPERTS
        | ROUTER
        | {f"mlp.shared_experts.{name}.weight": f"shared_expert.{name}" for name in MLP.values()}
        | {"mlp.gate.e_score_correction_bias": "router"},
        TOP,
    ),
    "qwen3_next": (
        "model.layers.1.",
        NORMS
        | EXPERTS
        | ROUTER
        | {f"mlp.shared_expert.{name}.weight": f"shared_expert.{name}" for name in MLP.values()}
        | {
            "mlp.shared_expert_gate.weight": "router",
            "linear_attn.in_proj_qkvz.weight": "linear_attn.in_proj_qkvz",
            "linear_attn.in_proj_ba.weight": "linear_attn.in_proj_ba",
            "linear_attn.conv1d.weight": "linear_attn.conv1d",
            "linear_attn.A_log": "linear_attn.A_log",
            "linear_attn.dt_bias": "bias",
            "linear_attn.norm.weight": "norm",
            "linear_attn.out_proj.weight": "linear_attn.out_proj",
        },
        TOP,
    ),
    "gpt_oss": (
        "model.layers.1.",
        ATTENTION
        | BIASES
        | NORMS
        | {
            "self_attn.o_proj.bias": "bias",
            "self_attn.sinks": "sinks",
            "mlp.router.weight": "router",
            "mlp.router.bias": "bias",
            "mlp.experts.gate_up_proj": "expert.gate_up_proj",
            "mlp.experts.gate_up_proj_bias": "bias",
            "mlp.experts.down_proj": "expert.down_proj",
            "mlp.experts.down_proj_bias": "bias",
        },
        TOP,
    ),
    "llama4_text": (
        "model.layers.1.",
        ATTENTION
        | NORMS
        | {
            "feed_forward.router.weight": "router",
            "feed_forward.experts.gate_up_proj": {
                "gate": "expert.gate_proj",
                "up": "expert.up_proj",
            },
            "feed_forward.experts.down_proj": "expert.down_proj",
        }
        | {
            f"feed_forward.shared_expert.{name}.weight": f"shared_expert.{name}"
            for name in MLP.values()
        },
        TOP,
    ),
}


@needs_models
@pytest.mark.parametrize("model_type", SETTINGS)
def test_every_tensor_of_a_saved_model(model_type: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    prefix, in_layer, outside = EXPECTED[model_type]
    build_model(model_type, tie_word_embeddings=False).save_pretrained(tmp_path)
    found: dict[str, Any] = {}
    with open_checkpoint(tmp_path) as checkpoint:
        assert not checkpoint.tied
        for name, tensor in checkpoint.tensors.items():
            parts = parts_of(name, tensor.shape, checkpoint.config)
            assert_tiles(tensor.shape, parts)
            number = re.search(r"\.(?:layers|h)\.(\d)\.", name)
            assert {part.layer for part in parts} == {int(number[1]) if number else None}
            assert "other" not in {part.kind for part in parts}
            kinds = {part.label: part.kind for part in parts}
            found[name] = kinds.get(None, kinds)
    assert all(found[name] == kind for name, kind in outside.items())
    described = {prefix + name for name in in_layer} | outside.keys()
    assert {name: found[name] for name in described} == {
        **{prefix + name: kind for name, kind in in_layer.items()},
        **outside,
    }
    others = re.compile(r"\.(?:layers|h)\.0\.|\.experts\.[013]\.")
    assert {name for name in found if not others.search(name)} == described


@needs_models
@pytest.mark.parametrize("model_type", SETTINGS)
def test_a_tied_head_is_not_stored_but_known(model_type: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = build_model(model_type, tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    outside = EXPECTED[model_type][2]
    head = next(name for name, kind in outside.items() if kind == "lm_head")
    with open_checkpoint(tmp_path) as checkpoint:
        assert dict(checkpoint.tied) == {head: next(iter(outside))}
        assert checkpoint.tied[head] in checkpoint.tensors
        assert head not in checkpoint.tensors


@pytest.mark.parametrize(
    ("config", "is_tied"),
    [
        ({}, False),
        ({"model_type": "llama"}, False),
        ({"model_type": "gemma2"}, True),
        ({"model_type": "gemma2", "tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": "yes"}, False),
        ({"tie_word_embeddings": True, "architectures": ["LlamaForCausalLM"]}, True),
        ({"tie_word_embeddings": True, "architectures": ["LlamaForTokenClassification"]}, False),
        ({"text_config": {"tie_word_embeddings": True}}, True),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
    ],
)
def test_the_config_says_whether_a_head_is_tied(config: dict[str, Any], is_tied: bool) -> None:
    tied = {"lm_head.weight": "model.embed_tokens.weight"} if is_tied else {}
    assert tied_names({"model.embed_tokens.weight"}, config) == tied
    assert tied_names({"model.embed_tokens.weight", "lm_head.weight"}, config) == {}
    assert tied_names({"lm_head.weight"}, config) == {}


@needs_models
def test_a_multimodal_model_in_memory_and_saved(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = build_gemma3_with_vision()
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        config = checkpoint.config
        names = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        assert dict(checkpoint.tied) == {
            "language_model.lm_head.weight": "language_model.model.embed_tokens.weight"
        }
    in_memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    in_memory.pop("lm_head.weight")
    assert tied_names(in_memory, config) == {
        "lm_head.weight": "model.language_model.embed_tokens.weight"
    }
    for some in (names, in_memory):
        seen: dict[str, set[int | None]] = {}
        for name, shape in some.items():
            (part,) = parts_of(name, shape, config)
            seen.setdefault(part.kind, set()).add(part.layer)
        assert seen == {
            "vision": {None},
            "projector": {None},
            "embed": {None},
            "norm": {None, 0, 1},
            **{kind: {0, 1} for kind in (*ATTENTION.values(), *MLP.values())},
        }


@pytest.fixture
def attended() -> list[Any]:
    """Query, key and value of the last attention that a model with the implementation "spy" ran."""
    torch = pytest.importorskip("torch")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[Any] = []

    def spy(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        seen[:] = [query.numpy(), key.numpy(), value.numpy()]
        return torch.zeros(1, 1, query.shape[1], query.shape[3]), None

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    return seen


@needs_models
@pytest.mark.parametrize(
    ("model_type", "module", "leaf"),
    [
        ("phi3", "model.layers.1.self_attn.qkv_proj", "weight"),
        ("gpt2", "transformer.h.1.attn.c_attn", "weight"),
        ("gpt2", "transformer.h.1.attn.c_attn", "bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", "weight"),
        ("gpt_neox", "gpt_neox.layers.1.attention.query_key_value", "bias"),
    ],
)
def test_the_split_is_the_one_that_the_model_computes_with(
    model_type: str, module: str, leaf: str, attended: list[Any]
) -> None:
    torch = pytest.importorskip("torch")
    model = build_model(model_type, attn_implementation="spy")
    marks = {"q": 1.0, "k": 2.0, "v": 3.0}
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if not name.startswith(module):
                tensor.fill_(1)
            elif not name.endswith(leaf):
                tensor.zero_()
            else:
                parts = parts_of(name, tuple(tensor.shape), model.config.to_dict())
                assert [part.label for part in parts] == list(marks)
                for part in parts:
                    for piece in cut(tensor.numpy(), part):
                        piece[:] = marks[part.label or ""]
    with torch.no_grad():
        model(torch.tensor([[3]]))  # one token, at position 0: rotary embedding changes nothing
    query, key, value = attended
    unit = query.reshape(-1)[0]
    assert unit
    np.testing.assert_allclose(query, unit, rtol=1e-5)
    np.testing.assert_allclose(key, 2 * unit, rtol=1e-5)
    np.testing.assert_allclose(value, 3 * unit, rtol=1e-5)


@needs_models
def test_gate_and_up_are_the_ones_that_phi3_computes_with() -> None:
    torch = pytest.importorskip("torch")
    mlp = build_model("phi3").model.layers[1].mlp
    name, weight = "model.layers.1.mlp.gate_up_proj.weight", mlp.gate_up_proj.weight.detach()
    gate, up = parts_of(name, tuple(weight.shape), SETTINGS["phi3"] | {"model_type": "phi3"})
    assert (gate.label, up.label) == ("gate", "up")
    inputs = torch.randn(5, 16)
    gate_weight, up_weight = (
        torch.from_numpy(piece) for part in (gate, up) for piece in cut(weight.numpy(), part)
    )
    hidden = torch.nn.functional.silu(inputs @ gate_weight.T) * (inputs @ up_weight.T)
    torch.testing.assert_close(mlp(inputs), mlp.down_proj(hidden))


@needs_models
@pytest.mark.parametrize(
    ("model_type", "gate", "up", "down"),
    [
        ("mixtral", "w1", "w3", "w2"),
        ("qwen2_moe", "gate_proj", "up_proj", "down_proj"),
        ("qwen3_moe", "gate_proj", "up_proj", "down_proj"),
        ("deepseek_v2", "gate_proj", "up_proj", "down_proj"),
        ("deepseek_v3", "gate_proj", "up_proj", "down_proj"),
        ("olmoe", "gate_proj", "up_proj", "down_proj"),
        ("glm4_moe", "gate_proj", "up_proj", "down_proj"),
        ("qwen3_next", "gate_proj", "up_proj", "down_proj"),
    ],
)
def test_experts_in_one_tensor_are_those_that_are_saved_apart(
    model_type: str, gate: str, up: str, down: str, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    model = build_model(model_type)
    model.save_pretrained(tmp_path)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    fused, fused_down = (
        next(name for name in state if name.endswith(f"layers.1.mlp.experts.{end}"))
        for end in ("gate_up_proj", "down_proj")
    )
    with open_checkpoint(tmp_path) as checkpoint:
        saved = {
            (int(match[1]), match[2]): tensor.read().view(np.float32)
            for name, tensor in checkpoint.tensors.items()
            if (match := re.search(r"layers\.1\..*experts\.(\d+)\.(\w+)\.weight", name))
        }
        parts = parts_of(fused, state[fused].shape, checkpoint.config)
        (down_part,) = parts_of(fused_down, state[fused_down].shape, checkpoint.config)
    assert [(part.layer, part.kind) for part in parts] == [
        (1, "expert.gate_proj"),
        (1, "expert.up_proj"),
    ]
    assert_tiles(state[fused].shape, parts)
    for part, word in zip(parts, (gate, up), strict=True):
        pieces = cut(state[fused], part)
        assert len(pieces) == len(saved) / 3
        for expert, piece in enumerate(pieces):
            np.testing.assert_array_equal(piece, saved[expert, word])
    assert (down_part.label, down_part.kind) == (None, "expert.down_proj")
    np.testing.assert_array_equal(state[fused_down][1], saved[1, down])


@needs_models
def test_gate_and_up_of_stacked_experts_are_the_ones_that_llama4_computes_with() -> None:
    torch = pytest.importorskip("torch")
    experts = build_model("llama4_text").model.layers[1].feed_forward.experts
    config = SETTINGS["llama4_text"] | {"model_type": "llama4_text"}
    with torch.no_grad():
        stack = experts.gate_up_proj.normal_()
        experts.down_proj.normal_()
    name = "model.layers.1.feed_forward.experts.gate_up_proj"
    gate, up = parts_of(name, tuple(stack.shape), config)
    inputs = torch.randn(3, 5, 16)
    (gate_weight,), (up_weight,) = (cut(stack.detach().numpy(), part) for part in (gate, up))
    gates, ups = (
        inputs @ torch.from_numpy(weight.copy()).reshape(3, 16, 8)
        for weight in (gate_weight, up_weight)
    )
    hidden = ups * torch.nn.functional.silu(gates) @ experts.down_proj
    torch.testing.assert_close(experts(inputs.reshape(15, 16)), hidden.reshape(15, 16))


@needs_models
def test_parts_of_qwen2_vl(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    build_qwen2_vl().save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        kinds = {
            name: {part.kind for part in parts_of(name, tensor.shape, checkpoint.config)}
            for name, tensor in checkpoint.tensors.items()
        }
    assert {*()}.union(*kinds.values()) == {
        "vision",
        "embed",
        "lm_head",
        "norm",
        "bias",
        *ATTENTION.values(),
        *MLP.values(),
    }
    assert {name for name in kinds if "visual." in name} == {
        name for name, item in kinds.items() if item == {"vision"}
    }


PHI3 = {"model_type": "phi3", **SETTINGS["phi3"]}
FUSED_NAMES = {
    "model.layers.0.self_attn.qkv_proj.weight": "qkv_proj",
    "model.layers.0.mlp.gate_up_proj.weight": "gate_up_proj",
}


@pytest.mark.parametrize("name", FUSED_NAMES)
@pytest.mark.parametrize(
    ("shape", "config"),
    [
        ((32, 16), {}),
        ((48, 16), {"model_type": "phi3"}),
        ((50, 16), PHI3),
        ((48,), PHI3),
        ((3, 16, 16), PHI3),
        ((0, 16), PHI3),
        ((32, 16), PHI3 | {"num_attention_heads": "4", "intermediate_size": None}),
        ((48, 16), PHI3 | {"num_attention_heads": 0, "intermediate_size": -24}),
        ((32, 16), PHI3 | {"num_attention_heads": True, "intermediate_size": True}),
        ((48, 16), PHI3 | {"num_attention_heads": 5, "intermediate_size": 5}),
        ((48, 16), PHI3 | {"model_type": ["phi3"]}),
        ((48, 16), PHI3 | {"model_type": "unheard_of"}),
    ],
)
def test_what_does_not_fit_the_config_stays_whole(
    name: str, shape: tuple[int, ...], config: dict[str, Any]
) -> None:
    (part,) = parts_of(name, shape, config)
    assert (part.label, part.layer, part.kind) == (None, 0, FUSED_NAMES[name])
    if prod(shape):
        assert_tiles(shape, (part,))


def test_experts_of_another_number_stay_whole() -> None:
    config = {"model_type": "mixtral", "num_local_experts": 4, "intermediate_size": 3}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert len(parts_of(name, (4, 6, 5), config)) == 2
    assert kind_of(name, (2, 12, 5), **config) == "expert.gate_up_proj"
    assert kind_of(name, (24, 5), **config) == "expert.gate_up_proj"
    assert kind_of(name, (10**12, 6, 0), **config | {"num_local_experts": 10**12}) == (
        "expert.gate_up_proj"
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("h.3.attn.c_proj.weight", "o_proj"),  # GPT-2 as first published, without a prefix
        ("h.3.attn.bias", "buffer"),
        ("transformer.h.3.attn.masked_bias", "buffer"),
        ("gpt_neox.layers.3.attention.rotary_emb.inv_freq", "buffer"),
        ("gpt_neox.layers.3.attention.bias", "buffer"),
        ("model.layers.3.self_attn.q_proj.weight_scale_inv", "scale"),
        ("model.layers.3.mlp.experts.7.down_proj.weight_scale_inv", "scale"),
        ("model.layers.3.mlp.experts.gate_up_proj_scale_inv", "scale"),
        ("model.layers.3.self_attn.q_proj.weight_scale", "scale"),
        ("model.layers.3.self_attn.q_proj.weight_scale_2", "scale"),
        ("model.layers.3.self_attn.q_proj.weight_zero_point", "scale"),
        ("model.layers.3.self_attn.q_proj.input_scale", "scale"),
        ("model.layers.3.self_attn.k_proj.k_scale", "scale"),
        ("model.layers.3.self_attn.q_proj.scale_weight", "scale"),
        ("model.layers.3.self_attn.q_proj.weight.absmax", "scale"),
        ("model.layers.3.self_attn.q_proj.SCB", "scale"),
        ("model.layers.3.logit_scale", "other"),
        ("model.layers.3.embed_tokens.weight", "embed"),  # multi-token prediction of DeepSeek-V3
        ("model.layers.3.eh_proj.weight", "eh_proj"),
        ("model.layers.3.enorm.weight", "norm"),
        ("model.layers.3.shared_head.norm.weight", "norm"),
        ("model.layers.3.shared_head.head.weight", "lm_head"),
        ("model.layers.3.mlp.experts.gate_up_proj_bias", "bias"),
        ("model.layers.3.self_attn.new_proj.bias", "bias"),
        ("model.layers.3.self_attn.sinks", "sinks"),
        ("model.layers.3.mamba.A_log", "other"),
        ("anything.layers.3.q_proj.weight", "q_proj"),
    ],
)
def test_single_names(name: str, kind: str) -> None:
    (part,) = parts_of(name, (4, 4), {})
    assert (part.layer, part.kind) == (3, kind)


@given(st.text(), st.lists(st.integers(0, 5), max_size=4))
def test_any_name_and_shape_has_one_whole_part(name: str, shape: list[int]) -> None:
    (part,) = parts_of(name, tuple(shape), {})
    assert part.label is None
    covered = np.zeros(shape)
    assert sum(piece.size for piece in cut(covered, part)) == covered.size


def test_a_layer_that_no_model_has() -> None:
    """Python reads no number of thousands of digits; a file can hold such a name."""
    for digits, layer in (("123456789", 123456789), ("1" * 10, None), ("9" * 5000, None)):
        (part,) = parts_of(f"model.layers.{digits}.mlp.up_proj.weight", (4, 4), {})
        assert (part.layer, part.kind) == (layer, "up_proj")


def test_no_key_of_the_tables_is_too_long_to_be_found() -> None:
    keys = [*KINDS, *(key for fusions in FUSIONS.values() for key in fusions)]
    assert max(key.count(".") + 1 for key in keys) == LONGEST_END


CORE = "layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    "name",
    [
        CORE,
        f"model.{CORE}",
        f"module.model.{CORE}",
        f"_orig_mod.model.{CORE}",
        f"module._orig_mod.model.{CORE}",
        f"model._orig_mod.{CORE}",
        "model.layers.0._orig_mod.self_attn.q_proj.weight",
        "model.layers.0._checkpoint_wrapped_module.self_attn.q_proj.weight",
        "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.modules_to_save.default.weight",
        f"model.language_model.{CORE}",
        f"language_model.model.{CORE}",
    ],
)
def test_the_core_of_a_name(name: str) -> None:
    assert core_name(name) == CORE


def test_cores_that_are_not_one() -> None:
    assert core_name("model.visual.blocks.0.attn.qkv.weight") == core_name(
        "vision_tower.blocks.0.attn.qkv.weight"
    )
    assert core_name("model.vision_tower.layers.0.q_proj.weight") != core_name(
        "model.layers.0.q_proj.weight"
    )
    assert core_name("model.weight") == "model.weight"  # a parameter keeps the name of its module
    assert core_name("lm_head.original_module.weight") != core_name(
        "lm_head.modules_to_save.default.weight"
    )


def test_names_that_differ_are_matched_where_their_cores_are_unique() -> None:
    left = ["model.layers.0.a", "model.b.weight", "same", "alone", "x.c.weight"]
    right = [
        "layers.0.a",
        "module.b.weight",
        "same",
        "other",
        "model.x.c.weight",
        "module.x.c.weight",
    ]
    assert match_renamed(left, right) == {
        "model.layers.0.a": "layers.0.a",
        "model.b.weight": "module.b.weight",
    }
    # What both have is not taken for something else.
    assert match_renamed(["a.w", "model.a.w"], ["model.a.w"]) == {}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            {"lm_head.weight", "model.layers.0.mlp.up_proj.weight"},
            {"model.embed_tokens.weight": "lm_head.weight"},
        ),
        (
            {"lm_head.weight", "model.language_model.layers.0.mlp.up_proj.weight"},
            {"model.language_model.embed_tokens.weight": "lm_head.weight"},
        ),
        (
            {"lm_head.weight", "transformer.h.0.mlp.c_fc.weight"},
            {"transformer.wte.weight": "lm_head.weight"},
        ),
        (
            {"embed_tokens.weight", "layers.0.mlp.up_proj.weight"},
            {"lm_head.weight": "embed_tokens.weight"},
        ),
        ({"lm_head.weight", "model.embed_tokens.weight", "model.layers.0.w"}, {}),
    ],
)
def test_whichever_of_two_tied_names_is_stored(names: set[str], expected: dict[str, str]) -> None:
    assert tied_names(names, {"tie_word_embeddings": True}) == expected
    assert tied_names(names, {"tie_word_embeddings": False}) == {}
