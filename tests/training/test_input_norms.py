"""Input norms against a forward pass by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import tiny
from tests.training.evaluation.conftest import CHARACTERS
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import SettingsError
from trimtab.masks.pruning import matrices_of, prune
from trimtab.training import runtime
from trimtab.training.evaluation.answering import load_model, load_tokenizer
from trimtab.training.input_norms import measure_input_norms

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that reads English."""
    runtime.start()
    folder = tmp_path_factory.mktemp("reader") / "base"
    tiny.make_base(folder, CHARACTERS)
    return folder


PASSAGES = ("A first passage.", "And a second, which is longer.")


def hidden_by_hand(folder: Path, at: str) -> torch.Tensor:
    """Inputs of a matrix of the first layer, for all tokens of the passages."""
    model: Any = load_model(folder, "bf16", torch.device("cpu"))
    tokenizer = load_tokenizer(folder)
    layer = model.model.layers[0]
    rows = []
    with torch.no_grad():
        for passage in PASSAGES:
            ids = torch.tensor([tokenizer(passage)["input_ids"]])
            embedded = model.model.embed_tokens(ids)
            normed = layer.input_layernorm(embedded)
            if at == "down_proj":
                rotary = model.model.rotary_emb(embedded, torch.arange(ids.shape[1])[None])
                mixed = embedded + layer.self_attn(normed, rotary, None)[0]
                mlp, normed = layer.mlp, layer.post_attention_layernorm(mixed)
                normed = mlp.act_fn(mlp.gate_proj(normed)) * mlp.up_proj(normed)
            rows.append(normed[0])
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("at", "name"),
    [
        ("q_proj", "self_attn.q_proj"),
        ("q_proj", "self_attn.v_proj"),
        ("down_proj", "mlp.down_proj"),
    ],
)
def test_norms_over_all_tokens(reader: Path, tmp_path: Path, at: str, name: str) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(PASSAGES))
    norms = measure_input_norms(reader, text=text)
    expected = hidden_by_hand(reader, at).double().norm(dim=0)
    found = norms.vectors[f"model.layers.0.{name}.weight"]
    assert found.dtype == np.float32
    assert found == pytest.approx(expected.float().numpy(), rel=2e-2)
    read = norms.provenance["read"]
    assert (read["num_passages"], read["num_tokens"]) == (2, sum(map(len, PASSAGES)))
    assert norms.provenance["base"]["id"] == str(reader)


def test_they_are_those_that_pruning_needs(reader: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": passage}) for passage in PASSAGES))
    norms = measure_input_norms(reader, prompts=prompts)
    norms.save(tmp_path / "norms.safetensors")
    with open_checkpoint(reader) as base:
        matrices = matrices_of(base)
        norms.check(base, matrices)
        assert {matrix.name for matrix in matrices} == norms.vectors.keys()
    done = prune(reader, tmp_path / "out", sparsity=0.25, method="wanda", norms=norms)
    for zeros in done.pruned.values():
        assert zeros.num_after == pytest.approx(0.25 * zeros.num_elements, rel=0.02)
    assert done.norms is not None
    assert done.norms["read"]["source"] == str(prompts)


def test_text_and_prompts_say_the_same(reader: Path, tmp_path: Path) -> None:
    text, prompts = tmp_path / "text.txt", tmp_path / "prompts.jsonl"
    text.write_text("\n\n".join(PASSAGES))
    prompts.write_text("\n".join(json.dumps({"prompt": passage}) for passage in PASSAGES))
    first, second = (
        measure_input_norms(reader, **{name: path})  # type: ignore[arg-type]
        for name, path in (("text", text), ("prompts", prompts))
    )
    for name, vector in first.vectors.items():
        assert np.array_equal(vector, second.vectors[name])


def test_no_prompts(reader: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file"):
        measure_input_norms(reader, prompts=tmp_path / "none.jsonl")
