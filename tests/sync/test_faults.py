"""Publishers and followers at places that fail: nothing but the versions of the trainer is held."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

import pytest

from tests.deltas.building import Arrays, moved, random_bits, write_folder
from tests.sync.faulty import FAULTS, FaultyPlace, InjectedError
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.deltas.chain import Replay, opened_chain
from trimtab.deltas.manifest import Manifest
from trimtab.deltas.source import NOTHING, Source, Weights, hash_of_chunks, source_of
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import DeltaError, SyncError
from trimtab.results.records import record_of_tensors
from trimtab.sync.chain import CHAIN, read_chain
from trimtab.sync.follower import Follower, Start, acknowledgements
from trimtab.sync.places import Place, open_place
from trimtab.sync.publisher import Publisher
from trimtab.sync.snapshot import HeldTensor

SHAPES = {"a.weight": ("BF16", (48, 16)), "b.weight": ("F32", (40,)), "c": ("I64", (3,))}

PASSING = sorted(set(FAULTS) - {"stale", "lost", "cut"})
"""Of a publisher, which sees what it put itself; what it put is there some time."""

LASTING = sorted({*PASSING, "lost", "cut"})
"""Of one whose files may be lost; another one needs version 0 then."""


def hash_of(arrays: Arrays) -> str:
    rows = (
        (name, dtype, bits.shape, hash_of_chunks([bits.reshape(-1)]))
        for name, (dtype, bits) in arrays.items()
    )
    return record_of_tensors(rows, id="w", revision=None, architecture=None).content_hash


def held(arrays: Arrays) -> dict[str, HeldTensor]:
    return {
        name: HeldTensor(name, DTYPES[dtype], bits.copy()) for name, (dtype, bits) in arrays.items()
    }


class Trainer:
    """Weights that change with each step, and what they were."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        self.arrays: Arrays = {
            name: (dtype, random_bits(dtype, shape, seed + n))
            for n, (name, (dtype, shape)) in enumerate(SHAPES.items())
        }
        self.base = write_folder(folder, self.arrays)
        with open_checkpoint(self.base) as checkpoint:
            self.source = source_of(checkpoint)
        self.first = dict(self.arrays)
        self.step_of = {hash_of(self.arrays): 0}

    def step(self) -> Source:
        number = len(self.step_of)
        self.arrays = {
            name: (dtype, moved(bits, 0.05, 1000 * self.seed + number))
            for name, (dtype, bits) in self.arrays.items()
        }
        self.step_of[hash_of(self.arrays)] = number
        return replace(self.source, tensors=held(self.arrays))


class Memory:
    """A holder of weights in memory, which hashes what it really has.

    Args:
        base: The weights that it begins with; None for nothing.
        has_base: Whether it can return to them.
    """

    def __init__(self, base: Arrays | None, *, has_base: bool) -> None:
        self.arrays, self._base, self.has_base = base, base, has_base
        self.was: list[str] = []

    def content_hash(self) -> str | None:
        return None if self.arrays is None else hash_of(self.arrays)

    def apply(self, deltas: Sequence[Path], start: Start, seconds: dict[str, float]) -> Manifest:
        arrays = {"own": self.arrays, "base": self._base, "nothing": None}[start]
        base = NOTHING
        if arrays is not None:
            base = Weights("memory", held(arrays), {}, Path())
        with opened_chain(deltas) as chain:
            replay = Replay(base, chain)
            entries = replay.manifest.tensors
            self.arrays = {e.name: (e.dtype, replay.tensor(e)) for e in entries}
            self.was.append(hash_of(self.arrays))
            return replay.manifest


