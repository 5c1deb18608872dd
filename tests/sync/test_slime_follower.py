"""A folder follows a run in slime's layout, also one that others write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.sync.test_slime_wire import Folders, is_same
from trimtab.deltas.exchange.slime import INDEX
from trimtab.errors import DeltaError, OutputExistsError, SyncError
from trimtab.sync.publisher import Publisher
from trimtab.sync.slime_follower import SlimeFollower


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("run"), 8)


def test_a_folder_follows_what_trimtab_publishes(tmp_path: Path, runs: Folders) -> None:
    place, out = tmp_path / "place", tmp_path / "out"
    follower = SlimeFollower(place, out, runs[0])
    late = SlimeFollower(place, tmp_path / "late")
    assert follower.update() is None and follower.version is None
    with Publisher(place, runs[0], wire="slime", anchor_every=4, keep=1) as publisher:
        for number in range(1, 7):
            publisher.publish(runs[number])
            publisher.wait()
            if number == 2:
                with pytest.raises(SyncError, match=r"from version 0 to 2, .* has none: give the"):
                    late.update()
            if number == 3:
                continue
            update = follower.update()
            assert update is not None
            assert update.version == follower.version == number
            assert is_same(out / "current", runs[number])
            # An anchor takes the place of the delta.
            assert len(update.links) == 1
        assert follower.update() is None
        assert {path.name for path in out.iterdir()} == {
            *("current", "weight_v000005", "weight_v000006"),
        }
    found = late.update()
    assert found is not None
    assert found.links == ("weight_v000004", "weight_v000005", "weight_v000006")
    assert is_same(tmp_path / "late/current", runs[6])
    assert SlimeFollower(place, out).version == 6  # another process
    with pytest.raises(OutputExistsError, match="holds something else"):
        SlimeFollower(place, runs[0])


def test_what_is_damaged(tmp_path: Path, runs: Folders) -> None:
    place = tmp_path / "place"
    with Publisher(place, None, wire="slime") as publisher:
        for number in range(3):
            publisher.publish(runs[number])
            publisher.wait()
    follower = SlimeFollower(place, tmp_path / "out")
    follower.update()
    whole = next((place / "weight_v000000").glob("*.safetensors"))
    for path, message in (
        (whole, "has checksum .*: it is damaged; copy it again"),
        (next((place / "weight_v000002").glob("*.safetensors")), "cannot be decompressed|checksum"),
        (place / "weight_v000001" / INDEX, "not JSON"),
    ):
        kept = path.read_bytes()
        path.write_bytes(kept[:-2] + bytes(2))
        with pytest.raises(DeltaError, match=message):
            SlimeFollower(place, tmp_path / "other").update()
        assert not (tmp_path / "other/current").exists()
        path.write_bytes(kept)
    index = json.loads((place / "weight_v000002" / INDEX).read_text())
    for base, error, message in (
        ("000002", SyncError, "leads from version 2 back"),
        ("initial", DeltaError, "its base_version is no number"),
    ):
        index["metadata"]["base_version"] = base
        (place / "weight_v000002" / INDEX).write_text(json.dumps(index))
        with pytest.raises(error, match=message):
            SlimeFollower(place, tmp_path / "other").update()
    (place / "weight_v000002" / INDEX).unlink()  # not complete
    update = SlimeFollower(place, tmp_path / "other").update()
    assert update is not None and update.version == 1
    shutil.rmtree(place)
    assert follower.update() is None and follower.version == 2
