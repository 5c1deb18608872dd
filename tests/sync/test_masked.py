"""A run of which only a mask is trained publishes the mask once, and links over its elements."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trimtab
from tests.deltas.building import content_of, moved, write_folder
from tests.deltas.killing import killed_at_every_step
from tests.sync.test_follow import SHAPES, first_weights
from trimtab.deltas.file import DeltaFile
from trimtab.deltas.masked import mask_file_name
from trimtab.errors import SyncError
from trimtab.sync.chain import read_chain
from trimtab.sync.folder import FolderHolder
from trimtab.sync.follower import Follower
from trimtab.sync.places import open_place
from trimtab.sync.publisher import Publisher


def chosen() -> trimtab.Mask:
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(shape) < 0.2 for name, (_, shape) in SHAPES.items() if name != "c"}
    return trimtab.Mask.from_arrays(arrays)


class Trained:
    """The checkpoint of each version of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mask = chosen()
        self.arrays = first_weights()
        self.folders = [write_folder(folder / "v0", self.arrays)]

    def step(self) -> Path:
        number = len(self.folders)
        after: dict[str, tuple[str, Any]] = {}
        for name, (dtype, bits) in self.arrays.items():
            selected = self.mask.array(name) if name in self.mask else np.zeros(bits.shape, bool)
            new = moved(bits, 0.3, number)
            after[name] = (dtype, np.where(selected, new, bits).astype(bits.dtype))
        self.arrays = after
        self.folders.append(write_folder(self.folder / f"v{number}", after))
        return self.folders[-1]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Trained]:
    yield Trained(tmp_path / "run")


def publish(publisher: Publisher, folder: Path) -> None:
    publisher.publish(folder)
    publisher.wait()


@pytest.mark.parametrize("with_base", [True, False])
def test_followers_get_every_version(run: Trained, tmp_path: Path, with_base: bool) -> None:
    base = run.folders[0] if with_base else None
    place = tmp_path / "place"
    with Publisher(place, base, mask=run.mask, fold_every=4, anchor_every=8) as publisher:
        if not with_base:
            publish(publisher, run.folders[0])
        holder = FolderHolder(tmp_path / "out", base)
        with Follower(place, holder, name="each") as follower:
            for number in range(1, 12):
                publish(publisher, run.step())
                follower.update()
                assert follower.version == number
                assert content_of(tmp_path / "out/current") == content_of(run.folders[number])
        late = FolderHolder(tmp_path / "late", base)
        with Follower(place, late) as follower:
            follower.update()
            assert content_of(tmp_path / "late/current") == content_of(run.folders[11])
        held = publisher._wire.snapshot
        num_held = sum(bits.size for bits in held._bits.values())
        num = sum(bits.size for _, bits in run.arrays.values())
        assert num_held == (run.mask.num_selected() if with_base else num)
    chain = read_chain(open_place(place))
    assert chain is not None
    assert [mask.digest for mask in chain.masks] == [run.mask.digest]
    assert trimtab.Mask.load(place / mask_file_name(run.mask.digest)) == run.mask
    for link in chain.links:
        with DeltaFile(place / link.name) as delta:
            is_masked = delta.manifest.mask == run.mask.digest
            assert is_masked == (link.base is not None)


def test_another_publisher_continues_with_a_mask_or_without(run: Trained, tmp_path: Path) -> None:
    place = tmp_path / "place"
    file = tmp_path / "mask.safetensors"
    run.mask.save(file)
    with Follower(place, FolderHolder(tmp_path / "out", run.folders[0])) as follower:
        for mask in (None, file, run.mask, None, file):
            with Publisher(place, run.folders[0], mask=mask, fold_every=2) as publisher:
                for _ in range(3):
                    publish(publisher, run.step())
            follower.update()
            assert content_of(tmp_path / "out/current") == content_of(run.folders[-1])
    assert follower.version == 15
    chain = read_chain(open_place(place))
    assert chain is not None and len(chain.masks) == 1