class Following:
    """A follower that may be restarted, and all that it ever held."""

    def __init__(self, place: Place, holder: Memory, name: str) -> None:
        self.place, self.holder, self.name = place, holder, name
        self.errors: list[str] = []
        self.starts: list[int] = []
        self.restart()

    @property
    def lives(self) -> list[list[str]]:
        """What was held between restarts."""
        ends = [*self.starts, len(self.holder.was)]
        return [self.holder.was[start:end] for start, end in pairwise(ends)]

    def restart(self) -> None:
        self.starts.append(len(self.holder.was))
        self.follower = Follower(self.place, self.holder, name=self.name)

    def update(self) -> None:
        try:
            self.follower.update()
        except (SyncError, DeltaError) as error:
            self.errors.append(str(error))


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("faults", [PASSING, LASTING], ids=["passing", "lasting"])
def test_whatever_fails_only_versions_are_held(
    has_base: bool, faults: list[str], tmp_path: Path, seed: int = 0, num: int = 40
) -> None:
    """Followers of different speed, late ones, restarts on both sides, and every fault."""
    random = Random(seed)
    place = open_place(f"memory://{uuid4().hex}/run")
    trainer = Trainer(tmp_path / "base", seed)
    near = FaultyPlace(place, seed, faults, rate=0.03)
    options: dict[str, Any] = {"base": trainer.base if has_base else None, "keep": 3}
    publisher = Publisher(near, **options)
    followers: list[Following] = []
    places: list[FaultyPlace] = []

    def join(name: str) -> None:
        places.append(FaultyPlace(place, 100 * seed + len(places)))
        holder = Memory(trainer.first if has_base else None, has_base=has_base)
        followers.append(Following(places[-1], holder, name))

    join("fast")
    join("slow")
    errors: list[str] = []
    for n in range(1, num + 1):
        source = trainer.step()
        try:
            publisher.publish(source, step=n)
            publisher.wait()
        except SyncError as error:
            errors.append(str(error))
        is_over = bool(errors) and "took over" in errors.pop()
        if (faults is PASSING or has_base) and (is_over or random.random() < 0.05 or n == num // 2):
            publisher.close()
            publisher = Publisher(near, **options)
        if n == num // 2:
            join("late")
        for following in followers:
            if following.name != "slow" or random.random() < 0.1:
                following.update()
            if random.random() < 0.05:
                following.restart()
        for said in acknowledgements(place):
            assert said.content_hash in trainer.step_of
    for faulty in (near, *places):
        faulty.heal()
    for n in range(num + 1, num + 20):  # one of them has an anchor
        with suppress(SyncError):
            publisher.publish(trainer.step(), step=n)
            publisher.wait()
    publisher.close()
    expected = hash_of(trainer.arrays)
    join("last")
    places[-1].heal()
    for following in followers:
        following.errors.clear()
        following.update()
        assert following.holder.content_hash() == expected, (following.name, following.errors)
        for life in following.lives:
            steps = [trainer.step_of[each] for each in life]
            assert steps == sorted(steps)  # never back, unless it forgot what it had
    there = {each.name: each.content_hash for each in acknowledgements(place)}
    assert there == {following.name: expected for following in followers}
    assert sum(near.counts.values()) > num // 4


def test_a_file_that_is_lost_is_gone_round(tmp_path: Path) -> None:
    place, trainer = open_place(f"memory://{uuid4().hex}/run"), Trainer(tmp_path / "base", 1)
    holder = Memory(trainer.first, has_base=True)
    options: dict[str, Any] = {"base": trainer.base, "anchor_every": 4, "fold_every": 0}
    with Publisher(place, **options) as publisher, Follower(place, holder, name="f") as follower:
        for n in range(1, 7):
            publisher.publish(trainer.step(), step=n)
            publisher.wait()
            if n == 2:
                follower.update()
        lost = next(name for name in place.names() if name.startswith("v000004-"))
        place.remove(lost)
        update = follower.update()
        assert update is not None
        assert [name.rpartition("-")[0] for name in update.links] == [
            *("v000000-000004", "v000005", "v000006"),
        ]
        assert holder.content_hash() == hash_of(trainer.arrays)
        # Another publisher goes round it, too.
        with Publisher(place, **options) as other:
            assert other.publish(trainer.step()) == 7
        # Without another way the file is named.
        place.remove(next(name for name in place.names() if name.startswith("v000007-")))
        with pytest.raises(SyncError, match=r"v000007-.*, which leads to version 7, is not there"):
            follower.update()
        assert follower.version == 6


def test_what_is_stored_and_not_listed_is_removed(tmp_path: Path) -> None:
    """After errors, and by the next publisher."""
    place, trainer = open_place(f"memory://{uuid4().hex}/run"), Trainer(tmp_path / "base", 1)
    near = FaultyPlace(place, 0, ())
    options: dict[str, Any] = {"base": trainer.base, "keep": 1, "anchor_every": 0}

    def unlisted() -> set[str]:
        chain = read_chain(place)
        assert chain is not None
        return {*place.names()} - {CHAIN} - {link.name for link in chain.links}

    for _ in range(2):
        with Publisher(near, **options) as publisher:
            publisher.publish(trainer.step())
            publisher.wait()
            near.faults, near.rate = ("error",), 1.0
            with pytest.raises(InjectedError):
                for _ in range(2):
                    publisher.publish(trainer.step())
                    publisher.wait()
            near.faults = ()
            place.put("v000099-01234567.delta", b"of one that was killed")
            place.put("v000099-notes.delta", b"of somebody else")
    with Publisher(near, **options) as publisher:
        publisher.publish(trainer.step())
        publisher.wait()
        assert unlisted() == {"v000099-notes.delta"}


@pytest.mark.parametrize("has_base", [True, False])
def test_a_publisher_continues_although_the_newest_version_is_lost(
    has_base: bool, tmp_path: Path
) -> None:
    place, trainer = open_place(f"memory://{uuid4().hex}/run"), Trainer(tmp_path / "base", 1)
    options: dict[str, Any] = {"base": trainer.base if has_base else None, "anchor_every": 0}
    holder = Memory(trainer.first if has_base else None, has_base=has_base)

    def publish(publisher: Publisher) -> None:
        publisher.publish(trainer.step())
        publisher.wait()
        assert publisher.version == len(trainer.step_of) - 1

    with Follower(place, holder, name="f") as follower:
        with Publisher(place, **options) as publisher:
            if not has_base:
                publisher.publish(replace(trainer.source, tensors=held(trainer.arrays)))
            for _ in range(3):
                publish(publisher)
        follower.update()
        place.remove(next(name for name in place.names() if name.startswith("v000002-")))
        with Publisher(place, **options) as publisher:
            for _ in range(6):  # over a folded link, too
                publish(publisher)
                follower.update()
                assert holder.content_hash() == hash_of(trainer.arrays)
        late = Memory(trainer.first if has_base else None, has_base=has_base)
        Follower(place, late, name="late").update()
        assert late.content_hash() == hash_of(trainer.arrays)
