"""A run is published version by version, and followed by a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.deltas.building import Arrays, content_of, moved, random_bits, write_folder
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.source import source_of
from trimtab.errors import SyncError
from trimtab.sync.chain import read_chain
from trimtab.sync.folder import FolderHolder
from trimtab.sync.follower import Follower
from trimtab.sync.publisher import Publisher

SHAPES = {"a.weight": ("BF16", (64, 48)), "b.weight": ("F32", (40,)), "c": ("I64", (3,))}


def first_weights() -> Arrays:
    return {
        name: (dtype, random_bits(dtype, shape, seed))
        for seed, (name, (dtype, shape)) in enumerate(SHAPES.items())
    }


def next_weights(arrays: Arrays, seed: int) -> Arrays:
    return {name: (dtype, moved(bits, 0.05, seed)) for name, (dtype, bits) in arrays.items()}


class Run:
    """A trainer: the checkpoint of each version, and its publisher."""

    def __init__(self, folder: Path, publisher: Publisher) -> None:
        self.folder = folder
        self.publisher = publisher
        self.arrays = first_weights()
        self.folders = [write_folder(folder / "v0", self.arrays)]

    def step(self) -> int:
        number = len(self.folders)
        self.arrays = next_weights(self.arrays, number)
        self.folders.append(write_folder(self.folder / f"v{number}", self.arrays))
        return self.publish(self.folders[-1])

    def publish(self, folder: Path) -> int:
        with open_checkpoint(folder) as checkpoint:
            number = self.publisher.publish(source_of(checkpoint), step=10 * len(self.folders))
        self.publisher.wait()
        return number


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    base = write_folder(tmp_path / "run/v0", first_weights())
    with Publisher(tmp_path / "place", base) as publisher:
        yield Run(tmp_path / "run", publisher)


def test_a_folder_follows(run: Run, tmp_path: Path) -> None:
    holder = FolderHolder(tmp_path / "out", run.folders[0])
    with Follower(tmp_path / "place", holder, name="one") as follower:
        assert follower.update() is None
        for number in range(1, 12):
            assert run.step() == number
            update = follower.update()
            assert update is not None
            assert (update.before, update.version) == (number - 1 if number > 1 else None, number)
            assert content_of(tmp_path / "out/current") == content_of(run.folders[number])
            assert [each.version for each in run.publisher.acknowledged()] == [number]
            assert run.publisher.wait_for({"one"}, timeout=1) < 1
        assert follower.update() is None
    assert [each.step for each in run.publisher.published] == [20 + 10 * n for n in range(11)]
    with pytest.raises(SyncError, match="version 11 is missing from 1 of"):
        run.publisher.wait_for(2, timeout=0)


def test_a_late_follower_takes_the_shortest_way(run: Run, tmp_path: Path) -> None:
    for _ in range(18):
        run.step()
    chain = read_chain(run.publisher.place)
    assert chain is not None
    holder = FolderHolder(tmp_path / "out", run.folders[0])
    update = Follower(tmp_path / "place", holder).update()
    assert update is not None
    route = chain.route({0}, 18)
    assert route is not None
    assert update.links == tuple(link.name for link in route)
    assert [(link.base, link.version) for link in route] == [(0, 16), (16, 17), (17, 18)]
    assert content_of(tmp_path / "out/current") == content_of(run.folders[18])
    # What nobody needs is gone: all links to before 10 but those of anchors.
    on_disk = {path.name for path in (tmp_path / "place").glob("*.delta")}
    assert {link.name for link in chain.links} <= on_disk
    assert min(link.version for link in chain.links) > 10


def test_without_a_base_the_first_version_is_whole(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "place", anchor_every=4, keep=1)
    run = Run(tmp_path / "run", publisher)
    run.publish(run.folders[0])
    for number in range(1, 7):
        run.step()
        out = FolderHolder(tmp_path / f"out{number}")
        with Follower(tmp_path / "place", out) as follower:
            assert follower.update() is not None
        assert content_of(tmp_path / f"out{number}/current") == content_of(run.folders[number])
    chain = read_chain(run.publisher.place)
    publisher.close()
    assert chain is not None
    assert [(link.base, link.version) for link in chain.links] == [
        *[(None, 0), (0, 4), (4, 5), (5, 6)]
    ]


def test_another_publisher_continues(run: Run, tmp_path: Path) -> None:
    for _ in range(3):
        run.step()
    old = run.publisher
    run.publisher = new = Publisher(tmp_path / "place", run.folders[0])
    assert run.step() == 4
    with Follower(tmp_path / "place", FolderHolder(tmp_path / "out", run.folders[0])) as follower:
        follower.update()
        assert content_of(tmp_path / "out/current") == content_of(run.folders[4])
    run.publisher = old
    with pytest.raises(SyncError, match="another publisher took over"):
        run.step()
    run.publisher = new
    # Back at an earlier checkpoint: a version of its own, and the folder has it already.
    assert run.publish(run.folders[2]) == 5
    new.close()


def test_weights_that_did_not_change_are_no_version(run: Run) -> None:
    run.step()
    assert run.publish(run.folders[1]) == 1
    assert [each.version for each in run.publisher.published] == [1]


def test_other_tensors_are_refused(run: Run, tmp_path: Path) -> None:
    run.step()
    other = dict(run.arrays)
    other["a.weight"] = ("BF16", np.zeros((64, 47), np.uint16))
    with pytest.raises(SyncError, match=r"a.weight: expected BF16 \[64, 48\] .*BF16 \[64, 47\]"):
        run.publish(write_folder(tmp_path / "other", other))
    del other["a.weight"]
    with pytest.raises(SyncError, match=r"a.weight: expected BF16 \[64, 48\] .* found none"):
        run.publish(write_folder(tmp_path / "fewer", other))


def test_damaged_files_delay_a_follower(run: Run, tmp_path: Path) -> None:
    run.step()
    holder = FolderHolder(tmp_path / "out", run.folders[0])
    follower = Follower(tmp_path / "place", holder)
    follower.update()
    run.step()
    path = next((tmp_path / "place").glob("v000002*"))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for wrong in (content[:-1], content + b" ", bytes(flipped), None):
        path.unlink()
        if wrong is not None:
            path.write_bytes(wrong)
        with pytest.raises(SyncError, match=path.name):
            follower.update()
        assert content_of(tmp_path / "out/current") == content_of(run.folders[1])
    path.write_bytes(content)
    follower.update()
    assert content_of(tmp_path / "out/current") == content_of(run.folders[2])
    # An old list of versions is no reason to go back.
    before = (tmp_path / "place/chain.json").read_bytes()
    run.step()
    follower.update()
    (tmp_path / "place/chain.json").write_bytes(before)
    assert follower.update() is None
    assert follower.version == 3


@pytest.mark.parametrize("with_base", [True, False])
def test_files_beside_the_weights_may_change(tmp_path: Path, with_base: bool) -> None:
    """Whichever way a follower takes, and also where another publisher continues."""
    base = write_folder(tmp_path / "run/v0", first_weights())
    (base / "config.json").write_text("{}")
    given = base if with_base else None
    publisher = Publisher(tmp_path / "place", given, fold_every=3, anchor_every=4)
    run = Run(tmp_path / "run", publisher)
    (base / "config.json").write_text("{}")
    if not with_base:
        run.publish(base)
    with Follower(tmp_path / "place", FolderHolder(tmp_path / "each", given)) as each:
        for number in range(1, 12):
            if number == 8:
                publisher.close()
                publisher = Publisher(tmp_path / "place", given, fold_every=3, anchor_every=4)
                run.publisher = publisher
            run.arrays = next_weights(run.arrays, number)
            run.folders.append(folder := write_folder(tmp_path / f"run/v{number}", run.arrays))
            (folder / "config.json").write_text(f'{{"step": {number // 2}}}')
            if number > 5:
                (folder / "more.json").write_text("{}")
            run.publish(folder)
            each.update()
            assert content_of(tmp_path / "each/current") == content_of(folder)
            late = FolderHolder(tmp_path / f"late{number}", given)
            with Follower(tmp_path / "place", late) as follower:
                follower.update()
            assert content_of(tmp_path / f"late{number}/current") == content_of(folder)
    publisher.close()
