"""Which files of a folder are its weights, and the sentence when there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.checkpoints.folder import find_weights, read_config
from trimtab.errors import CheckpointError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"{}")


def write_index(folder: Path, index: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_safetensors_come_before_bin_and_one_file_before_shards(tmp_path: Path) -> None:
    order = ["pytorch_model.bin.index.json", "pytorch_model.bin", "model.safetensors.index.json"]
    for name in order:
        (tmp_path / name).write_text(json.dumps({"weight_map": {"w": f"shard of {name}"}}))
        (path,) = find_weights(tmp_path).paths
        assert path == tmp_path / (f"shard of {name}" if name.endswith("json") else name)
    touch(tmp_path, "model.safetensors", "consolidated.safetensors")
    assert find_weights(tmp_path).paths == (tmp_path / "model.safetensors",)
    assert not find_weights(tmp_path).shard_of


def test_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    shards = [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    shard_of = {"lm_head.weight": shards[2], "embed.weight": shards[0], "x": shards[1]}
    write_index(tmp_path, {"metadata": {"total_size": 1}, "weight_map": shard_of})
    weights = find_weights(tmp_path)
    assert [path.name for path in weights.paths] == shards
    assert weights.shard_of == shard_of


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not JSON"),
        (b"[]", "expected a JSON object, found a list"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": ["a"]}', "has no weight_map"),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as caught:
        find_weights(tmp_path)
    assert "model.safetensors.index.json: " in str(caught.value)


@pytest.mark.parametrize("shard", ["../x", "/etc/passwd", "a/b", "a\\b", "C:x", "..", "", "a\0b"])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, shard: str) -> None:
    write_index(tmp_path, {"weight_map": {"w": shard}})
    with pytest.raises(CheckpointError, match="names shards outside its folder: '"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "the folder is empty"),
        (["notes.txt"], "looked for model.safetensors, pytorch_model.bin, .*; found notes.txt$"),
        (["config.json", "tokenizer.json"], "not a checkpoint: looked for .*; found config.json,"),
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter, .* merge it"),
        (["config.json", "q4.gguf"], "q4.gguf: GGUF weights are quantised"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match=expected) as caught:
        find_weights(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_many_other_files_are_not_all_listed(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{n}.txt" for n in range(9)))
    with pytest.raises(CheckpointError, match=r"found 0\.txt, .*, 4\.txt, and 4 more$"):
        find_weights(tmp_path)


def test_a_config_is_read_if_there_is_one(tmp_path: Path) -> None:
    assert read_config(tmp_path) == {}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert read_config(tmp_path) == {"model_type": "llama"}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: expected a JSON object"):
        read_config(tmp_path)
