"""Publishers and followers killed before any of their calls that open, write or rename a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import trimtab
from tests.deltas.building import content_of, write_folder
from tests.deltas.killing import killed_at_every_step
from tests.sync.test_follow import first_weights, next_weights

PUBLISH = """
import threading
threading.setprofile(__import__("sys").getprofile())  # the thread that publishes, too
with trimtab.Publisher(
    f"{folder}/place", f"{folder}/v0", anchor_every=2, fold_every=2, keep=1
) as publisher:
    for number in (1, 2):
        publisher.publish(f"{folder}/v{number}")
"""

FOLLOW = """
holder = trimtab.FolderHolder(f"{folder}/out", f"{folder}/v0")
with trimtab.Follower(f"{folder}/place", holder, name="f") as follower:
    follower.update(1)
    follower.update()
"""


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A trainer's checkpoints."""
    arrays = first_weights()
    for number in range(4):
        write_folder(tmp_path / f"start/v{number}", arrays)
        arrays = next_weights(arrays, number)
    return tmp_path / "start"


@pytest.mark.slow
def test_a_publisher_is_killed_anywhere(start: Path, tmp_path: Path) -> None:
    killed, last = killed_at_every_step(start, tmp_path / "killed", PUBLISH, stride=2)
    assert len(killed) > 50
    numbers = set()
    for folder in (*killed, last):
        holder = trimtab.FolderHolder(folder / "out", folder / "v0")
        with trimtab.Follower(folder / "place", holder) as follower:
            follower.update()
            number = follower.version or 0
            numbers.add(number)
            if number:
                assert content_of(folder / "out/current") == content_of(folder / f"v{number}")
            with trimtab.Publisher(folder / "place", folder / "v0") as publisher:
                publisher.publish(folder / "v3")
            follower.update()
            assert content_of(folder / "out/current") == content_of(folder / "v3")
    assert numbers == {0, 1, 2}


@pytest.mark.slow
def test_a_follower_is_killed_anywhere(start: Path, tmp_path: Path) -> None:
    with trimtab.Publisher(start / "place", start / "v0") as publisher:
        for number in (1, 2):
            publisher.publish(start / f"v{number}")
    killed, last = killed_at_every_step(start, tmp_path / "killed", FOLLOW, stride=2)
    assert len(killed) > 20
    for folder in (*killed, last):
        at = folder / "out/current"
        if at.exists():
            assert content_of(at) in [content_of(folder / f"v{number}") for number in (1, 2)]
        path = folder / "place/followers/f.json"
        acknowledged = json.loads(path.read_bytes())["version"] if path.exists() else 0
        if acknowledged:
            assert content_of(at) in [content_of(folder / f"v{n}") for n in (acknowledged, 2)]
        holder = trimtab.FolderHolder(folder / "out", folder / "v0")
        with trimtab.Follower(folder / "place", holder, name="f") as follower:
            follower.update()
            assert follower.version == 2
        assert content_of(at) == content_of(folder / "v2")