def test_what_changes_outside_of_the_mask_is_not_published(run: Trained, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with Publisher(place, run.folders[0], mask=run.mask) as publisher:
        publish(publisher, run.step())
        good = run.arrays
        bits = good["c"][1].copy()
        bits[:2] += 1
        run.arrays = {**good, "c": ("I64", bits)}
        message = "^c: 2 elements changed that the mask does not select"
        with pytest.raises(SyncError, match=message):
            publish(publisher, run.step())
        assert publisher.version == 1
        run.arrays = good
        publish(publisher, run.step())
        assert publisher.version == 2
    # Nor does a publisher with a mask take over a run in which others were trained.
    with Publisher(place, run.folders[0]) as publisher:
        run.arrays = {**run.arrays, "c": ("I64", bits)}
        publish(publisher, run.step())
    with (
        Publisher(place, run.folders[0], mask=run.mask) as publisher,
        pytest.raises(SyncError, match=message),
    ):
        publish(publisher, run.step())


def test_a_place_without_its_mask_or_with_another(run: Trained, tmp_path: Path) -> None:
    place = tmp_path / "place"
    with Publisher(place, run.folders[0], mask=run.mask) as publisher:
        publish(publisher, run.step())
    name = mask_file_name(run.mask.digest)
    content, listed = (place / name).read_bytes(), (place / "chain.json").read_text()
    cases: dict[str, bytes | None] = {"is not there": None, "has more bytes": content + b"0"}
    cases["is damaged"] = content[:-1] + bytes([content[-1] ^ 1])
    other = chosen().random_like(1)
    other.save(tmp_path / "other.safetensors")
    cases[f"is {other.digest}"] = (tmp_path / "other.safetensors").read_bytes()
    holder = FolderHolder(tmp_path / "out", run.folders[0])
    with Follower(place, holder) as follower:
        for message, found in cases.items():
            (place / name).unlink(missing_ok=True)
            if found is not None:
                (place / name).write_bytes(found.ljust(len(content), b"0"))
            if message.startswith(f"is {other.digest}"):  # of another length, perhaps
                chain = json.loads(listed)
                chain["masks"][0]["num_bytes"] = len((place / name).read_bytes())
                (place / "chain.json").write_text(json.dumps(chain))
            with pytest.raises(SyncError, match=message):
                follower.update()
            assert not (tmp_path / "out/current").exists()
        for change in ({"num_bytes": 1 << 40}, {"digest": "../x"}):
            chain = json.loads(listed)
            chain["masks"][0] |= change
            (place / "chain.json").write_text(json.dumps(chain))
            with pytest.raises(SyncError, match=r"a mask has|32 hexadecimal"):
                follower.update()
        (place / "chain.json").write_text(listed)
        (place / name).write_bytes(content)
        follower.update()
        assert content_of(tmp_path / "out/current") == content_of(run.folders[1])


PUBLISH = """
import threading
threading.setprofile(__import__("sys").getprofile())  # the thread that publishes, too
with trimtab.Publisher(
    f"{folder}/place", f"{folder}/v0", mask=f"{folder}/mask.safetensors", anchor_every=2, keep=1
) as publisher:
    for number in (1, 2):
        publisher.publish(f"{folder}/v{number}")
"""


@pytest.mark.slow
def test_a_publisher_is_killed_anywhere(tmp_path: Path) -> None:
    run = Trained(tmp_path / "start")
    for _ in range(3):
        run.step()
    run.mask.save(tmp_path / "start/mask.safetensors")
    killed, last = killed_at_every_step(run.folder, tmp_path / "killed", PUBLISH, stride=11)
    assert len(killed) > 10
    for folder in (*killed, last):
        holder = FolderHolder(folder / "out", folder / "v0")
        with Follower(folder / "place", holder) as follower:
            follower.update()
            if number := follower.version or 0:
                assert content_of(folder / "out/current") == content_of(folder / f"v{number}")
            with Publisher(
                folder / "place", folder / "v0", mask=folder / "mask.safetensors"
            ) as publisher:
                publisher.publish(folder / "v3")
            follower.update()
            assert content_of(folder / "out/current") == content_of(folder / "v3")
    assert number == 2
