"""A Trainer whose checkpoints are deltas: decoded, resumed bit for bit, and safe when it fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import trimtab
from tests.deltas.killing import killed_at_every_step
from tests.training import tiny
from tests.training.tiny_trainers import assert_same_bits, build, model, train, weights
from trimtab.deltas import store as store_module
from trimtab.errors import CheckpointError, DeltaError, SettingsError
from trimtab.training import DeltaCheckpoint

pytestmark = pytest.mark.train

SAVED: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}

BEST: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}


class Stops(TrainerCallback):  # type: ignore[misc]
    """An error in a step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("stopped")


def run(
    base: Path,
    out: Path,
    *,
    kind: str = "plain",
    resume: Path | None = None,
    stops: bool = False,
    saves: dict[str, Any] | None = None,
    against: Path | None = None,
    **more: Any,
) -> Any:
    trainer = build(kind, model(base), base, out, **{**SAVED, **more})
    trainer.add_callback(DeltaCheckpoint(against or base, threads=1, **(saves or {})))
    if stops:
        trainer.add_callback(Stops())
        with pytest.raises(RuntimeError, match="stopped"):
            train(trainer, resume)
    else:
        train(trainer, resume)
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
    train(build("plain", model(base), base, out, **SAVED))
    return out


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def whole(out: Path) -> list[str]:
    """The checkpoints that have their weights."""
    return sorted(path.parent.name for path in out.glob("checkpoint-*/model.safetensors"))


def weights_of(out: Path, step: int) -> bytes:
    return (out / f"checkpoint-{step}" / "model.safetensors").read_bytes()


