"""Opening checkpoints: sharded equals unsharded, and every bad one is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import CheckpointError, CheckpointNotFoundError

ARRAYS = {
    "model.embed_tokens.weight": random_bits((6, 4), 1),
    "model.layers.0.self_attn.q_proj.weight": random_bits((4, 4), 2),
    "model.norm.weight": random_bits((4,), 3),
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def write_shards(folder: Path, *shards: dict[str, NDArray[Any]]) -> dict[str, str]:
    """Write two shards and their index; returns its weight map."""
    weight_map: dict[str, str] = {}
    for file_name, arrays in zip(SHARDS, shards, strict=True):
        (folder / file_name).write_bytes(tensors_bytes(arrays))
        weight_map |= dict.fromkeys(arrays, file_name)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    names = list(ARRAYS)
    write_shards(
        tmp_path,
        {name: ARRAYS[name] for name in names[:2]},
        {name: ARRAYS[name] for name in names[2:]},
    )
    return tmp_path


def error_of(ref: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(ref)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_folder_file_and_shards_hold_the_same(sharded: Path, tmp_path_factory: Any) -> None:
    whole = tmp_path_factory.mktemp("whole")
    (whole / "model.safetensors").write_bytes(tensors_bytes(ARRAYS))
    for ref in (sharded, str(whole), whole / "model.safetensors"):
        with open_checkpoint(ref) as checkpoint:
            assert (checkpoint.id, checkpoint.revision) == (str(ref), None)
            assert list(checkpoint.tensors) == list(ARRAYS)
            for name, tensor in checkpoint.tensors.items():
                np.testing.assert_array_equal(tensor.read(), ARRAYS[name])


def test_config_and_architecture_come_from_the_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors_bytes(ARRAYS))
    with open_checkpoint(tmp_path) as checkpoint:
        assert (dict(checkpoint.config), checkpoint.architecture) == ({}, None)
        assert not checkpoint.tied
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for ref in (tmp_path, tmp_path / "model.safetensors"):
        with open_checkpoint(ref) as checkpoint:
            assert dict(checkpoint.config) == config
            assert checkpoint.architecture == "LlamaForCausalLM"
            assert dict(checkpoint.tied) == {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.mark.parametrize("architectures", [None, [], "Llama", [3], {}, 1])
def test_an_odd_architecture_is_no_reason_to_fail(tmp_path: Path, architectures: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors_bytes(ARRAYS))
    config = {"architectures": architectures, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.architecture == ("3" if architectures == [3] else None)


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    size = 2**40  # a sparse file of 1 TiB opens at once
    header = {"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    raw = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    try:
        with path.open("r+b") as file:
            file.truncate(8 + len(raw) + size)
    except OSError:
        pytest.skip("this file system keeps no sparse file of 1 TiB")
    with open_checkpoint(tmp_path) as checkpoint:
        out = np.ones(10, dtype=np.uint8)
        checkpoint.tensors["w"].read_into(size - 10, out)
        assert not out.any()


@pytest.mark.train
@pytest.mark.parametrize("max_shard_size", ["5GB", "3kB"])
def test_shards_of_transformers(tmp_path: Path, max_shard_size: str) -> None:
    pytest.importorskip("transformers")
    from tests.checkpoints.models import build_model

    model = build_model("llama")
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "3kB")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            bits = checkpoint.tensors[name].read()
            np.testing.assert_array_equal(bits.view(np.float32), tensor.numpy())


@pytest.mark.train
def test_shards_of_torch_save(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    names = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
    for n, name in enumerate(names):
        torch.save({f"w{n}": torch.full((3,), n, dtype=torch.int32)}, tmp_path / name)
    index = {"weight_map": {"w0": names[0], "w1": names[1]}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with open_checkpoint(tmp_path) as checkpoint:
        found = {name: tensor.read().tolist() for name, tensor in checkpoint.tensors.items()}
    assert found == {"w0": [0, 0, 0], "w1": [1, 1, 1]}


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    assert error_of(sharded) == f"{sharded / SHARDS[1]}: the shard is missing"


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    weight_map = dict.fromkeys(ARRAYS, SHARDS[0]) | {"new": SHARDS[1]}
    write_index(sharded, weight_map)
    assert error_of(sharded) == (
        f"{sharded / SHARDS[0]}: lacks model.norm.weight, which the index says it holds; "
        f"{sharded / SHARDS[1]}: lacks new, which the index says it holds"
    )


def test_a_tensor_in_two_shards_is_named(tmp_path: Path) -> None:
    write_shards(tmp_path, ARRAYS, {"model.norm.weight": random_bits((4,))})
    assert error_of(tmp_path).endswith(": holds model.norm.weight, which another shard holds too")


def test_a_tensor_that_the_index_forgot_is_there(sharded: Path) -> None:
    write_index(
        sharded, dict.fromkeys(list(ARRAYS)[:1], SHARDS[0]) | {"model.norm.weight": SHARDS[1]}
    )
    with open_checkpoint(sharded) as checkpoint:
        assert list(checkpoint.tensors) == list(ARRAYS)


def test_problems_of_all_shards_are_told_at_once(sharded: Path) -> None:
    for shard in SHARDS:
        (sharded / shard).write_bytes((sharded / shard).read_bytes()[:-1])
    message = error_of(sharded)
    assert all(
        f"{shard}: not a valid safetensors file: its tensors take" in message for shard in SHARDS
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.safetensors", b"", "not a valid safetensors file: it has 0 bytes"),
        (
            "m.safetensors",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
            "a git-LFS pointer instead of the weights: run `git lfs pull`",
        ),
        ("m.bin", b"version https://git-lfs.github.com/spec/v1\n", "a git-LFS pointer"),
        ("m.gguf", b"GGUF\x03\0\0\0", "GGUF weights are quantised"),
        ("m.bin", b"GGUF\x03\0\0\0", "GGUF weights are quantised"),
        ("m.txt", b"hello", "expected a file ending in .safetensors or .bin"),
        ("m.safetensors", tensors_bytes(ARRAYS)[:-7], "the file is truncated"),
    ],
)
def test_a_file_that_is_no_checkpoint(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = error_of(tmp_path / name)
    assert message.startswith(f"{tmp_path / name}: ")
    assert expected in message


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    assert "expected a file, found a folder" in error_of(tmp_path)


@pytest.mark.parametrize(
    "ref",
    ["/no/such/folder", "no/such/folder/here", "./nothing", "org/model.safetensors", Path("a/b")],
)
def test_what_is_neither_a_path_nor_a_hub_id(ref: str | Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r": no such file or folder$"):
        open_checkpoint(ref)


def test_a_path_that_the_system_refuses() -> None:
    assert "File name too long" in error_of("x" * 5000)


def test_an_unreadable_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(tensors_bytes(ARRAYS))
    (tmp_path / "config.json").write_text("{")
    assert "config.json: not JSON" in error_of(tmp_path)


def test_reading_after_close_is_an_error(sharded: Path) -> None:
    with open_checkpoint(sharded) as checkpoint:
        pass
    with pytest.raises(ValueError, match="the checkpoint is closed"):
        checkpoint.tensors["model.norm.weight"].read()
