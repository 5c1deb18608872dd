"""A trainer and followers in processes of their own, which are killed."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.sync.faulty import FaultyPlace
from tests.sync.test_faults import LASTING, PASSING, Memory, Trainer, hash_of
from trimtab.errors import DeltaError, SyncError
from trimtab.sync.chain import read_chain
from trimtab.sync.folder import FolderHolder
from trimtab.sync.follower import Follower, Holder, acknowledgements
from trimtab.sync.places import open_place
from trimtab.sync.publisher import Publisher

SEED = 7
"""Of the weights: every process computes the same ones."""


def publish(url: str, options: Mapping[str, Any], folder: Path, num: int, seed: int) -> None:
    """Train from the newest version to step `num`, and publish each step."""
    place = open_place(url, **options)
    trainer = Trainer(folder / f"base-{seed}", SEED)
    chain = read_chain(place)
    start = 0 if chain is None else chain.newest.step or 0
    for _ in range(start):
        trainer.step()
    # What is late is lost if this is killed, and another publisher needs it.
    faults = set(PASSING) - {"late"}
    faulty = FaultyPlace(place, seed, faults, rate=0.02, delay=0.01)
    with Publisher(faulty, trainer.base, keep=3) as publisher:
        for n in range(start + 1, num + 1):
            if n == num:
                faulty.heal()
            with suppress(SyncError):
                publisher.publish(trainer.step(), step=n)
                publisher.wait()


def follow(url: str, options: Mapping[str, Any], folder: Path, name: str, seed: int) -> None:
    """Follow until the file `stop` is there; the slow one in memory, others on disk."""
    place = open_place(url, **options)
    trainer = Trainer(folder / f"base-{seed}", SEED)
    holder: Holder = FolderHolder(folder / name, trainer.base)
    if name == "slow":
        holder = Memory(trainer.first, has_base=True)
    faulty = FaultyPlace(place, seed, LASTING, rate=0.03, delay=0.01)
    with Follower(faulty, holder, name=name) as follower:
        while not (folder / "stop").exists():
            with suppress(SyncError, DeltaError):
                follower.update()
            if follower.version is not None:
                time.sleep(0.5 if name == "slow" else 0.02)
    faulty.heal()
    with Follower(faulty, holder, name=name) as follower:  # what it said before may be lost
        follower.update()


def warm_up() -> None:
    """Compile what a process needs to publish and follow; those that are forked have it then."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Path(folder, "base"), SEED)
        with Publisher(f"{folder}/place", trainer.base, anchor_every=2, fold_every=2) as publisher:
            for _ in range(4):
                publisher.publish(trainer.step())
        holder = FolderHolder(f"{folder}/out", trainer.base)
        with Follower(f"{folder}/place", holder) as follower:
            follower.update()


def supervise(
    *,
    url: str,
    options: Mapping[str, Any],
    folder: Path,
    num: int,
    seed: int,
    pause: float,
    kills: int = 1000,
) -> Counter[str]:
    """Run all, kill one of them after another, and look at what is acknowledged meanwhile.

    Args:
        url: The place.
        options: Of it.
        folder: For everything else.
        num: Steps of the trainer.
        seed: Of the times of kills and of the faults.
        pause: A process is killed after so many seconds, at most.
        kills: How many are killed, at most.

    Returns:
        How many processes were started and killed, and different acknowledgements seen.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.sync.warm"])
    place, chosen = open_place(url, **options), random.Random(seed)
    trainer = Trainer(folder / "base", SEED)
    for _ in range(num):
        trainer.step()
    count: Counter[str] = Counter()
    seen: set[tuple[str, int, str]] = set()
    running: dict[str, Any] = {}
    ends: dict[str, float] = {}

    def start(name: str) -> None:
        count["start"] += 1
        ends[name] = time.monotonic() + chosen.uniform(0, pause)
        where = url, options, folder
        if name == "publisher":
            process = context.Process(target=publish, args=(*where, num, count["start"]))
        else:
            process = context.Process(target=follow, args=(*where, name, count["start"]))
        process.start()
        running[name] = process

    def look() -> None:
        for said in acknowledgements(place):
            assert trainer.step_of[said.content_hash] <= num  # it is one of the trainer's
            seen.add((said.name, said.version, said.content_hash))
        time.sleep(0.02)

    try:
        for name in ("publisher", "fast", "slow"):
            start(name)
        while running["publisher"].is_alive():
            look()
            if "late" not in running and count["killed"] > 3:
                start("late")
            for name, process in list(running.items()):
                is_over = time.monotonic() > ends[name] and count["killed"] < kills
                if is_over and process.is_alive():
                    process.kill()
                    process.join()
                    count["killed"] += 1
                    start(name)
        (folder / "stop").touch()
        while any(process.is_alive() for process in running.values()):
            look()
    finally:
        for process in running.values():
            process.kill()
            process.join()
    assert {process.exitcode for process in running.values()} == {0}
    expected = hash_of(trainer.arrays)
    there = {said.name: said.content_hash for said in acknowledgements(place)}
    assert there == dict.fromkeys(running.keys() - {"publisher"}, expected)
    count["acknowledgements"] = len(seen)
    return count
