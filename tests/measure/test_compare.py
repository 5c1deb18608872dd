"""`compare` on real files, against torch on the same tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash

import trimtab
from tests.measure.checkpoints import LLAMA, llama_tensors, moved, save, save_sharded
from trimtab.checkpoints import stream
from trimtab.elements import fast
from trimtab.errors import AnalysisError, CheckpointError, CriterionError, TensorMismatchError
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.measure.compare_result import Comparison
from trimtab.results.schema import to_plain


def stable(comparison: Comparison) -> dict[str, Any]:
    """Everything but what may differ between two runs on the same tensors."""
    data = comparison.to_dict()
    for key in ("date", "threads"):
        data["provenance"].pop(key)
    for side in ("base", "tuned"):
        data["provenance"][side].pop("id")
    return data


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    base = llama_tensors()
    return save(tmp_path / "base", base), save(tmp_path / "tuned", moved(base))


def test_counts_equal_torch(pair: tuple[Path, Path]) -> None:
    result = trimtab.compare(*pair, changed="atol=2e-4")
    base = llama_tensors()
    tuned = moved(base)
    assert [tensor.name for tensor in result.tensors] == list(
        dict.fromkeys(tensor.name for tensor in result.tensors)
    )
    assert {tensor.name for tensor in result.tensors} == set(base)
    for tensor in result.tensors:
        b, t = base[tensor.name], tuned[tensor.name]
        update = t.double() - b.double()
        counts = tensor.counts
        assert counts.num_elements == b.numel()
        assert tensor.shape == tuple(b.shape)
        differ = b.view(torch.int16) != t.view(torch.int16)
        assert counts.num_changed["bits"] == differ.sum()
        assert counts.num_changed["value"] == (b != t).sum()
        for criterion in (0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4):
            assert counts.num_changed[f"atol={criterion:g}"] == (update.abs() > criterion).sum()
        assert counts.num_changed["atol=0.0002"] == (update.abs() > 2e-4).sum()
        bound = 1e-3 * torch.maximum(b.double().abs(), t.double().abs())
        assert counts.num_changed["rel=0.001"] == (update.abs() > bound).sum()
        assert counts.update_l2 == pytest.approx(update.norm().item(), rel=1e-12)
        assert counts.update_max_abs == update.abs().max().item()
        assert (tensor.rows.num, tensor.columns.num) == (b.numel() // b.shape[-1], b.shape[-1])
        rows = differ.reshape(-1, b.shape[-1])
        assert tensor.rows.num_touched == rows.any(dim=1).sum()
        assert tensor.columns.max_changed == rows.sum(dim=0).max()
        raw = b.view(torch.int16).numpy().tobytes()
        assert tensor.base_hash == xxhash.xxh3_128_hexdigest(raw)
    assert result.criterion == "atol=0.0002"
    assert result.coverage.is_complete
    assert result.total.num_elements == sum(b.numel() for b in base.values())


def test_the_published_measure(pair: tuple[Path, Path]) -> None:
    """Sparsity at 1e-5 as arXiv 2505.11711 sec. 2.2 defines it, over all elements at once."""
    base = llama_tensors()
    tuned = moved(base)
    delta = torch.cat([(tuned[n].float() - base[n].float()).flatten() for n in base])
    published = torch.isclose(delta, torch.zeros_like(delta), atol=1e-5, rtol=0).double().mean()
    result = trimtab.compare(*pair, changed="atol=1e-5")
    assert result.sparsity == pytest.approx(published.item(), rel=1e-12)


def test_profiles_are_the_counts_of_rows_and_columns(pair: tuple[Path, Path]) -> None:
    result = trimtab.compare(*pair, profiles=True)
    base = llama_tensors()
    tuned = moved(base)
    for tensor in result.tensors:
        differ = (base[tensor.name] != tuned[tensor.name]).reshape(-1, tensor.shape[-1]).numpy()
        assert tensor.rows.changed is not None
        assert tensor.columns.changed is not None
        np.testing.assert_array_equal(tensor.rows.changed, differ.sum(axis=1))
        np.testing.assert_array_equal(tensor.columns.changed, differ.sum(axis=0))
    again = Comparison.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.to_dict() == result.to_dict()


def test_roll_ups_are_sums(pair: tuple[Path, Path]) -> None:
    result = trimtab.compare(*pair)
    data = result.to_dict()
    for groups in (data["by_layer"].values(), data["by_kind"].values(), data["by_layer_kind"]):
        for key in data["total"]["num_changed"]:
            total = sum(group["num_changed"][key] for group in groups)
            assert total == data["total"]["num_changed"][key]
    assert list(data["by_layer"]) == ["0", "1", "outside"]
    assert set(data["by_kind"]) == {"embed", "norm", "q_proj", "k_proj", "up_proj", "down_proj"}
    norms = [t.counts.sparsity("bits") for t in result.tensors if t.kind == "norm"]
    mean = data["by_kind"]["norm"]["unweighted_mean_sparsity"]["bits"]
    assert mean == pytest.approx(np.mean([value for value in norms if value is not None]))


def test_sharded_equals_unsharded(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    base = llama_tensors()
    shards = save_sharded(tmp_path / "b3", base, 3), save_sharded(tmp_path / "t2", moved(base), 2)
    whole, sharded = trimtab.compare(*pair), trimtab.compare(*shards)
    by_name = {tensor.name: to_plain(tensor) for tensor in whole.tensors}
    assert {tensor.name: to_plain(tensor) for tensor in sharded.tensors} == by_name
    assert sharded.base.content_hash == whole.base.content_hash
    assert sharded.tuned.content_hash == whole.tuned.content_hash


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_chunks_make_no_difference(
    chunk: int, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stable(trimtab.compare(*pair))
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk)
    pieces = stable(trimtab.compare(*pair))
    for groups in ("tensors", "by_layer_kind"):
        for one, other in zip(whole.pop(groups), pieces.pop(groups), strict=True):
            assert _without_sums(one) == _without_sums(other)
    assert whole["provenance"] == pieces["provenance"]


def _without_sums(row: dict[str, Any]) -> dict[str, Any]:
    update = row.pop("update")
    return {**row, "max_abs": update["max_abs"], "l2": pytest.approx(update["l2"], rel=1e-12)}


def test_threads_and_kernels_make_no_difference(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = stable(trimtab.compare(*pair, threads=1))
    assert stable(trimtab.compare(*pair, threads=3)) == one
    monkeypatch.setattr(fast, "COMPILED_FROM", 0)
    compiled = stable(trimtab.compare(*pair, threads=2))
    for left, right in zip(one.pop("tensors"), compiled.pop("tensors"), strict=True):
        assert _without_sums(left) == _without_sums(right)


def test_a_checkpoint_against_itself(pair: tuple[Path, Path]) -> None:
    result = trimtab.compare(pair[0], pair[0])
    assert result.sparsity == 1.0
    assert set(result.total.num_changed.values()) == {0}
    assert result.base.content_hash == result.tuned.content_hash


def test_missing_and_extra_are_counted(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    gone = base["model.layers.1.mlp.up_proj.weight"]
    tuned["model.layers.1.mlp.new.weight"] = tuned.pop("model.layers.1.mlp.up_proj.weight")
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned))
    coverage = result.coverage
    assert [row["name"] for row in coverage.missing] == ["model.layers.1.mlp.up_proj.weight"]
    assert [row["name"] for row in coverage.extra] == ["model.layers.1.mlp.new.weight"]
    assert coverage.missing[0]["num_elements"] == gone.numel()
    raw = gone.view(torch.int16).numpy().tobytes()
    assert coverage.missing[0]["hash"] == xxhash.xxh3_128_hexdigest(raw)
    assert coverage.num_compared == coverage.num_base - gone.numel()
    assert not coverage.is_complete


@pytest.mark.parametrize(
    ("name", "are_tokens"),
    [
        ("model.embed_tokens.weight", True),
        ("base_model.model.lm_head.modules_to_save.default.weight", True),
        ("transformer.wte.weight", True),
        ("gpt_neox.embed_in.weight", True),
        ("shared.weight", True),
        ("model.layers.61.shared_head.head.weight", True),
        ("transformer.wpe.weight", False),
        ("vision_tower.embeddings.position_embedding.weight", False),
        ("model.vision_tower.embed_tokens.weight", False),
        ("visual.patch_embed.proj.weight", False),
        ("model.embedding_hidden_mapping_in.weight", False),
        ("model.layers.0.mlp.shared_embed.weight", False),
        ("model.embed_positions.weight", False),
        ("embeddings.token_type_embeddings.weight", False),
        ("lm_head_projection.weight", False),
    ],
)
def test_rows_are_compared_one_by_one_only_where_they_are_tokens(
    tmp_path: Path, name: str, are_tokens: bool
) -> None:
    """Of two sizes, the first rows of which are the same."""
    rows = torch.randn(9, 4)
    norm = {"model.norm.weight": torch.ones(4)}
    base = save(tmp_path / "base", {name: rows[:7].clone(), **norm})
    result = trimtab.compare(base, save(tmp_path / "tuned", {name: rows, **norm}))
    (row,) = result.coverage.shape_mismatch
    assert (row["name"], row["num_compared"]) == (name, 28 if are_tokens else 0)
    assert not result.coverage.is_complete


def test_a_resized_vocabulary_compares_the_common_rows(tmp_path: Path) -> None:
    base = llama_tensors(vocab=40)
    tuned = moved(base)
    extra = torch.ones(8, 32, dtype=torch.bfloat16)
    tuned["model.embed_tokens.weight"] = torch.cat([tuned["model.embed_tokens.weight"], extra])
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned))
    (row,) = result.coverage.shape_mismatch
    assert (row["num_compared"], row["num_uncompared_base"], row["num_uncompared_tuned"]) == (
        40 * 32,
        0,
        8 * 32,
    )
    embed = next(tensor for tensor in result.tensors if tensor.kind == "embed")
    assert embed.shape == (40, 32)
    common = tuned["model.embed_tokens.weight"][:40]
    expected = (base["model.embed_tokens.weight"] != common).sum()
    assert embed.counts.num_changed["bits"] == expected
    raw = tuned["model.embed_tokens.weight"].view(torch.int16).numpy().tobytes()
    assert embed.tuned_hash == xxhash.xxh3_128_hexdigest(raw)


def test_another_shape_mismatch_is_listed_not_compared(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    name = "model.layers.0.self_attn.k_proj.weight"
    tuned[name] = tuned[name][:8].contiguous()
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned))
    (row,) = result.coverage.shape_mismatch
    assert row["name"] == name
    assert row["num_compared"] == 0
    assert name not in {tensor.name for tensor in result.tensors}
    assert result.coverage.num_base - result.coverage.num_compared == base[name].numel()


@pytest.mark.parametrize("stored", [(True, True), (True, False), (False, True)])
def test_a_stored_copy_of_tied_embeddings_counts_once(
    stored: tuple[bool, bool], tmp_path: Path
) -> None:
    base = llama_tensors()
    tuned = moved(base)
    num_elements = sum(tensor.numel() for tensor in base.values())
    for has_copy, tensors in zip(stored, (base, tuned), strict=True):
        if has_copy:
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned), lr=1e-5)
    assert result.total.num_elements == num_elements
    assert result.analyses["precision"]["total"]["num_elements"] == num_elements
    assert result.coverage.is_complete
    (row,) = result.coverage.tied
    assert (row["name"], row["tied_to"]) == ("lm_head.weight", "model.embed_tokens.weight")


def test_embeddings_that_came_untied_are_compared(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    tuned["lm_head.weight"] = moved(base, seed=5)["model.embed_tokens.weight"]
    result = trimtab.compare(
        save(tmp_path / "b", base),
        save(tmp_path / "t", tuned, {**LLAMA, "tie_word_embeddings": False}),
    )
    head = next(tensor for tensor in result.tensors if tensor.kind == "lm_head")
    expected = (base["model.embed_tokens.weight"] != tuned["lm_head.weight"]).sum()
    assert head.counts.num_changed["bits"] == expected
    assert result.coverage.tied == ()
    assert not result.coverage.missing
    assert not result.coverage.extra


def test_wrapper_prefixes_are_matched_and_said(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = {name.removeprefix("model."): t for name, t in moved(base).items()}
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned))
    assert result.coverage.is_complete
    assert {"base": "model.norm.weight", "tuned": "norm.weight"} in result.coverage.renamed


def test_different_dtypes_are_refused_until_a_cast_is_asked_for(tmp_path: Path) -> None:
    base = llama_tensors(dtype=torch.float32)
    tuned = {name: tensor.bfloat16() for name, tensor in moved(base).items()}
    folders = save(tmp_path / "b", base), save(tmp_path / "t", tuned)
    with pytest.raises(
        TensorMismatchError, match=r"12 tensors .* is F32 in base and BF16 in tuned"
    ):
        trimtab.compare(*folders)
    result = trimtab.compare(*folders, cast="bf16")
    assert result.conversion is not None
    assert "rounded to BF16" in result.conversion
    for tensor in result.tensors:
        assert (tensor.base_dtype, tensor.tuned_dtype, tensor.dtype) == ("F32", "BF16", "BF16")
        expected = (base[tensor.name].bfloat16() != tuned[tensor.name]).sum()
        assert tensor.counts.num_changed["bits"] == expected


def test_fp8_blocks_as_stored_and_dequantised(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
    }
    name = "model.layers.0.mlp.up_proj.weight"
    weight = torch.randn(40, 50, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 4, generator=generator)
    other_scale = scale * torch.where(torch.arange(4) == 1, 2.0, 1.0)
    base = save(tmp_path / "b", {name: weight, f"{name}_scale_inv": scale}, config)
    tuned = save(tmp_path / "t", {name: weight, f"{name}_scale_inv": other_scale}, config)

    stored = trimtab.compare(base, tuned)
    assert stored.conversion is not None
    assert "as stored" in stored.conversion
    changed = {tensor.kind: tensor.counts.num_changed["bits"] for tensor in stored.tensors}
    assert changed == {"up_proj": 0, "scale": 3}

    real = trimtab.compare(base, tuned, dequantize=True)
    (tensor,) = real.tensors
    assert tensor.dtype == "F32"
    values = [
        weight.float() * s.repeat_interleave(16, 0).repeat_interleave(16, 1)[:40, :50]
        for s in (scale, other_scale)
    ]
    assert tensor.counts.num_changed["bits"] == (values[0] != values[1]).sum()
    assert [row["name"] for row in real.coverage.folded] == [f"{name}_scale_inv"] * 2
    assert real.base.content_hash == stored.base.content_hash
    with pytest.raises(CheckpointError, match="mean nothing without their scales"):
        trimtab.compare(base, tuned, cast="bf16")
    with pytest.raises(AnalysisError, match="are quantised, and training recomputes their scales"):
        trimtab.compare(base, tuned, lr=1e-6)


def test_fused_parts_are_counted_apart(tmp_path: Path) -> None:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 1,
    }
    name = "transformer.h.0.attn.c_attn.weight"
    base = torch.zeros(16, 48, dtype=torch.bfloat16)
    tuned = base.clone()
    tuned[:, 16:32] = 1
    tuned[3, 40] = 1
    folders = [
        save(tmp_path / side, {name: t, "transformer.ln_f.weight": torch.ones(16)}, config)
        for side, t in (("b", base), ("t", tuned))
    ]
    parts = {t.kind: t for t in trimtab.compare(*folders).tensors}
    assert parts["q_proj"].counts.num_changed["bits"] == 0
    assert parts["k_proj"].counts.num_changed["bits"] == 16 * 16
    assert parts["v_proj"].counts.num_changed["bits"] == 1
    assert parts["k_proj"].name == f"{name}[k]"
    assert parts["v_proj"].shape == (16, 16)
    assert parts["v_proj"].rows.num_touched == 1


def test_the_pieces_of_a_fused_bias_are_one_part(tmp_path: Path) -> None:
    """GPT-NeoX keeps query, key and value of a head together, head after head."""
    config = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": 12,
        "num_attention_heads": 3,
    }
    at = "gpt_neox.layers.0.attention.query_key_value"
    base = {f"{at}.weight": torch.zeros(36, 12), f"{at}.bias": torch.zeros(36)}
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned[f"{at}.bias"].reshape(3, 3, 4)[:, 1] = 1
    tuned[f"{at}.weight"].reshape(3, 3, 4, 12)[1, 2] = 1
    result = trimtab.compare(
        save(tmp_path / "b", base, config),
        save(tmp_path / "t", tuned, config),
        profiles=True,
        rank=True,
    )
    parts = {tensor.name: tensor for tensor in result.tensors}
    shapes = {name: parts[f"{at}.{name}"].shape for name in ("bias[k]", "weight[v]")}
    assert shapes == {"bias[k]": (12,), "weight[v]": (12, 12)}
    changed = {name: tensor.counts.num_changed["bits"] for name, tensor in parts.items()}
    assert changed == {
        f"{at}.weight[q]": 0,
        f"{at}.weight[k]": 0,
        f"{at}.weight[v]": 48,
        f"{at}.bias[q]": 0,
        f"{at}.bias[k]": 12,
        f"{at}.bias[v]": 0,
    }
    rows = parts[f"{at}.weight[v]"].rows.changed
    assert rows is not None
    assert rows.tolist() == [0] * 4 + [12] * 4 + [0] * 4
    assert result.analyses["rank"]["by_tensor"][f"{at}.weight[v]"]["shape"] == [12, 12]


def test_a_head_tied_by_default_counts_once(tmp_path: Path) -> None:
    config = {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
    base = llama_tensors()
    base["lm_head.weight"] = base["model.embed_tokens.weight"].clone()
    tuned = moved({name: t for name, t in base.items() if name != "lm_head.weight"})
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"].clone()
    result = trimtab.compare(
        save(tmp_path / "b", base, config), save(tmp_path / "t", tuned, config)
    )
    assert [row["name"] for row in result.coverage.tied] == ["lm_head.weight"]
    assert "lm_head" not in result.by_kind()


def test_odd_tensors(tmp_path: Path) -> None:
    """Scalars, empty tensors and integers are compared like the rest."""
    base = {
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False]),
        "positions": torch.arange(6).reshape(1, 2, 3),
    }
    tuned = {**base, "scalar": torch.tensor(2.5), "flags": torch.tensor([True, True])}
    result = trimtab.compare(
        save(tmp_path / "b", base, None), save(tmp_path / "t", tuned, None), profiles=True
    )
    changed = {tensor.name: tensor.counts.num_changed["bits"] for tensor in result.tensors}
    assert changed == {"scalar": 1, "empty": 0, "flags": 1, "positions": 0}
    assert result.total.num_elements == 9


def test_nan_filled_tensors_are_counted(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = {name: torch.full_like(tensor, torch.nan) for name, tensor in base.items()}
    result = trimtab.compare(save(tmp_path / "b", base), save(tmp_path / "t", tuned))
    assert result.total.num_nan == result.total.num_elements == result.total.num_changed["value"]
    json.dumps(result.to_dict(), allow_nan=False)


def test_nothing_in_common(tmp_path: Path) -> None:
    base = save(tmp_path / "b", llama_tensors())
    tuned = save(tmp_path / "t", {"other": torch.ones(3)}, None)
    with pytest.raises(TensorMismatchError, match=r"no tensor in common.*other"):
        trimtab.compare(base, tuned)


def test_bad_settings(pair: tuple[Path, Path]) -> None:
    with pytest.raises(CriterionError, match="unknown criterion 'exact'"):
        trimtab.compare(*pair, changed="exact")
    with pytest.raises(CheckpointError, match="cannot cast to 'int8'"):
        trimtab.compare(*pair, cast="int8")


def test_precision_beside_the_measurement(pair: tuple[Path, Path]) -> None:
    result = trimtab.compare(*pair, lr=1e-5, steps=10)
    section = result.to_dict()["precision"]
    assert section["total"]["num_elements"] == result.total.num_elements
    assert set(section["by_kind"]) == set(result.by_kind())
    weights = torch.cat([t.float().flatten() for t in llama_tensors().values()])
    up = (weights + 1e-5).bfloat16() != weights.bfloat16()
    down = (weights - 1e-5).bfloat16() != weights.bfloat16()
    # Both rounded once: fp32 holds w ± lr closely enough for these weights.
    assert section["total"]["one_step"] == pytest.approx((up | down).sum().item(), rel=0.01)


def test_rank_and_geometry_name_every_matrix(pair: tuple[Path, Path]) -> None:
    data = trimtab.compare(*pair, rank=True, geometry=True).to_dict()
    matrices = {t["name"] for t in data["tensors"] if len(t["shape"]) == 2}
    assert set(data["rank"]["by_tensor"]) == matrices
    assert set(data["geometry"]["by_tensor"]) == matrices
    assert {row["name"] for row in data["rank"]["skipped"]} == {
        t["name"] for t in data["tensors"] if len(t["shape"]) == 1
    }
    base = llama_tensors()
    tuned = moved(base)
    for name in matrices:
        update = tuned[name].float() - base[name].float()
        expected = torch.linalg.matrix_rank(update).item()
        assert data["rank"]["by_tensor"][name]["update"]["matrix_rank"]["value"] == expected


def test_progress_counts_the_work_of_matrices(pair: tuple[Path, Path]) -> None:
    """A bar of bytes alone showed 13:48 left of what took 1:52."""
    data: list[tuple[int, int]] = []
    trimtab.compare(*pair, threads=1, progress=lambda *now: data.append(now))
    bytes_alone = data[-1][1]
    data.clear()
    trimtab.compare(*pair, threads=1, rank=True, progress=lambda *now: data.append(now))
    total = data[-1][1]
    assert {one for _, one in data} == {total}
    assert sum(num for num, _ in data) == total > 2 * bytes_alone
    second_pass = [num for num, _ in data][-len(data) // 2 :]
    assert max(second_pass) > 10 * min(second_pass)  # a matrix, and a norm


def test_progress_reaches_the_end_and_an_error_in_it_stops_the_run(pair: tuple[Path, Path]) -> None:
    seen: list[int] = []
    totals: set[int] = set()

    def watch(num_bytes: int, total: int) -> None:
        seen.append(num_bytes)
        totals.add(total)

    result = trimtab.compare(*pair, progress=watch)
    assert totals == {2 * 2 * result.total.num_elements}
    assert sum(seen) == totals.pop()

    def interrupt(num_bytes: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trimtab.compare(*pair, progress=interrupt)


def test_a_file_cut_short_while_it_is_read(pair: tuple[Path, Path]) -> None:
    with trimtab.open_checkpoint(pair[0]) as base, trimtab.open_checkpoint(pair[1]) as tuned:
        weights = pair[1] / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            trimtab.compare(base, tuned)


VISION = {
    "model.embed_tokens.weight": torch.ones(10, 8),
    "model.layers.0.self_attn.q_proj.weight": torch.ones(8, 8),
    "model.norm.weight": torch.ones(8),
    "visual.blocks.0.attn.qkv.weight": torch.ones(24, 8),
    "lm_head.weight": torch.ones(10, 8),
}


def new_layout(name: str) -> str:
    """The name since transformers 4.52."""
    return f"model.{name}" if "visual" in name else name.replace("model.", "model.language_model.")


def llava_layout(name: str) -> str:
    """The name in checkpoints that keep the language model as a whole."""
    return (
        f"language_model.{name}" if "visual" not in name else name.replace("visual", "vision_tower")
    )


@pytest.mark.parametrize("rename", [new_layout, llava_layout])
def test_layouts_of_a_vision_language_model(tmp_path: Path, rename: Callable[[str], str]) -> None:
    base = save(tmp_path / "base", VISION, {})
    tuned = save(tmp_path / "tuned", {rename(n): t + 1 for n, t in VISION.items()}, {})
    result = trimtab.compare(base, tuned)
    assert result.coverage.is_complete
    assert result.total.num_elements == sum(t.numel() for t in VISION.values())
    assert result.sparsity == 0.0


@pytest.mark.parametrize("turn", [1, -1])
def test_a_tied_tensor_that_is_stored_under_its_other_name(tmp_path: Path, turn: int) -> None:
    """`safetensors.torch.save_model` keeps the name that sorts first."""
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    layer = {"model.layers.0.self_attn.q_proj.weight": torch.ones(8, 8)}
    embed = torch.arange(80.0).reshape(10, 8)
    moved = embed.clone()
    moved[:2] += 1
    folders = [
        save(tmp_path / "base", {"model.embed_tokens.weight": embed, **layer}, config),
        save(tmp_path / "tuned", {"lm_head.weight": moved, **layer}, config),
    ][::turn]
    result = trimtab.compare(*folders)
    assert result.coverage.is_complete
    assert (result.total.num_elements, result.total.num_changed["bits"]) == (144, 16)
    assert len(result.coverage.tied) == 1


@pytest.mark.parametrize("verb", ["compare", "rank", "trajectory", "extract", "identity"])
def test_a_file_overwritten_while_it_is_read_is_noticed(tmp_path: Path, verb: str) -> None:
    """In place, with as many bytes: half of what is counted would be of another model."""
    base = save(tmp_path / "base", llama_tensors())
    tuned = save(tmp_path / "tuned", moved(llama_tensors()))
    none = extract_mask(base, base)
    path = tuned / "model.safetensors"
    new = (save(tmp_path / "new", moved(llama_tensors(), seed=7)) / path.name).read_bytes()

    def overwrite(*_: int) -> None:
        with path.open("r+b") as file:
            file.write(new)
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock's resolution

    run: dict[str, Callable[[], object]] = {
        "compare": lambda: trimtab.compare(base, tuned, threads=1, progress=overwrite),
        "rank": lambda: trimtab.compare(base, tuned, rank=True, threads=1, progress=late),
        "trajectory": lambda: trimtab.trajectory(base, tuned, threads=1, progress=overwrite),
        "extract": lambda: extract_mask(base, tuned, threads=1, progress=overwrite),
        "identity": lambda: identity(base, base, tuned, none, threads=1, progress=overwrite),
    }
    read = 0

    def late(num_bytes: int, total: int) -> None:
        """In the second pass."""
        nonlocal read
        read += num_bytes
        if read > total / 2:
            overwrite()

    with pytest.raises(CheckpointError, match=f"{path}: the file changed while it was being read"):
        run[verb]()
