"""A model in memory follows what another publishes: every version bit for bit."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training import tiny
from tests.training.tiny_trainers import assert_same_bits, weights
from trimtab.errors import DeltaError, SettingsError, SyncError
from trimtab.training import DeltaFollower, DeltaPublisher, runtime

pytestmark = pytest.mark.train


def model(seed: int = 0) -> Any:
    return tiny.model(seed).to(torch.bfloat16)


def train(of: Any, seed: int) -> None:
    """What a step of training does to the weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in of.parameters():
            parameter.add_(torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.1) * 0.01)


def state_of(of: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in of.named_parameters()}


def test_a_loop_is_followed_by_a_model(tmp_path: Path) -> None:
    """From version 0, which is published whole, for a follower with any weights."""
    trained, other, state = model(), model(1), state_of(model())
    followers = [DeltaFollower(it, tmp_path) for it in (model(), other, state)]
    assert followers[0].update() is None and followers[0].version is None
    with DeltaPublisher(tmp_path) as publisher:
        assert publisher.version is None
        assert publisher.publish(trained, step=0) == 0
        for number in range(1, 6):
            train(trained, number)
            assert publisher.publish(trained, step=number) == number
            assert publisher.publish(trained, step=number) == number  # nothing changed since
            publisher.wait()
            for follower in followers:
                update = follower.update()
                assert update is not None and update is follower.last
                assert (update.version, update.step) == (number, number)
                assert {*update.seconds} == {"fetch", "decode", "pause", "apply"}
                assert follower.version == number and follower.changed
            assert_same_bits(weights(other), weights(trained))
            assert_same_bits(state, weights(trained))
        assert {a.version for a in publisher.acknowledged()} == {5}
        assert [each.version for each in publisher.published] == [1, 2, 3, 4, 5]
    assert followers[0].content_hash == followers[1].content_hash
    for follower in followers:
        follower.close()
    assert not list((tmp_path / "followers").iterdir())


def test_a_follower_that_has_the_base_on_disk(tmp_path: Path) -> None:
    """Version 0 is not published; a model with other weights begins with it all the same."""
    base = tmp_path / "base"
    tiny.make_base(base)
    trained = _loaded(base)
    with DeltaPublisher(tmp_path / "run", base=base, keep=1, anchor_every=2) as publisher:
        for number in range(5):
            publisher.publish(trained)
            train(trained, number)
        publisher.wait()
        other = model(3)
        lost = DeltaFollower(other, tmp_path / "run", name="lost")
        with pytest.raises(SyncError, match=r"start it from .*base, with which the run began"):
            lost.update()
        with DeltaFollower(other, tmp_path / "run", base=base, name="late") as follower:
            assert follower.wait(timeout=1) == 4
            publisher.publish(trained)
            publisher.wait()
            assert follower.wait(5, timeout=1) == 5
            assert_same_bits(weights(other), weights(trained))
            with pytest.raises(SyncError, match="there is no version 6"):
                follower.wait(6, timeout=0, poll=0.01)
    names = {path.name for path in (tmp_path / "run/followers").iterdir()}
    assert names == {"late.json"}


def test_versions_come_between_generations(tmp_path: Path) -> None:
    """A thread decodes while the model is in use, and gets its turn in a busy loop."""
    trained, other = model(), model(1)
    ids = torch.arange(8).reshape(1, 8)
    logits = {}
    with DeltaPublisher(tmp_path) as publisher, DeltaFollower(other, tmp_path) as follower:
        publisher.publish(trained)
        logits[0] = trained(ids).logits
        follower.start(poll=0.01)
        with pytest.raises(SettingsError, match="started before"):
            follower.start()
        follower.wait(0, poll=0.01, timeout=60)
        seen = set()
        for number in range(1, 6):
            train(trained, number)
            publisher.publish(trained)
            logits[number] = trained(ids).logits
            ends = time.monotonic() + 60
            while follower.version != number and time.monotonic() < ends:
                with follower.lock, follower.lock:
                    before = follower.version
                    assert before is not None
                    for _ in range(3):
                        assert torch.equal(other(ids).logits, logits[before])
                seen.add(before)
        assert seen >= {1, 2, 3, 4}
        with follower.lock, pytest.raises(SettingsError, match="call it without the lock"):
            follower.update()
        follower.stop()
        assert follower.update() is None
    assert_same_bits(weights(other), weights(trained))


def test_what_is_wrong_for_a_while_is_looked_at_again(tmp_path: Path) -> None:
    trained, other = model(), model()
    with DeltaPublisher(tmp_path) as publisher, DeltaFollower(other, tmp_path) as follower:
        publisher.publish(trained)
        train(trained, 1)
        publisher.publish(trained)
        publisher.wait()
        (link,) = tmp_path.glob("v000001*")
        content = link.read_bytes()
        link.write_bytes(content[:-1])
        with pytest.raises(SettingsError, match="poll is 0"):
            follower.start(0)
        follower.start(0.01)
        ends = time.monotonic() + 60
        while follower.error is None and time.monotonic() < ends:
            time.sleep(0.01)
        assert isinstance(follower.error, SyncError)
        with pytest.raises(SyncError, match="v000001"):
            follower.update()
        link.write_bytes(content)
        assert follower.wait(1, poll=0.01, timeout=60) == 1
        assert_same_bits(weights(other), weights(trained))


def test_a_model_that_was_changed_is_left_alone(tmp_path: Path) -> None:
    trained, other = model(), model()
    with DeltaPublisher(tmp_path) as publisher, DeltaFollower(other, tmp_path) as follower:
        publisher.publish(trained)
        follower.update()
        train(other, 99)
        before = weights(other)
        train(trained, 1)
        publisher.publish(trained)
        publisher.wait()
        with pytest.raises(DeltaError, match="give the base"):
            follower.update()
        assert_same_bits(weights(other), before)


def test_the_lock_goes_to_whoever_waits() -> None:
    from trimtab.training.sync.follower import Turns

    lock, order = Turns(), list[str]()

    def other() -> None:
        with lock:
            order.append("other")

    thread = threading.Thread(target=other)
    with lock, lock:
        thread.start()
        while not lock._next.locked():
            time.sleep(0.001)
        order.append("first")
    with lock:
        order.append("again")
    thread.join()
    assert order == ["first", "other", "again"]


def _loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    with runtime.quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def test_a_model_becomes_version_0_of_its_base(tmp_path: Path) -> None:
    """Nothing was trained yet, and its weights are none of the run."""
    tiny.make_base(tmp_path / "base")
    trained, other = _loaded(tmp_path / "base"), model(3)
    with (
        DeltaPublisher(tmp_path / "run", base=tmp_path / "base") as publisher,
        DeltaFollower(other, tmp_path / "run", base=tmp_path / "base") as follower,
        DeltaFollower(other, tmp_path / "run", base=tmp_path / "other") as astray,
    ):
        assert publisher.publish(trained) == 0
        with runtime.quiet():
            model(4).save_pretrained(tmp_path / "other")
        with pytest.raises(SyncError, match="is not the one that the run began with"):
            astray.update()
        update = follower.update()
        assert update is not None and (update.version, update.num_bytes) == (0, 0)
        assert_same_bits(weights(other), weights(trained))
