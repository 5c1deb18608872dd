"""Which units the parts of each architecture belong to, and what is left out and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.checkpoints.models import SETTINGS
from tests.masks.structure.models import LLAMA, config_folder, llama_shapes, random_arrays
from trimtab.masks.mask import Mask
from trimtab.masks.structure import structure
from trimtab.masks.structure_families import spread_at_random
from trimtab.masks.structure_result import Structure

Array = np.ndarray[Any, np.dtype[np.bool_]]
GENERATOR = np.random.default_rng(0)


def matrix(*shape: int) -> Array:
    return GENERATOR.random(shape) < 0.3


def counts(result: Structure, name: str) -> dict[tuple[int | None, int], int]:
    """Selected elements of the units of a family."""
    (family,) = [f for f in result.masks[0].families if f.name == name]
    return {(u.layer, u.index): u.num_selected for u in family.units}


def families(result: Structure) -> list[str]:
    return [family.name for family in result.masks[0].families]


def reasons(result: Structure) -> dict[tuple[str, str], str]:
    return {(gap.family, gap.kind): gap.reason for gap in result.left_out}


def run(arrays: dict[str, Array], folder: Path | None, settings: dict[str, Any]) -> Structure:
    config = None if folder is None else config_folder(folder, settings)
    return structure(Mask.from_arrays(arrays), config=config)


def test_heads_share_a_kv_group(tmp_path: Path) -> None:
    """6 query heads over 2 groups of keys and values."""
    result = run(random_arrays(llama_shapes()), tmp_path, LLAMA)
    assert len(counts(result, "head")) == 12
    assert len(counts(result, "kv_group")) == 4
    assert reasons(result) == {}


def test_without_a_config_heads_are_not_told(tmp_path: Path) -> None:
    result = run(random_arrays(llama_shapes()), None, {})
    assert families(result) == ["neuron", "channel", "token"]
    assert result.config is None
    report = reasons(result)
    assert set(report) == {
        ("head", "q_proj"), ("head", "o_proj"), ("kv_group", "k_proj"), ("kv_group", "v_proj"),
    }  # fmt: skip
    assert all("give --base or --config" in reason for reason in report.values())
    (gap,) = [gap for gap in result.left_out if gap.kind == "q_proj"]
    assert (gap.num_tensors, gap.num_elements) == (2, 2 * 48 * 48)


def test_a_config_that_does_not_fit_the_shapes(tmp_path: Path) -> None:
    result = run(random_arrays(llama_shapes()), tmp_path, LLAMA | {"head_dim": 9})
    assert families(result) == ["neuron", "channel", "token"]
    assert reasons(result)["head", "q_proj"] == "rows of q_proj are 48, and the config says 6 × 9"
    assert reasons(result)["head", "o_proj"].startswith("columns of o_proj are 48")


def test_fused_qkv_of_phi3_is_the_same_as_apart(tmp_path: Path) -> None:
    at = "model.layers.0.self_attn."
    q, k, v, o = matrix(16, 16), matrix(8, 16), matrix(8, 16), matrix(16, 16)
    apart = {f"{at}q_proj.weight": q, f"{at}k_proj.weight": k, f"{at}v_proj.weight": v}
    rest = {"model.embed_tokens.weight": matrix(32, 16), f"{at}o_proj.weight": o}
    fused = {f"{at}qkv_proj.weight": np.concatenate([q, k, v])}
    llama = run({**apart, **rest}, tmp_path / "a", SETTINGS["llama"] | {"model_type": "llama"})
    phi3 = run({**fused, **rest}, tmp_path / "b", SETTINGS["phi3"] | {"model_type": "phi3"})
    for name in ("head", "kv_group", "channel"):
        assert counts(phi3, name) == counts(llama, name)
    assert [t.name for t in phi3.masks[0].tensors][:3] == [
        f"{at}qkv_proj.weight[{part}]" for part in "qkv"
    ]


def test_the_control_of_a_fused_tensor_is_random_too(tmp_path: Path) -> None:
    """It has equally many elements in the tensor, but not in each part: parts of unlike density."""
    rng = np.random.default_rng(3)
    settings = {"hidden_size": 256, "num_attention_heads": 32, "num_key_value_heads": 32}
    densities = (0.3, 0.02, 0.1)
    arrays = {
        f"model.layers.{layer}.self_attn.qkv_proj.weight": np.concatenate(
            [rng.random((256, 256)) < density for density in densities]
        )
        for layer in range(2)
    }
    result = run(arrays, tmp_path, SETTINGS["phi3"] | settings | {"model_type": "phi3"})
    for family in result.masks[0].families:
        assert family.control.overdispersion == pytest.approx(1, abs=0.6)
        assert family.null.overdispersion == pytest.approx(1, abs=0.6)
    for tensor in result.masks[0].tensors:
        assert tensor.rows.control == pytest.approx(1, abs=0.4)


def test_fused_qkv_of_neox_has_heads_one_after_the_other(tmp_path: Path) -> None:
    fused = matrix(48, 16)
    name = "gpt_neox.layers.0.attention.query_key_value.weight"
    result = run({name: fused}, tmp_path, SETTINGS["gpt_neox"] | {"model_type": "gpt_neox"})
    by_head = fused.reshape(4, 3, 4, 16).sum(axis=(2, 3))  # head, part, row, column
    assert counts(result, "head") == {(0, h): by_head[h, 0] for h in range(4)}
    assert counts(result, "kv_group") == {(0, h): by_head[h, 1:].sum() for h in range(4)}


def test_gpt2_stores_inputs_by_outputs(tmp_path: Path) -> None:
    at = "transformer.h.0."
    qkv, o, up, down = matrix(16, 48), matrix(16, 16), matrix(16, 64), matrix(64, 16)
    positions = matrix(32, 16)
    arrays = {
        f"{at}attn.c_attn.weight": qkv,
        f"{at}attn.c_proj.weight": o,
        f"{at}mlp.c_fc.weight": up,
        f"{at}mlp.c_proj.weight": down,
        "transformer.wte.weight": matrix(40, 16),
        "transformer.wpe.weight": positions,
    }
    result = run(arrays, tmp_path, SETTINGS["gpt2"] | {"model_type": "gpt2"})
    heads = qkv[:, :16].reshape(16, 4, 4).sum((0, 2)) + o.reshape(4, 4, 16).sum((1, 2))
    assert counts(result, "head") == {(0, h): heads[h] for h in range(4)}
    neurons = up.sum(0) + down.sum(1)
    assert counts(result, "neuron") == {(0, n): neurons[n] for n in range(64)}
    channels = qkv.sum(1) + o.sum(0) + up.sum(1) + down.sum(0)
    channels += arrays["transformer.wte.weight"].sum(0) + positions.sum(0)
    assert counts(result, "channel") == {(None, c): channels[c] for c in range(16)}
    assert len(counts(result, "token")) == 40, "positions are no vocabulary"
    unknown = run(arrays, None, {})
    assert families(unknown) == ["channel", "token"]
    assert "inputs or outputs" in reasons(unknown)["all", "down_proj"]


def moe(tensors: dict[str, Array], folder: Path) -> Structure:
    return run(tensors, folder, SETTINGS["mixtral"] | {"model_type": "mixtral"})


def test_experts_in_one_tensor_are_the_same_as_apart(tmp_path: Path) -> None:
    at = "model.layers.1.mlp.experts."
    gate, up, down = matrix(3, 24, 16), matrix(3, 24, 16), matrix(3, 16, 24)
    together = moe(
        {f"{at}gate_up_proj": np.concatenate([gate, up], axis=1), f"{at}down_proj": down},
        tmp_path / "a",
    )
    apart = moe(
        {
            f"{at}{expert}.{name}.weight": item[expert]
            for name, item in (("gate_proj", gate), ("up_proj", up), ("down_proj", down))
            for expert in range(3)
        },
        tmp_path / "b",
    )
    expected = {(1, e): gate[e].sum() + up[e].sum() + down[e].sum() for e in range(3)}
    assert counts(together, "expert") == counts(apart, "expert") == expected
    assert counts(together, "channel") == counts(apart, "channel")
    units = [
        {f.name: f.units for f in result.masks[0].families}["expert"]
        for result in (together, apart)
    ]
    for one, other in zip(*units, strict=True):
        assert one.expected == pytest.approx(other.expected)
        assert one.z == pytest.approx(other.z)
    (apart_family,) = [f for f in apart.masks[0].families if f.name == "expert"]
    controls = [u.control_num_selected for u in apart_family.units]
    assert sum(controls) == sum(expected.values())
    assert controls != list(expected.values())
    assert reasons(apart)["neuron", "expert.up_proj"].startswith("neurons of experts")


def test_experts_of_an_unknown_layout_are_not_split(tmp_path: Path) -> None:
    arrays = {"model.layers.0.mlp.experts.gate_up_proj": matrix(3, 48, 16)}
    result = run(arrays, tmp_path, SETTINGS["mixtral"] | {"model_type": "new"})
    assert "not known" in reasons(result)["all", "expert.gate_up_proj"]


def test_elements_are_spread_over_experts_as_chance_would() -> None:
    sizes = np.array([10, 0, 30, 60])
    generator = np.random.default_rng(0)
    draws = np.array([spread_at_random(sizes, 40, generator) for _ in range(4000)])
    assert (draws.sum(axis=1) == 40).all()
    assert (draws <= sizes).all()
    np.testing.assert_allclose(draws.mean(axis=0), 0.4 * sizes, atol=0.15)
    variance = 0.4 * 0.6 * sizes * (100 - sizes) / 99
    np.testing.assert_allclose(draws.var(axis=0), variance, rtol=0.12)
    for num in (0, 100):
        np.testing.assert_array_equal(spread_at_random(sizes, num, generator), sizes * num // 100)


def test_norms_and_biases(tmp_path: Path) -> None:
    residual, inner = matrix(16), matrix(6)
    arrays = {
        "model.embed_tokens.weight": matrix(32, 16),
        "model.layers.0.input_layernorm.weight": residual,
        "model.layers.0.self_attn.q_norm.weight": inner,
        "model.layers.0.self_attn.q_proj.bias": matrix(24),
        "model.layers.0.strange.weight": matrix(5, 5),
    }
    result = run(arrays, tmp_path, SETTINGS["qwen3"] | {"model_type": "qwen3"})
    columns = arrays["model.embed_tokens.weight"].sum(0) + residual
    assert counts(result, "channel") == {(None, c): columns[c] for c in range(16)}
    report = reasons(result)
    assert "inside attention" in report["channel", "norm"]
    assert "biases" in report["all", "bias"]
    assert report["all", "other"].endswith("the kind other")


def test_an_untied_head_is_of_the_same_vocabulary(tmp_path: Path) -> None:
    """Padded by two rows that the embedding lacks."""
    embed, head = matrix(30, 16), matrix(32, 16)
    arrays = {"model.embed_tokens.weight": embed, "lm_head.weight": head}
    result = run(arrays, tmp_path, SETTINGS["llama"] | {"model_type": "llama"})
    rows = head.sum(1)
    rows[:30] += embed.sum(1)
    assert counts(result, "token") == {(None, t): rows[t] for t in range(32)}


def test_a_wrapper_of_a_language_model(tmp_path: Path) -> None:
    """Its text_config says how many heads there are; its vision tower is of no unit."""
    arrays = random_arrays(llama_shapes())
    arrays["vision_tower.layers.0.mlp.up_proj.weight"] = matrix(8, 8)
    result = run(arrays, tmp_path, {"model_type": "wrapper", "text_config": LLAMA})
    assert len(counts(result, "head")) == 12
    assert ("all", "vision") in reasons(result)
