"""A pruned checkpoint is the base but for the very zeros that were asked for, or is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.checkpoints.building import file_bytes, random_bits, tensors_bytes
from trimtab.checkpoints import weights as checkpoint_weights
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.elements.dtypes import Bits
from trimtab.errors import AnalysisError, CheckpointError, MaskError, OutputExistsError
from trimtab.masks.pruning import RECORD, Pruning, prune, survivors
from trimtab.masks.wanda import InputNorms

UP, DOWN, LATER = (
    f"model.layers.{place}.weight"
    for place in ("0.mlp.up_proj", "0.mlp.down_proj", "1.mlp.up_proj")
)
SHAPES = {
    "model.embed_tokens.weight": (40, 32),
    UP: (64, 33),
    "model.norm.weight": (32,),
    DOWN: (33, 64),
    LATER: (63, 31),
}
SHARDS = {
    "model-00001-of-00002.safetensors": ("model.embed_tokens.weight", UP),
    "model-00002-of-00002.safetensors": ("model.norm.weight", DOWN, LATER),
}
OTHERS = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{ }",
    "chat_template.jinja": b"{{ x }}",
    "vocab.txt": b"a\nb",
    "tokenizer.model": b"\x00\xff",
}


def weights(dtype: type = np.uint16) -> dict[str, np.ndarray]:
    """Finite elements of few magnitudes, zeros of both signs among them."""
    made = {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        bits = random_bits(shape, seed) & 0x8070 | 0x3F00
        bits[np.random.default_rng(seed).random(shape) < 0.05] &= 0x8000
        made[name] = bits.astype(dtype) << dtype(8 * np.dtype(dtype).itemsize - 16)
    return made


def make_base(folder: Path, dtype: type = np.uint16) -> Path:
    """Two shards with an index, and what else there is in a model's folder."""
    folder.mkdir()
    arrays = weights(dtype)
    for shard, names in SHARDS.items():
        (folder / shard).write_bytes(tensors_bytes({name: arrays[name] for name in names}))
    index = {"weight_map": {name: shard for shard, names in SHARDS.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, content in OTHERS.items():
        (folder / name).write_bytes(content)
    (folder / "optimizer.pt").write_bytes(b"not for loading")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def bits_of(folder: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(folder) as checkpoint:
        return {name: tensor.read() for name, tensor in checkpoint.tensors.items()}


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.77, 1.0])
def test_the_smallest_of_each_matrix_are_zero(tmp_path: Path, dtype: type, sparsity: float) -> None:
    base = make_base(tmp_path / "base", dtype)
    done = prune(base, tmp_path / "out", sparsity=sparsity)
    before, after = weights(dtype), bits_of(tmp_path / "out")
    magnitude = (1 << (8 * np.dtype(dtype).itemsize - 1)) - 1
    for name, bits in before.items():
        if name not in (UP, DOWN, LATER):
            assert np.array_equal(after[name], bits)
            continue
        kept = bits.size - round(sparsity * bits.size)
        gone = after[name] != bits
        assert not after[name][gone].any()  # +0, whatever the sign was
        sizes = np.sort(bits.reshape(-1) & magnitude)
        # Exactly so many are left of those that were chosen; a zero may be one of them.
        edge = sizes[bits.size - kept - 1] if kept < bits.size else -1
        assert not (gone & (bits & magnitude > edge)).any()
        zeros = int((sizes == 0).sum())
        assert done.pruned[name].num_before == zeros
        assert done.pruned[name].num_after == max(zeros, bits.size - kept)
        assert done.pruned[name].num_elements == bits.size
    assert Pruning.load(tmp_path / "out" / RECORD).to_dict() == done.to_dict()
    assert done.total.num_after == sum(int((after[n] & magnitude == 0).sum()) for n in done.pruned)


def test_equal_magnitudes_go_at_random(base: Path, tmp_path: Path) -> None:
    first, again, other = (
        prune(base, tmp_path / f"out{place}", sparsity=0.5, seed=seed)
        for place, seed in enumerate((0, 0, 1))
    )
    outs = [bits_of(tmp_path / f"out{place}") for place in range(3)]
    assert np.array_equal(outs[0][UP], outs[1][UP])
    assert not np.array_equal(outs[0][UP], outs[2][UP])
    assert first.pruned == again.pruned == other.pruned
    top, bottom = np.array_split((outs[0][UP] == 0).mean(axis=1), 2)
    assert abs(top.mean() - bottom.mean()) < 0.1


def test_wanda_by_rows(base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    norms = InputNorms(
        {n: rng.random(SHAPES[n][1]).astype(np.float32) for n in (UP, DOWN, LATER)}, {"read": "x"}
    )
    done = prune(base, tmp_path / "out", sparsity=0.5, method="wanda", norms=norms)
    after = bits_of(tmp_path / "out")
    for name in norms.vectors:
        values = (weights()[name].astype(np.uint32) << 16).view(np.float32)
        scores = np.abs(values) * norms.vectors[name]
        num = round(0.5 * scores.shape[1])
        order = np.argsort(scores, axis=1, kind="stable")
        expected = weights()[name].copy()
        np.put_along_axis(expected, order[:, :num], 0, axis=1)
        assert np.array_equal(after[name], expected)
    assert done.norms == {"read": "x"}
    assert np.array_equal(after["model.norm.weight"], weights()["model.norm.weight"])


def test_files_are_those_of_the_base(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    prune(base, out, sparsity=0.5, command="trimtab prune …")
    index = "model.safetensors.index.json"
    assert {path.name for path in out.iterdir()} == {*OTHERS, *SHARDS, index, RECORD}
    for name in (*OTHERS, index):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    for shard, names in SHARDS.items():
        before, after = (base / shard).read_bytes(), (out / shard).read_bytes()
        start = 8 + int.from_bytes(before[:8], "little")
        assert after[:start] == before[:start]
        assert len(after) == len(before)
        with safe_open(out / shard, "np") as file:  # another reader finds the same tensors
            assert set(file.keys()) == set(names)
    record = json.loads((out / RECORD).read_text())
    assert (record["format"], record["format_version"]) == ("trimtab.pruning", 1)
    assert (record["method"], record["sparsity"], record["norms"]) == ("magnitude", 0.5, None)
    assert record["provenance"]["command"] == "trimtab prune …"
    assert record["seed"] == 0
    assert record["provenance"]["base"]["id"] == str(base)
    assert [row["name"] for row in record["tensors"]] == [UP, DOWN, LATER]
    assert record["total"]["num_elements"] == 64 * 33 * 2 + 63 * 31
    with open_checkpoint(base) as opened, open_checkpoint(out) as pruned:
        assert record["provenance"]["base"]["num_tensors"] == len(opened.tensors)
        assert opened.tensors.keys() == pruned.tensors.keys()


def test_the_record_has_the_hash_of_the_base(base: Path, tmp_path: Path) -> None:
    mask = survivors(base)
    done = prune(base, tmp_path / "out", sparsity=0.5)
    assert done.base.to_dict() == mask.provenance["steps"][0]["checkpoint"]


def test_what_survives_is_what_was_kept_and_was_not_zero(base: Path, tmp_path: Path) -> None:
    done = prune(base, tmp_path / "out", sparsity=0.4)
    alive = survivors(tmp_path / "out")
    for name, zeros in done.pruned.items():
        assert alive.num_elements(name) - alive.num_selected(name) == zeros.num_after
    others = [name for name in alive if name not in done.pruned]
    assert done.others.num_after == done.others.num_before
    assert done.others.num_after == sum(
        alive.num_elements(name) - alive.num_selected(name) for name in others
    )


def test_kinds_that_are_asked_for(base: Path, tmp_path: Path) -> None:
    done = prune(base, tmp_path / "out", sparsity=0.5, kinds=["embed", "down_proj"])
    assert list(done.pruned) == ["model.embed_tokens.weight", DOWN]
    assert done.kinds == ("embed", "down_proj")
    assert np.array_equal(bits_of(tmp_path / "out")[UP], weights()[UP])


def test_pruning_a_pruned_model_further(base: Path, tmp_path: Path) -> None:
    prune(base, tmp_path / "half", sparsity=0.5)
    prune(tmp_path / "half", tmp_path / "more", sparsity=0.8)
    half, more = bits_of(tmp_path / "half"), bits_of(tmp_path / "more")
    assert not more[UP][half[UP] == 0].any()
    assert (more[UP] == 0).sum() == round(0.8 * more[UP].size)


def test_a_folder_that_exists_is_never_touched(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(OutputExistsError, match="choose another folder, or delete it first"):
        prune(base, out, sparsity=0.5)
    assert not list(out.iterdir())
    with pytest.raises(OutputExistsError):
        prune(base, base, sparsity=0.5)


def test_nothing_is_left_of_a_pruning_that_fails(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = iter(range(2))  # the third tensor cannot be written
    whole = checkpoint_weights.elements_of

    def breaks(tensor: StoredTensor) -> Iterator[Bits]:
        next(written)
        return whole(tensor)

    monkeypatch.setattr(checkpoint_weights, "elements_of", breaks)
    with pytest.raises(StopIteration):
        prune(base, tmp_path / "out", sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sparsity": -0.1}, "sparsity is -0.1, expected a number from 0 to 1"),
        ({"sparsity": float("nan")}, "sparsity is nan, expected a number from 0 to 1"),
        ({"sparsity": 0.5, "method": "random"}, "there is no method random: expected magnitude or"),
        ({"sparsity": 0.5, "method": "wanda"}, "wanda needs input norms"),
        ({"sparsity": 0.5, "norms": InputNorms({})}, "magnitude does not use input norms"),
    ],
)
def test_settings_that_do_not_go_together(
    base: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(AnalysisError, match=words):
        prune(base, tmp_path / "out", **options)


def test_a_single_file_is_no_folder_of_a_model(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected the folder of a model, not a file"):
        prune(base / next(iter(SHARDS)), tmp_path / "out", sparsity=0.5)


@pytest.mark.train
def test_files_of_torch_are_not_rewritten(tmp_path: Path) -> None:
    import torch

    (tmp_path / "base").mkdir()
    torch.save({UP: torch.ones(4, 4)}, tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is stored in pytorch_model\.bin: expected saf"):
        prune(tmp_path / "base", tmp_path / "out", sparsity=0.5)


def test_a_weight_that_is_nan(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    bits = np.full((4, 4), 0x3F80, np.uint16)
    bits[1, 1] = 0x7FC0
    (tmp_path / "base" / "model.safetensors").write_bytes(tensors_bytes({UP: bits}))
    with pytest.raises(MaskError, match="NaN"):
        prune(tmp_path / "base", tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()


def test_a_damaged_base(base: Path, tmp_path: Path) -> None:
    (base / next(iter(SHARDS))).write_bytes(file_bytes(b"[]"))
    with pytest.raises(CheckpointError, match="not a valid safetensors file"):
        prune(base, tmp_path / "out", sparsity=0.5)
    assert not (tmp_path / "out").exists()