def test_every_checkpoint_decodes_and_resumes(base: Path, dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(base, out, save_total_limit=2)
    assert names_in(out) == {"checkpoint-3", "checkpoint-4", "deltas"}
    store = trimtab.Store(out / "deltas")
    assert store.names() == ("checkpoint-3", "checkpoint-4") and store.verify() == 4
    for step in (3, 4):
        expected = dense / f"checkpoint-{step}"
        assert names_in(out / expected.name) == names_in(expected) - {"model.safetensors"}
        store.checkout(expected.name, tmp_path / f"step-{step}")
        assert weights_of(dense, step) == (tmp_path / f"step-{step}/model.safetensors").read_bytes()
        assert names_in(tmp_path / f"step-{step}") == names_in(expected) - {
            *("optimizer.pt", "rng_state.pth", "scheduler.pt", "training_args.bin")
        }
    shutil.rmtree(out / "checkpoint-4")
    time = (out / "checkpoint-3").stat().st_mtime_ns
    folder = DeltaCheckpoint.restore(out)
    assert weights_of(out, 3) == weights_of(dense, 3) and folder.stat().st_mtime_ns == time
    assert DeltaCheckpoint.restore(out, 3, base=base) == folder  # nothing is left to do
    resumed = run(base, out, resume=folder)
    uninterrupted = weights(model(dense / "checkpoint-4"))
    assert_same_bits(weights(resumed.model), uninterrupted)
    DeltaCheckpoint.restore(out, 4)
    assert_same_bits(weights(model(out / "checkpoint-4")), uninterrupted)


@pytest.mark.parametrize("kind", ["plain", "sft"])
def test_the_newest_resumes_as_it_is(base: Path, tmp_path: Path, kind: str) -> None:
    """After an error; and an older one after it was restored."""
    uninterrupted = weights(run(base, tmp_path / "whole", kind=kind).model)
    out = tmp_path / "out"
    run(base, out, kind=kind, stops=True)
    assert whole(out) == ["checkpoint-3"]
    shutil.copytree(out, tmp_path / "older")
    resumed = run(base, out, kind=kind, resume=out / "checkpoint-3")
    assert_same_bits(weights(resumed.model), uninterrupted)
    assert whole(out) == []
    older = DeltaCheckpoint.restore(tmp_path / "older", 2)
    resumed = run(base, tmp_path / "older", kind=kind, resume=older)
    assert_same_bits(weights(resumed.model), uninterrupted)
    assert trimtab.Store(out / "deltas").verify() == 4


@pytest.mark.parametrize(
    ("max_chain", "lengths"), [(1, [1, 1, 1, 1]), (3, [1, 2, 3, 1]), (32, [1, 2, 3, 4])]
)
def test_lengths_of_chains(
    base: Path, dense: Path, tmp_path: Path, max_chain: int, lengths: list[int]
) -> None:
    out = tmp_path / "out"
    run(base, out, saves={"max_chain": max_chain})
    entries = trimtab.Store(out / "deltas").entries()
    assert [entry.num_deltas for entry in entries] == lengths
    for step in range(1, 5):
        DeltaCheckpoint.restore(out, step)
        assert weights_of(out, step) == weights_of(dense, step)


def test_anchors_that_are_needed_stay(base: Path, dense: Path, tmp_path: Path) -> None:
    """The folders of those before were removed, and their deltas go when no chain needs them."""
    out = tmp_path / "out"
    run(base, out, save_total_limit=1)  # what it would be made against is gone already
    (entry,) = trimtab.Store(out / "deltas").entries()
    assert (entry.name, entry.num_deltas) == ("checkpoint-4", 1)
    out = tmp_path / "two"
    run(base, out, save_total_limit=2, saves={"max_chain": 3})
    store = trimtab.Store(out / "deltas")
    assert [entry.num_deltas for entry in store.entries()] == [3, 1]
    assert len(list((out / "deltas/objects").iterdir())) == 4
    shutil.rmtree(out / "checkpoint-3")
    run(base, out, resume=DeltaCheckpoint.restore(out, 4), max_steps=5)
    assert [entry.num_deltas for entry in store.entries()] == [1, 2] and store.verify() == 2
    DeltaCheckpoint.restore(out, 4)
    assert weights_of(out, 4) == weights_of(dense, 4)


def test_the_best_is_loaded_at_the_end(base: Path, tmp_path: Path) -> None:
    more = {**BEST, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    plainly = build("plain", model(base), base, tmp_path / "plain", **{**SAVED, **more})
    train(plainly)
    best = Path(plainly.state.best_model_checkpoint).name
    assert best != "checkpoint-4"  # the loss falls
    out = tmp_path / "out"
    loaded = run(base, out, **more)
    assert_same_bits(weights(loaded.model), weights(plainly.model))
    assert whole(out) == []
    stopped = run(base, tmp_path / "stopped", stops=True, **more)
    assert whole(tmp_path / "stopped") == [best, "checkpoint-3"]
    (tmp_path / "stopped" / best / "model.safetensors").unlink()
    resumed = run(
        base, tmp_path / "stopped", resume=Path(stopped.args.output_dir) / "checkpoint-3", **more
    )
    assert_same_bits(weights(resumed.model), weights(plainly.model))


def test_old_states_of_the_optimizer_go(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(base, out, saves={"optimizer_states": 2})
    assert sorted(path.parent.name for path in out.glob("*/optimizer.pt")) == [
        *("checkpoint-3", "checkpoint-4")
    ]
    with pytest.warns(
        UserWarning, match=r"checkpoint-1 has no optimizer\.pt: a Trainer that resum"
    ):
        DeltaCheckpoint.restore(out, 1)


def test_a_checkpoint_that_is_written_over(base: Path, dense: Path, tmp_path: Path) -> None:
    """Another run in the same folder, and one that stops as it writes over a checkpoint."""
    out = tmp_path / "out"
    run(base, out)
    run(base, out, stops=True, learning_rate=1e-3)
    assert whole(out) == ["checkpoint-3"]
    assert weights_of(out, 3) != weights_of(dense, 3)
    DeltaCheckpoint.restore(out, 4)
    assert weights_of(out, 4) == weights_of(dense, 4)  # of the first run, and all of it
    trainer = build("plain", model(base), base, out, **{**SAVED, "max_steps": 2})
    trainer.add_callback(DeltaCheckpoint(base, threads=1))
    trainer._save_optimizer_and_scheduler = lambda folder: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(trainer)
    assert "checkpoint-1" not in trimtab.Store(out / "deltas").names()
    with pytest.raises(DeltaError, match="no complete checkpoint of step 1: it has 2, 3, 4"):
        DeltaCheckpoint.restore(out, 1)


SAVES = """
import warnings
from transformers import TrainerControl, TrainerState, TrainingArguments
from trimtab.training import DeltaCheckpoint

args = TrainingArguments(output_dir=folder + "/run", use_cpu=True, report_to=[])
callback = DeltaCheckpoint(folder + "/base", threads=1, max_rank=0, optimizer_states=2)
state, control = TrainerState(global_step=3), TrainerControl()
callback.on_train_begin(args, state, control)
callback.on_save(args, state, control)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills the children of a fork")
def test_killed_while_it_saves(base: Path, dense: Path, tmp_path: Path) -> None:
    """Killed before every call on a file: what can be restored is what the Trainer saved."""
    start = tmp_path / "start"
    shutil.copytree(base, start / "base")
    for step in (2, 3):  # the Trainer has just written 3, and removed 1
        shutil.copytree(dense / f"checkpoint-{step}", start / "run" / f"checkpoint-{step}")
    store = trimtab.Store.create(start / "run" / "deltas", start / "base")
    store.add(dense / "checkpoint-1", "checkpoint-1", max_rank=0)
    store.add(dense / "checkpoint-2", "checkpoint-2", against="checkpoint-1", max_rank=0)
    killed, last = killed_at_every_step(start, tmp_path / "folders", SAVES, stride=3)
    ends = set()
    for folder in [*killed, last]:
        out = folder / "run"
        ends.add((tuple(whole(out)), trimtab.Store(out / "deltas").names()))
        assert DeltaCheckpoint.restore(out, base=base) == out / "checkpoint-3"
        assert weights_of(out, 3) == weights_of(dense, 3)
        DeltaCheckpoint.restore(out, 2, base=base)
        assert weights_of(out, 2) == weights_of(dense, 2)
    assert len(killed) > 25 and len(ends) > 2
    resumed = run(base, killed[-1] / "run", resume=DeltaCheckpoint.restore(killed[-1] / "run"))
    assert_same_bits(weights(resumed.model), weights(model(dense / "checkpoint-4")))


def test_what_goes_wrong_leaves_the_weights(
    base: Path, dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        raise DeltaError("decodes to something else")

    monkeypatch.setattr(store_module, "verify_delta", damaged)
    with pytest.warns(UserWarning, match="checkpoint-1 keeps its weights: no delta was made: deco"):
        run(base, tmp_path / "out", max_steps=1)
    monkeypatch.undo()
    assert weights_of(tmp_path / "out", 1) == weights_of(dense, 1)


def test_refusals(base: Path, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing: no such file"):
        run(base, tmp_path / "out", against=tmp_path / "missing")
    with pytest.raises(DeltaError, match="deltas: not a store"):
        DeltaCheckpoint.restore(dense, 2)
    run(base, tmp_path / "out", max_steps=1)
    with pytest.raises(DeltaError, match="no complete checkpoint of step 2: it has 1"):
        DeltaCheckpoint.restore(tmp_path / "out", 2)
    with pytest.raises(DeltaError, match="give the base"):
        DeltaCheckpoint.restore(tmp_path / "out", 1, base=dense / "checkpoint-3")
    assert not (tmp_path / "out" / "checkpoint-1" / "model.safetensors").exists()
    for options, message in (
        ({"max_chain": 0}, "max_chain is 0, expected 1 to 32"),
        ({"optimizer_states": 0}, "optimizer_states is 0, expected 1 or more"),
    ):
        with pytest.raises(SettingsError, match=message):
            DeltaCheckpoint(base, **options)
    assert repr(DeltaCheckpoint("base")) == "DeltaCheckpoint('base')"
