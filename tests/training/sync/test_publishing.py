"""Trainers publish what they train: every version is what they had, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import trimtab
from tests.training import tiny, tiny_trainers
from tests.training.rollouts.trainers import BUILDERS, logged
from tests.training.tiny_trainers import assert_same_bits, build, train, weights
from trimtab.errors import SettingsError, SyncError, WriteError
from trimtab.masks.mask import Mask
from trimtab.sync.folder import FolderHolder
from trimtab.sync.follower import Follower
from trimtab.training import DeltaFollower, DeltaPublisher, train_only

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    tiny.make_base(folder)
    return folder


class Follows(TrainerCallback):  # type: ignore[misc]
    """After each step, another model takes over the version that was published."""

    def __init__(self, publisher: DeltaPublisher, other: Any, **options: Any) -> None:
        self.publisher = publisher
        self.other = other
        self.follower = DeltaFollower(other, publisher.place, name="other", **options)
        self.versions: list[tuple[int, int | None]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.publisher.wait()
        self.follower.update()
        assert_same_bits(weights(self.other), weights(kwargs["model"]))
        self.versions.append((state.global_step, self.follower.version))

    on_train_begin = on_step_end


@pytest.mark.parametrize("kind", ["plain", "sft", "grpo"])
def test_every_step_is_followed(kind: str, base: Path, tmp_path: Path) -> None:
    """Reporters find the figures in the logs."""
    trainer = build(kind, tiny_trainers.model(base), base, tmp_path / "out")
    publisher = DeltaPublisher(tmp_path / "run", base=base).attach(trainer)
    assert publisher.attach(trainer) is publisher
    assert trainer.callback_handler.callbacks.count(publisher) == 1
    follows = Follows(publisher, tiny.model(1).to(torch.bfloat16), base=base)
    trainer.add_callback(follows)
    reported: list[Mapping[str, float]] = []

    class Reporter(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: Mapping[str, float], **__: Any) -> None:
            reported.append(dict(logs))

    trainer.add_callback(Reporter())
    train(trainer)
    steps = [step for step, _ in follows.versions]
    numbers = [number for _, number in follows.versions]
    assert steps == [0, 1, 2, 3] and numbers[-1] == publisher.version
    assert [each.step for each in publisher.published] == steps[-len(publisher.published) :]
    rows = [row for row in reported if "loss" in row]
    history = [row for row in trainer.state.log_history if "loss" in row]
    assert rows == [{key: row[key] for key in row if key != "step"} for row in history]
    assert all(row["sync/blocked_s"] > 0 for row in rows)
    figures = {"version", "diff_s", "encode_s", "publish_s", "wait_s", "bytes", "changed"}
    assert {f"sync/{name}" for name in figures} <= rows[-1].keys()
    assert 0 < rows[-1]["sync/changed"] <= 1
    assert publisher.seconds_blocked >= sum(row["sync/blocked_s"] for row in rows)
    follows.follower.close()


@pytest.mark.parametrize("kind", ["ppo", "prime"])
def test_rounds_of_rollouts(kind: str, base: Path, tmp_path: Path) -> None:
    trainer = BUILDERS[kind](tiny_trainers.model(base), tmp_path / "out")
    publisher = DeltaPublisher(tmp_path / "run").attach(trainer)
    follows = Follows(publisher, tiny.model(1).to(torch.bfloat16))
    trainer.add_callback(follows)
    train(trainer)
    assert follows.versions[-1] == (trainer.state.global_step, publisher.version)
    assert publisher.version and logged(trainer, "sync/blocked_s")
    follows.follower.close()


def test_fp32_weights_for_followers_in_bf16(base: Path, tmp_path: Path) -> None:
    """As a Trainer with `bf16=True` has them: they begin as the bf16 weights of the base."""
    trainer = build("sft", tiny_trainers.model(base, "float32"), base, tmp_path / "out")
    run = tmp_path / "run"
    with pytest.raises(SyncError, match="F32"), DeltaPublisher(run, base=base) as publisher:
        publisher.publish(trainer.model)
    publisher = DeltaPublisher(run, base=base, stored_dtype="bf16").attach(trainer)
    train(trainer)
    other = tiny_trainers.model(base)
    with DeltaFollower(other, run, base=base) as follower:
        assert follower.update() is not None
    expected = {n: tensor.to(torch.bfloat16) for n, tensor in weights(trainer.model).items()}
    assert_same_bits(weights(other), expected)
    log = publisher.log()
    assert log.versions == publisher.published and log.base.dtypes.keys() == {"BF16"}
    assert trainer.model.dtype == torch.float32
    holder = FolderHolder(tmp_path / "served", base)
    with Follower(run, holder) as folder:
        folder.update()
    served = tiny_trainers.model(tmp_path / "served/current", "auto")
    assert served.dtype == torch.bfloat16
    assert_same_bits(weights(served), expected)


@pytest.mark.parametrize(("kind", "coded"), [("sft", False), ("sft", True), ("grpo", True)])
def test_with_a_mask(kind: str, coded: bool, base: Path, tmp_path: Path) -> None:
    """Which the publisher may know: then links are coded over its elements."""
    trainer = build(kind, tiny_trainers.model(base), base, tmp_path / "out")
    mask = Mask.from_arrays(tiny_trainers.arrays(trainer.model))
    training = train_only(trainer, mask)
    given: dict[str, Any] = {"base": base, "mask": kind == "sft" or mask} if coded else {}
    publisher = DeltaPublisher(tmp_path / "run", **given).attach(trainer)
    follows = Follows(publisher, tiny_trainers.model(base) if coded else tiny.model(1).bfloat16())
    trainer.add_callback(follows)
    train(trainer)
    assert follows.versions[-1] == (3, publisher.version)
    links = [*(tmp_path / "run").glob("*.delta")]
    found = {trimtab.delta_info(path).mask for path in links}
    assert found == {mask.digest if coded else None}
    follows.follower.close()
    assert all(each.num_changed <= mask.num_selected() for each in publisher.published)
    training.close()


def test_elements_outside_the_mask_are_compared_at_the_end(base: Path, tmp_path: Path) -> None:
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out")
    mask = Mask.from_arrays(tiny_trainers.arrays(trainer.model))
    publisher = DeltaPublisher(tmp_path / "run", base=base, mask=True).attach(trainer)
    with pytest.raises(SettingsError, match="mask=True, and the Trainer has a AdamW"):
        train(trainer)
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out")
    train_only(trainer, mask)
    publisher.attach(trainer)

    class Meddler(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                with torch.no_grad():
                    kwargs["model"].get_parameter(tiny_trainers.LEFT_OUT)[0, 0] += 1

    trainer.callback_handler.callbacks.insert(0, Meddler())
    with pytest.raises(SyncError, match="1 element changed that the mask does not select"):
        train(trainer)
    assert [each.version for each in publisher.published] == [1, 2, 3]


def test_a_few_steps_at_a_time_and_the_last_one(base: Path, tmp_path: Path) -> None:
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out", max_steps=5)
    trainer.add_callback(publisher := DeltaPublisher(tmp_path / "run", every=2))
    train(trainer)
    assert [each.step for each in publisher.published] == [2, 4, 5]
    other = tiny.model(1).to(torch.bfloat16)
    with DeltaFollower(other, tmp_path / "run") as follower:
        assert follower.wait() == 3
    assert_same_bits(weights(other), weights(trainer.model))
    # With its tokenizer: whoever follows by a folder can serve it.
    train(trainer)
    assert [each.version for each in publisher.published] == [1, 2, 3, 4, 5, 6, 7][
        : len(publisher.published)
    ]


def test_a_resumed_run_continues(base: Path, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    for resume in (None, tmp_path / "out/checkpoint-2"):
        trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out", **settings)
        publisher = DeltaPublisher(tmp_path / "run").attach(trainer)
        train(trainer, resume)
    # Back to step 2 is a version of its own; steps 3 and 4 give the same weights again.
    assert [(each.version, each.step) for each in publisher.published] == [(5, 2), (6, 3), (7, 4)]
    chain = json.loads((tmp_path / "run/chain.json").read_text())
    hashes = {each["number"]: each["content_hash"] for each in chain["versions"]}
    assert [hashes[n] for n in (2, 3, 4)] == [hashes[n] for n in (5, 6, 7)]


def test_training_waits_for_followers(base: Path, tmp_path: Path) -> None:
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out")
    publisher = DeltaPublisher(tmp_path / "run", base=base, wait_for="engine", timeout=0.05)
    publisher.attach(trainer)
    with pytest.raises(SyncError, match=r"version 0 is missing from 1 of the followers \(none"):
        train(trainer)
    other = tiny_trainers.model(base)
    publisher = DeltaPublisher(tmp_path / "run", base=base, wait_for=1, max_staleness=2, timeout=60)
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out", max_steps=6)
    publisher.attach(trainer)
    with DeltaFollower(other, tmp_path / "run", base=base, name="engine").start(0.01) as follower:
        train(trainer)
        assert follower.version == publisher.version
    assert_same_bits(weights(other), weights(trainer.model))


def test_followers_may_be_so_many_versions_behind(tmp_path: Path) -> None:
    model, other = (tiny.model(seed).to(torch.bfloat16) for seed in (0, 1))
    with (
        DeltaPublisher(tmp_path, wait_for=1, max_staleness=2, timeout=0) as publisher,
        DeltaFollower(other, tmp_path) as follower,
    ):
        publisher.publish(model)
        follower.update()
        for number in (1, 2):
            _move(model, number)
            assert publisher.publish(model) == number
        _move(model, 3)
        with pytest.raises(SyncError, match="version 1 is missing"):
            publisher.publish(model)
        follower.update()
        assert follower.version == 2 and publisher.publish(model) == 3


def test_what_the_thread_fails_with_is_raised_at_the_next_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build("plain", tiny_trainers.model(base), base, tmp_path / "out", max_steps=6)
    publisher = DeltaPublisher(tmp_path / "run").attach(trainer)
    place = publisher.place
    real, num = place.put, 0

    def put(name: str, content: bytes | Path) -> None:
        nonlocal num
        num += name.endswith(".delta")
        if num == 3:
            raise WriteError("no room for it")
        real(name, content)

    monkeypatch.setattr(place, "put", put)
    with pytest.raises(WriteError, match="no room for it"):
        train(trainer)
    assert trainer.state.global_step == 3  # versions 0, 1; step 2 failed while 3 was made
    monkeypatch.undo()
    other = tiny.model(1).to(torch.bfloat16)
    with DeltaFollower(other, tmp_path / "run") as follower:
        assert follower.wait() == 1
        publisher.publish(trainer.model, step=3)  # with the changes of both
        publisher.wait()
        assert follower.wait(2, timeout=1) == 2
    assert_same_bits(weights(other), weights(trainer.model))
    publisher.close()


def test_what_cannot_be_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="every is 0"):
        DeltaPublisher(tmp_path, every=0)
    with pytest.raises(SettingsError, match="max_staleness is -1"):
        DeltaPublisher(tmp_path, max_staleness=-1)

    class Adapter(torch.nn.Linear):
        peft_config: Mapping[str, Any] = {}

    publisher = DeltaPublisher(tmp_path / "run")
    with pytest.raises(SettingsError, match="is a PEFT adapter"):
        publisher.publish(Adapter(2, 2))
    assert "nothing yet" in repr(publisher)
    assert publisher.acknowledged() == () and publisher.published == ()
    with pytest.raises(SyncError, match="nothing was published yet"):
        publisher.log()
    publisher.wait()
    publisher.close()


def test_a_compiled_model_has_the_names_of_files(tmp_path: Path) -> None:
    model, other = (tiny.model(seed).to(torch.bfloat16) for seed in (0, 1))
    compiled: Any = torch.compile(model, backend="eager")
    with DeltaPublisher(tmp_path) as publisher:
        publisher.publish(compiled)
        _move(model, 1)
        publisher.publish(compiled)
    with DeltaFollower(other, tmp_path) as follower:
        assert follower.update() is not None
    assert_same_bits(weights(other), weights(model))


def _move(model: Any, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
