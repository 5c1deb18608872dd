"""Any delta becomes a checkpoint in little memory, and an interrupted write leaves nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.deltas.exchange.pairs import bits_in, contents, random_bits, save, saved_pair
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.exchange.arc import write_arc_v2
from trimtab.deltas.exchange.importing import import_delta
from trimtab.deltas.exchange.index_value import write_index_value
from trimtab.deltas.exchange.payloads import Exported
from trimtab.deltas.exchange.slime import write_slime
from trimtab.errors import CheckpointError, OutputExistsError

WRITERS: dict[str, Callable[..., Exported]] = {
    "xor": write_slime,
    "overwrite": lambda *args, **more: write_slime(*args, encoding="overwrite", **more),
    "arc_v2": write_arc_v2,
    "index_value.safetensors": write_index_value,
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_in_memory(tmp_path: Path, name: str) -> None:
    """Writing takes some chunks, reading one tensor, however many there are."""
    size = 16 << 20
    old = np.random.default_rng(0).integers(0, 2**16, size // 2, dtype=np.uint16)
    new = np.where(np.random.default_rng(1).random(len(old)) < 0.1, old ^ np.uint16(3), old)
    base = save(tmp_path / "base", {"x": ("BF16", old), "y": ("BF16", old)})
    tuned = save(tmp_path / "tuned", {"x": ("BF16", new), "y": ("BF16", new)})
    del old, new
    tracemalloc.start()
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        WRITERS[name](ours, theirs, tmp_path / name)
    assert tracemalloc.get_traced_memory()[1] < size
    tracemalloc.reset_peak()
    import_delta(base, tmp_path / name, tmp_path / "result")
    assert tracemalloc.get_traced_memory()[1] < size + (12 << 20)
    tracemalloc.stop()
    assert contents(tmp_path / "result") == contents(tuned)


@pytest.mark.parametrize("name", WRITERS)
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, name: str) -> None:
    base, tuned = saved_pair(tmp_path)

    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        with pytest.raises(KeyboardInterrupt):
            WRITERS[name](ours, theirs, tmp_path / name, progress=interrupt)
        assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}
        WRITERS[name](ours, theirs, tmp_path / name)
    with pytest.raises(KeyboardInterrupt):
        import_delta(base, tmp_path / name, tmp_path / "result", progress=interrupt)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned", name}


@pytest.mark.parametrize("name", WRITERS)
def test_progress_and_what_was_written(tmp_path: Path, name: str) -> None:
    base, tuned = saved_pair(tmp_path)
    calls: list[tuple[int, int]] = []
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        written = WRITERS[name](
            ours, theirs, tmp_path / name, progress=lambda *call: calls.append(call)
        )
        num_bytes = sum(tensor.num_bytes for tensor in ours.tensors.values())
    old, new = bits_in(base), bits_in(tuned)
    assert written.num_tensors == len(new)
    assert written.num_changed == sum(not np.array_equal(old[key], new[key]) for key in new)
    path = tmp_path / name
    copies = {"config.json", "tokenizer.json", "vocab.txt"}
    if name == "arc_v2":
        copies.add("model.safetensors.index.json")
    files = [path] if path.is_file() else [at for at in path.iterdir() if at.name not in copies]
    assert written.num_bytes == sum(file.stat().st_size for file in files)
    assert sum(done for done, _ in calls) == num_bytes
    assert {of for _, of in calls} == {num_bytes}


def test_an_open_base_and_other_bases(tmp_path: Path) -> None:
    base, tuned = saved_pair(tmp_path, num_shards=1)
    with open_checkpoint(base) as ours, open_checkpoint(tuned) as theirs:
        write_slime(ours, theirs, tmp_path / "delta")
        import_delta(ours, tmp_path / "delta", tmp_path / "result")
        assert ours.tensors["all"].read().shape == (5,)  # it is still open
    assert contents(tmp_path / "result") == contents(tuned)
    with pytest.raises(OutputExistsError):
        import_delta(base, tmp_path / "delta", tmp_path / "result")
    with pytest.raises(CheckpointError, match="expected the folder of a model, not a file"):
        import_delta(base / "model.safetensors", tmp_path / "delta", tmp_path / "other")


def test_torch_files_may_be_exported(tmp_path: Path) -> None:
    import torch

    bits = {name: random_bits("BF16", (3, 4), seed) for seed, name in enumerate("ab")}
    folders: dict[str, Any] = {}
    for seed, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        tensors = {
            key: torch.from_numpy((value ^ np.uint16(seed)).view(np.int16)).view(torch.bfloat16)
            for key, value in bits.items()
        }
        torch.save(tensors, tmp_path / name / "pytorch_model.bin")
        folders[name] = save(
            tmp_path / f"{name}-safetensors",
            {key: ("BF16", value ^ np.uint16(seed)) for key, value in bits.items()},
        )
    with (
        open_checkpoint(tmp_path / "base") as ours,
        open_checkpoint(tmp_path / "tuned") as theirs,
    ):
        write_slime(ours, theirs, tmp_path / "delta")
        with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: expected safetensors"):
            write_arc_v2(ours, theirs, tmp_path / "arc")
    import_delta(folders["base"], tmp_path / "delta", tmp_path / "result")
    assert contents(tmp_path / "result") == contents(folders["tuned"])
