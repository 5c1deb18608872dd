"""A Trainer whose checkpoints are deltas: decoded, resumed bit for bit, and safe when it fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.deltas.building import content_of
from tests.training import tiny
from tests.training.tiny_trainers import assert_same_bits, model, plain, weights
from trimtab.errors import CheckpointError, DeltaError, SettingsError
from trimtab.training import DeltaCheckpoint, runtime
from trimtab.training.deltas import checkpoints

pytestmark = pytest.mark.train

SAVED: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}


def run(
    base: Path, out: Path, resume: Path | None = None, against: Path | None = None, **more: Any
) -> Any:
    with runtime.quiet():
        trainer = plain(model(base), base, out, **{**SAVED, **more})
        trainer.add_callback(DeltaCheckpoint(against or base, threads=1))
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    tiny.make_base(folder)
    return folder


@pytest.fixture(scope="module")
def dense(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without deltas."""
    out = tmp_path_factory.mktemp("dense")
    with runtime.quiet():
        plain(model(base), base, out, **SAVED).train()
    return out


def test_every_checkpoint_decodes_alone_and_resumes(
    base: Path, dense: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(base, out, save_total_limit=2)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-3", "checkpoint-4"]
    for step in (3, 4):
        folder, expected = out / f"checkpoint-{step}", dense / f"checkpoint-{step}"
        names = {path.name for path in expected.iterdir()}
        assert {path.name for path in folder.iterdir()} == names - {"model.safetensors"} | {
            "weights.delta"
        }
        trimtab.apply_delta(base, folder / "weights.delta", tmp_path / f"step-{step}")
        again = content_of(tmp_path / f"step-{step}")
        assert again["model.safetensors"] == (expected / "model.safetensors").read_bytes()
        assert again.keys() == names - {
            *("optimizer.pt", "rng_state.pth", "scheduler.pt"),
            *("trainer_state.json", "training_args.bin"),
        }
    shutil.rmtree(out / "checkpoint-4")
    folder = DeltaCheckpoint.restore(out, 3)
    assert (
        content_of(folder)["model.safetensors"]
        == (dense / "checkpoint-3" / "model.safetensors").read_bytes()
    )
    assert DeltaCheckpoint.restore(out, 3, base=base) == folder  # nothing is left to do
    resumed = run(base, out, resume=folder)
    uninterrupted = weights(model(dense / "checkpoint-4"))
    assert_same_bits(weights(resumed.model), uninterrupted)
    DeltaCheckpoint.restore(out, 4)
    assert_same_bits(weights(model(out / "checkpoint-4")), uninterrupted)


def test_what_goes_wrong_leaves_the_weights(
    base: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        raise DeltaError("decodes to something else")

    monkeypatch.setattr(checkpoints, "verify_delta", damaged)
    with pytest.warns(UserWarning, match="checkpoint-1 keeps its weights: no delta was made: deco"):
        run(base, tmp_path / "out", max_steps=1)
    monkeypatch.undo()
    saved = tmp_path / "out" / "checkpoint-1" / "model.safetensors"
    assert saved.read_bytes() == (dense / "checkpoint-1" / "model.safetensors").read_bytes()


def test_refusals(base: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: no such file"):
        run(base, tmp_path / "out", against=tmp_path / "missing")
    best: dict[str, Any] = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    with pytest.raises(SettingsError, match="load_best_model_at_end=True loads the weights"):
        run(base, tmp_path / "out", **best)
    with pytest.raises(DeltaError, match=r"checkpoint-2 has no weights\.delta"):
        DeltaCheckpoint.restore(dense, 2)
    run(base, tmp_path / "out", max_steps=1)
    other = dense / "checkpoint-3"
    with pytest.raises(DeltaError, match="give the base"):
        DeltaCheckpoint.restore(tmp_path / "out", 1, base=other)
    assert not (tmp_path / "out" / "checkpoint-1" / "model.safetensors").exists()
    assert repr(DeltaCheckpoint("base")) == "DeltaCheckpoint('base')"
