"""The benchmark of single steps measures what its page says."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import sync, sync_runs
from benchmarks.deltas import opened
from benchmarks.sync_runs import Chain, Steps

import trimtab
from tests.deltas.building import write_folder
from trimtab.elements.dtypes import Bits

CODECS = ("NeMo-RL: u16 gaps, XOR, zstd-1", "u32 index and value")


def weights(step: int) -> Bits:
    """1,024 elements, of which one more row has moved in every step."""
    bits = np.full((16, 64), 0x3F81, np.uint16)
    bits[:step] += 1
    return bits


def tensors(step: int) -> dict[str, tuple[str, Bits]]:
    """Those, and one that never moves."""
    return {"w": ("BF16", weights(step)), "v": ("BF16", weights(0))}


def saved(step: int, path: Path) -> Path:
    return write_folder(path, tensors(step))


def test_every_step_of_a_chain(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", tensors(0))
    chain = Chain(base, tmp_path / "run")
    for step in (1, 2, 3):
        chain.add(partial(saved, step))
    chain.finish([])
    found = sorted(path.name for path in chain.folder.iterdir())
    assert found == ["000001.delta", "000002.delta", "000003.delta", "history.json"]

    run: dict[str, Any] = {}
    times: list[int] = []
    sync.measure_sizes(base, chain.folder, (1, 3, 50), CODECS, run, lambda: times.append(1))
    assert list(run["steps"]) == ["1", "2", "3"] and times == [1] * 6
    for number, step in run["steps"].items():
        anatomy = step["delta"]
        assert anatomy["num_changed"] == 64 and anatomy["num_tensors_changed"] == 1
        parts = [anatomy[part] for part in ("frames", "header", "manifest", "files")]
        size = (chain.folder / f"{number:0>6}.delta").stat().st_size
        assert sum(parts) == anatomy["all"] == size and min(parts) > 0
        assert ("sizes" in step) == (number != "2")
    for number in ("1", "3"):
        step = run["steps"][number]
        assert list(step["sizes"]) == [*CODECS] and step["num_changed"] == 64
        assert list(step["by_rank"]) == ["0", "1", "16"]
        assert 0 < step["sizes"]["u32 index and value"] - 64 * 6 < 400

    once = json.dumps(run)
    again: list[int] = []
    sync.measure_sizes(base, chain.folder, (1, 3), CODECS, run, lambda: again.append(1))
    assert json.dumps(run) == once and not again


def test_the_checkpoints_of_a_step(tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", tensors(0))
    chain = Chain(base, tmp_path / "run")
    for step in (1, 2, 3):
        chain.add(partial(saved, step))
    chain.finish([])
    deltas = sorted(chain.folder.glob("*.delta"))
    selected = {"w": np.arange(1024).reshape(16, 64) < 64, "v": np.zeros((16, 64), bool)}
    mask = trimtab.Mask.from_arrays(selected)
    size = sync.over_mask(*sync.pair_of(base, deltas, 1, tmp_path), mask)
    assert 0 < size < sync.anatomy(deltas[0])["all"] + 200
    assert sync.pair_of(base, deltas, 1, tmp_path)[0] == base
    with opened(*sync.pair_of(base, deltas, 3, tmp_path)) as sides:
        for side, step in zip(sides, (2, 3), strict=True):
            assert np.array_equal(side.tensors["w"].read(), weights(step))


def test_signs_of_one_direction_are_predicted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start = np.full((64, 64), 0x3F81, np.uint16)
    direction = np.where(np.outer(rng.random(64) < 0.5, np.ones(64)) > 0, 1, -1)
    noise = rng.choice([-1, 1], (64, 64))
    base = write_folder(tmp_path / "base", {"w": ("BF16", start)})
    for name, steps in (("directed", direction), ("noise", noise)):
        tuned = write_folder(tmp_path / name, {"w": ("BF16", (start + steps).astype(np.uint16))})
        agreement = sync.sign_agreement(base, tuned)
        if name == "directed":
            assert agreement == {"fitted": 1.0, "held_out": 1.0}
        else:
            assert agreement["fitted"] > 0.55 and abs(agreement["held_out"] - 0.5) < 0.05


@pytest.mark.train
def test_stages_and_overhead(tmp_path: Path) -> None:
    from benchmarks import sync_stages

    from tests.training import tiny

    base, run = tmp_path / "base", tmp_path / "run"
    tiny.make_base(base)
    sync_runs.smollm2(Steps("SmolLM2-135M", 1e-3, 3, dtype="fp32"), base, Chain(base, run))
    deltas = sorted(run.glob("*.delta"))
    rows = sync_stages.replayed(base, deltas)
    changed = {step: sync.anatomy(delta)["num_changed"] for step, delta in enumerate(deltas, 1)}
    assert {row["step"]: row["num_changed"] for row in rows} == {
        s: n for s, n in changed.items() if n
    }
    assert rows
    for row in rows:
        assert abs(row["num_bytes"] - deltas[row["step"] - 1].stat().st_size) < 400
        assert {"diff", "encode", "publish", "fetch", "decode", "apply"} <= {*row["seconds"]}
        assert min(row["processor_seconds"].values()) >= 0


@pytest.mark.train
def test_steps_of_grpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.training import tiny

    tiny.make_base(tmp_path / "demo" / "base")
    monkeypatch.setattr(sync_runs, "RUNS", {"r": Steps("SmolLM2-135M", 1e-3, 2, "random:0.2")})
    bases = sync_runs.bases_of(tmp_path / "demo", tmp_path)
    sync_runs.make(tmp_path / "out", bases, ["r"])
    deltas = sorted((tmp_path / "out" / "r").glob("*.delta"))
    assert [path.name for path in deltas] == ["000001.delta", "000002.delta"]
    history = json.loads((tmp_path / "out" / "r" / "history.json").read_text())
    assert sum("loss" in row for row in history) == 2
    trimtab.apply_delta(bases["SmolLM2-135M"], deltas, tmp_path / "tuned")
    changed = trimtab.compare(bases["SmolLM2-135M"], tmp_path / "tuned").total
    assert 0 < changed.num_changed["bits"] <= 0.21 * changed.num_elements
    times = [path.stat().st_mtime_ns for path in deltas]
    sync_runs.make(tmp_path / "out", bases, ["r"])
    assert [path.stat().st_mtime_ns for path in deltas] == times


@pytest.mark.train
def test_steps_of_a_native_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from benchmarks.delta_models import CHARACTERS, END, PAD
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        **shape,
        num_attention_heads=2,
        vocab_size=1 + len(CHARACTERS),
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    bases = sync_runs.bases_of(tmp_path, tmp_path)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(bases["native"])
    monkeypatch.setattr(sync_runs, "RUNS", {"n": Steps("native", 1e-3, 2)})
    sync_runs.make(tmp_path / "out", bases, ["n"])
    history = json.loads((tmp_path / "out" / "n" / "history.json").read_text())
    assert [row["step"] for row in history] == [1, 2] and "reward" in history[0]
    trimtab.verify_delta(bases["native"], sorted((tmp_path / "out" / "n").glob("*.delta")))
