"""Which files of a folder are its weights, and the sentence when there are none."""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trimtab
from tests.checkpoints.models import build_model
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.folder import find_weights, read_config
from trimtab.checkpoints.tensors import FilePool
from trimtab.errors import CheckpointError, CheckpointWarning


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


@pytest.mark.parametrize(
    "shard", ["../x", "/etc/passwd", "a/../../b", "a//b", "a\\b", "C:x", "..", "", "a\0b"]
)
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
        ([".metadata", "__0_0.distcp"], r"distributed .* `accelerate merge-weights \S+ OUTPUT`"),
        (["__1_0.distcp", "config.json"], r"distributed .* `accelerate merge-weights \S+ OUTPUT`"),
        (["latest", "zero_to_fp32.py"], r"DeepSpeed ZeRO: .* `python zero_to_fp32.py \. OUTPUT"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(
    tmp_path: Path, names: list[str], expected: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match=expected) as caught:
        find_weights(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_the_folder_of_distributed_weights_in_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model_fsdp_0").mkdir()
    touch(tmp_path, "pytorch_model_fsdp_0/.metadata", "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"merge-weights .*/pytorch_model_fsdp_0 OUTPUT"):
        find_weights(tmp_path)


@pytest.mark.train
def test_the_cure_for_distributed_weights_is_one(tmp_path: Path) -> None:
    import torch
    from torch.distributed.checkpoint.state_dict_saver import save

    weights = {"w": torch.randn(3, 4), "b": torch.ones(4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is only one process
        save({"model": weights}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(CheckpointError, match="accelerate merge-weights"):
        open_checkpoint(tmp_path / "dcp")
    accelerate = importlib.import_module("accelerate.utils")
    accelerate.merge_fsdp_weights(str(tmp_path / "dcp"), str(tmp_path / "merged"))
    with open_checkpoint(tmp_path / "merged") as merged:
        assert merged.tensors["w"].read().tobytes() == weights["w"].numpy().tobytes()


def test_shards_may_be_in_a_folder_below(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "part/x.safetensors")
    save_file({"v": torch.ones(3)}, tmp_path / "x.safetensors")
    shard_of = {"w": "part/x.safetensors", "v": "x.safetensors"}
    write_index(tmp_path, {"weight_map": shard_of})
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.tensors) == {"w", "v"}
        assert checkpoint.folder == tmp_path
    write_index(tmp_path, {"weight_map": {**shard_of, "u": "part/x.safetensors"}})
    with pytest.raises(
        CheckpointError, match=r"part/x\.safetensors: lacks u, which the index says"
    ):
        open_checkpoint(tmp_path)


SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors", "tokenizer.json", "optimizer.pt", "trimtab_mask.safetensors"], []),
        ([INDEX, *SHARDS, "training_args.bin"], []),
        (
            ["model.safetensors", "pytorch_model.bin"],
            [r"^model.safetensors is read, .*; pytorch_model.bin in the .* is not read$"],
        ),
        (
            ["model.safetensors", INDEX, *SHARDS],
            [rf"^model.safetensors is read, .*; {INDEX} in the same folder .* is not read$"],
        ),
        (
            [INDEX, *SHARDS, "model-00003-of-00003.safetensors", "consolidated.safetensors"],
            [rf"^{INDEX} is read, .*; consolidated.safetensors, model-00003-of-00003.saf.* in"],
        ),
        (
            ["model.safetensors", "q4.gguf", "tf_model.h5", "model.fp16.safetensors"],
            [r"; model.fp16.safetensors, q4.gguf, tf_model.h5 in the .* are not read$"],
        ),
        (
            [
                "pytorch_model.bin",
                "adapter_config.json",
                "adapter_model.bin",
                "consolidated.00.pth",
            ],
            [
                r"^pytorch_model.bin is read, .*; consolidated.00.pth in the",
                r"^pytorch_model.bin is read alone; the LoRA adapter next to it "
                r"\(adapter_config.json, adapter_model.bin\) is not added",
            ],
        ),
    ],
)
def test_it_is_said_what_is_not_read(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    touch(tmp_path, *(name for name in names if name != INDEX))
    if INDEX in names:
        write_index(tmp_path, {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}})
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    notes = find_weights(tmp_path).notes
    assert len(notes) == len(expected)
    for note, pattern in zip(notes, expected, strict=True):
        assert re.search(pattern, note)


@pytest.mark.train
def test_the_config_may_name_other_weights(tmp_path: Path) -> None:
    """What transformers loads then, and what is read, are the same."""
    from transformers import AutoModelForCausalLM

    model = build_model("llama")
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    other = stored | {name: stored[name] + 1}
    save_file(other, tmp_path / "other.safetensors", metadata={"format": "pt"})
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for named in ("other.safetensors", "mine.safetensors.index.json"):
        path.write_text(json.dumps({**config, "transformers_weights": named}))
        index = {"metadata": {}, "weight_map": dict.fromkeys(other, "other.safetensors")}
        (tmp_path / "mine.safetensors.index.json").write_text(json.dumps(index))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()[name]
        assert torch.equal(loaded, other[name])
        with (
            pytest.warns(CheckpointWarning, match=f"{named} is read, which transformers_weights"),
            open_checkpoint(tmp_path) as checkpoint,
        ):
            assert checkpoint.tensors[name].read().tobytes() == loaded.numpy().tobytes()
    for wrong in ("../x.safetensors", "x.bin", 3):
        path.write_text(json.dumps({**config, "transformers_weights": wrong}))
        with pytest.raises(CheckpointError, match=r"transformers_weights is .*, expected the name"):
            open_checkpoint(tmp_path)


def test_what_is_newer_is_said_to_be(tmp_path: Path) -> None:
    touch(tmp_path, "model.safetensors", "pytorch_model.bin")
    os.utime(tmp_path / "model.safetensors", (1, 1))
    (note,) = find_weights(tmp_path).notes
    assert "; pytorch_model.bin (newer) in the same folder" in note


def test_files_are_closed_where_warnings_are_errors(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    touch(tmp_path, "pytorch_model.bin")
    pool = FilePool()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointWarning):
            open_checkpoint(tmp_path, pool=pool)
    assert pool._closed


def test_notes_are_warnings_and_stay_in_the_record(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    touch(tmp_path, "pytorch_model.bin")
    with pytest.warns(CheckpointWarning, match="pytorch_model.bin"):
        result = trimtab.compare(tmp_path, tmp_path / "model.safetensors")
    assert len(result.base.notes) == 1
    assert not result.tuned.notes
    again = trimtab.Comparison.from_dict(json.loads(json.dumps(result.to_dict())))
    assert again.base == result.base
    assert "notes" not in again.to_dict()["provenance"]["tuned"]
    packed = {"q.qweight": torch.ones(2, 2, dtype=torch.int32), "q.scales": torch.ones(2)}
    save_file(packed, tmp_path / "packed.safetensors")
    with pytest.warns(CheckpointWarning, match="made from the integers in q.qweight"):
        open_checkpoint(tmp_path / "packed.safetensors").close()


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
