"""A run published in slime's layout is what CoreWeave's own reader makes of it, bit for bit."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from tests.deltas.building import Arrays, write_folder
from tests.deltas.exchange.pairs import bits_in
from tests.sync.test_follow import first_weights, next_weights
from trimtab.deltas.exchange.importing import import_delta
from trimtab.deltas.exchange.slime import INDEX
from trimtab.errors import SettingsError, SyncError
from trimtab.sync.places import FolderPlace, open_place
from trimtab.sync.publisher import Publisher
from trimtab.sync.slime_wire import STATE


class Folders:
    """The checkpoints of a run: number -> folder."""

    def __init__(self, folder: Path, num: int) -> None:
        arrays = first_weights()
        self.folders: list[Path] = []
        for number in range(num + 1):
            shards: list[Arrays] = [
                {name: arrays[name] for name in names}
                for names in (["a.weight", "c"], ["b.weight"])
            ]
            self.folders.append(write_folder(folder / f"v{number}", *shards))
            arrays = next_weights(arrays, number + 1)

    def __getitem__(self, number: int) -> Path:
        return self.folders[number]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory.mktemp("run"), 10)


def is_same(folder: Path, expected: Path) -> bool:
    found, wanted = bits_in(folder), bits_in(expected)
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[name], wanted[name]) for name in wanted
    )


def publish(place: Any, runs: Folders, numbers: range, **settings: Any) -> None:
    settings.setdefault("base", runs[0])
    with Publisher(place, wire="slime", **settings) as publisher:
        for number in numbers:
            assert publisher.publish(runs[number], step=number) == number
            publisher.wait()


def versions_at(place: Path) -> list[int]:
    return [int(path.name[-6:]) for path in sorted(place.glob("weight_v*"))]


def test_coreweave_replays_a_chain(tmp_path: Path, runs: Folders) -> None:
    pytest.importorskip("cwtrain", reason="cwtrain is not installed: see the Makefile")
    from cwtrain.hotload import inspect_snapshot
    from cwtrain.hotload.mirror import WeightMirror

    place = tmp_path / "place"
    publish(place, runs, range(1, 11), anchor_every=0)
    mirror = WeightMirror.create(runs[0], tmp_path / "mirror", version="0", workers=1)
    for number in range(1, 11):
        folder = place / f"weight_v{number:06}"
        assert inspect_snapshot(folder).is_incremental
        assert mirror.apply_delta(folder).version == f"{number:06}"
        assert is_same(mirror.root, runs[number])


def test_coreweave_begins_at_an_anchor(tmp_path: Path, runs: Folders) -> None:
    pytest.importorskip("cwtrain", reason="cwtrain is not installed: see the Makefile")
    from cwtrain.hotload import inspect_snapshot
    from cwtrain.hotload.delta import checkpoint_checksums
    from cwtrain.hotload.mirror import WeightMirror, tensor_locations

    place = tmp_path / "place"
    publish(place, runs, range(1, 11), anchor_every=4, keep=2)
    assert versions_at(place) == [7, 8, 9, 10]  # 7 is no longer needed, and goes with the next
    anchor = place / "weight_v000008"
    assert not inspect_snapshot(anchor).is_incremental
    assert is_same(anchor, runs[8])
    assert (anchor / "tokenizer.json").read_bytes() == (runs[8] / "tokenizer.json").read_bytes()
    index = json.loads((anchor / INDEX).read_text())
    assert index["metadata"]["version"] == "000008"
    assert {name: place_of.path.name for name, place_of in tensor_locations(anchor).items()} == (
        index["weight_map"]
    )
    digests: dict[str, str] = {}
    for path in anchor.glob("*.safetensors"):
        raw = path.read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        digests |= header["__metadata__"]
    assert digests.pop("format") == "pt"
    assert digests == checkpoint_checksums(anchor)
    mirror = WeightMirror.create(anchor, tmp_path / "mirror", version="8", workers=1)
    for number in (9, 10):
        mirror.apply_delta(place / f"weight_v{number:06}")
    assert is_same(mirror.root, runs[10])


def test_modelexpress_replays_from_a_bucket(
    tmp_path: Path,
    runs: Folders,
    released_wheel: Callable[[str, str], Path],
    bucket: str,
    s3_options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NVIDIA's own reader and S3 client; its server, which names versions, is not run."""
    pytest.importorskip("boto3")
    with zipfile.ZipFile(released_wheel("modelexpress", "0.7.0")) as wheel:
        wheel.extractall(tmp_path / "wheel")
    for name in ("", ".inference"):  # without what imports gRPC and vLLM
        package = ModuleType(f"modelexpress_rl{name}")
        package.__path__ = [str(tmp_path / f"wheel/modelexpress_rl{name.replace('.', '/')}")]
        monkeypatch.setitem(sys.modules, package.__name__, package)
    formats = Enum("formats", ["XOR_DELTA", "FULL_HF_CHECKPOINT"])
    train = ModuleType("modelexpress_rl.train")
    vars(train)["WeightPayloadFormat"] = formats
    monkeypatch.setitem(sys.modules, "modelexpress_rl.train", train)
    receiver: Any = import_module("modelexpress_rl.inference.receiver")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_options["secret"])
    place = f"{bucket}/slime"
    publish(open_place(place, **s3_options), runs, range(1, 11), anchor_every=4, keep=10)
    local = receiver._LocalCheckpoint(
        model_name="model",
        config=receiver.ObjectStorageGeneratorConfig(
            storage_type=receiver.ObjectStorageType.S3,
            initial_base_version_id="000000",
            seed_checkpoint_path=runs[0],
            refit_checkpoint_dir=tmp_path / "cache",
        ),
        s3=receiver.S3Client(endpoint_url=s3_options["endpoint_url"], region_name="us-east-1"),
    )
    local.initialize()
    for number in range(1, 11):
        is_whole = number % 4 == 0
        kind = formats["FULL_HF_CHECKPOINT" if is_whole else "XOR_DELTA"]
        prepared = local.prepare(
            receiver._S3Version(
                f"{number:06}",
                None if is_whole else f"{number - 1:06}",
                kind,
                f"{place}/weight_v{number:06}/{INDEX}",
            )
        )
        local.activate(prepared)
        assert is_same(prepared.path, runs[number])


@pytest.mark.parametrize("checksum", ["xxh3-128", "blake3"])
def test_other_checksums(tmp_path: Path, runs: Folders, checksum: str) -> None:
    if checksum == "blake3":
        pytest.importorskip("blake3")
    place = tmp_path / "place"
    publish(place, runs, range(1, 4), checksum=checksum)
    own = runs[0]
    for number in range(1, 4):
        folder = place / f"weight_v{number:06}"
        assert json.loads((folder / INDEX).read_text())["metadata"]["checksum_format"] == checksum
        import_delta(own, folder, tmp_path / f"result{number}", base_version=number - 1)
        own = tmp_path / f"result{number}"
    assert is_same(own, runs[3])


def in_memory(tmp_path: Path) -> Any:
    pytest.importorskip("fsspec")
    return open_place(f"memory://slime-{uuid4().hex}/run")


@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("opened", [lambda path: FolderPlace(path / "place"), in_memory])
def test_a_publisher_takes_over(
    tmp_path: Path, runs: Folders, has_base: bool, opened: Callable[[Path], Any]
) -> None:
    place = opened(tmp_path)
    settings: dict[str, Any] = {"base": runs[0] if has_base else None, "anchor_every": 5, "keep": 1}
    with Publisher(place, wire="slime", **settings) as first:
        first.publish(runs[0])
        for number in range(1, 4):
            assert first.publish(runs[number]) == number
        first.wait()
        publish(place, runs, range(4, 8), **settings)
        first.publish(runs[8])
        with pytest.raises(SyncError, match="another publisher took over"):
            first.wait()
    publish(place, runs, range(8, 11), **settings)
    own = read(place, "weight_v000010", tmp_path / "anchor")
    assert is_same(own, runs[10])
    with pytest.raises(SyncError, match="with other weights than"):
        publish(place, runs, range(1, 2), base=runs[1])


def read(place: Any, name: str, target: Path) -> Path:
    target.mkdir()
    for file in place.names(name):
        (target / file).write_bytes(place.read(f"{name}/{file}", 1 << 30))
    return target


def test_a_version_is_there_once_its_index_is(
    tmp_path: Path, runs: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FolderPlace(tmp_path / "place")
    put, fails = FolderPlace.put, [""]

    def failing(self: FolderPlace, name: str, content: Any) -> None:
        is_late = fails[0].endswith("!")
        if is_late:
            put(self, name, content)
        if name == fails[0].rstrip("!"):
            raise SyncError("the network is gone")
        if not is_late:
            put(self, name, content)

    monkeypatch.setattr(FolderPlace, "put", failing)
    with Publisher(place, runs[0], wire="slime") as publisher:
        publisher.publish(runs[1])
        names = (f"weight_v000002/{INDEX}", STATE, f"weight_v000004/{INDEX}!", f"{STATE}!")
        for number, name in zip((2, 4, 6, 8), names, strict=True):
            publisher.wait()
            fails[0] = name
            publisher.publish(runs[number])
            with pytest.raises(SyncError, match="the network is gone"):
                publisher.wait()
            fails[0] = ""
            publisher.publish(runs[number + 1])
        publisher.wait()
        assert publisher.version == 6
    own = runs[0]
    for version in range(1, 7):
        import_delta(own, tmp_path / f"place/weight_v{version:06}", tmp_path / f"own{version}")
        own = tmp_path / f"own{version}"
    assert is_same(tmp_path / "own4", runs[6])  # its index was stored all the same
    assert is_same(own, runs[9])

    # Killed after it said what it would publish, and before it did.
    with Publisher(place, runs[0], wire="slime") as publisher:
        fails[0] = f"weight_v000007/{INDEX}"
        assert publisher.publish(runs[10]) == 7
        with pytest.raises(SyncError):
            publisher.wait()
    fails[0] = ""
    with Publisher(place, runs[0], wire="slime") as publisher:
        assert publisher.publish(runs[8]) == 7
        publisher.wait()
    import_delta(own, tmp_path / "place/weight_v000007", tmp_path / "last")
    assert is_same(tmp_path / "last", runs[8])


def test_what_is_refused(tmp_path: Path, runs: Folders) -> None:
    with Publisher(tmp_path / "chain", runs[0]) as publisher:
        publisher.publish(runs[1])
    with pytest.raises(SyncError, match="in trimtab's own layout is there"):
        publish(tmp_path / "chain", runs, range(1, 2))
    publish(tmp_path / "slime", runs, range(1, 3))
    with (
        Publisher(tmp_path / "slime", runs[0]) as publisher,
        pytest.raises(SyncError, match="a run in slime's layout is there"),
    ):
        publisher.publish(runs[1])
    with Publisher(tmp_path / "slime", runs[0], wire="slime") as publisher:
        publisher.publish(runs[2])
        assert publisher.acknowledged() == ()
        with pytest.raises(SyncError, match="do not say which version they have"):
            publisher.wait_for(1)
    with pytest.raises(SyncError, match="give that base"):
        publish(tmp_path / "slime", runs, range(3, 4), base=None)
    index = tmp_path / "slime/weight_v000002/model-00000-of-00001.safetensors"
    index.write_bytes(index.read_bytes()[:-1] + b"\0")
    with pytest.raises(SyncError, match="it is damaged: publish to another place"):
        publish(tmp_path / "slime", runs, range(3, 4))
    (tmp_path / "slime" / STATE).unlink()
    with pytest.raises(SyncError, match="weight_v000001 of another publisher is there"):
        publish(tmp_path / "slime", runs, range(1, 2))
    more = write_folder(tmp_path / "more", {**first_weights(), "d": ("BF16", np.zeros(3, "u2"))})
    with pytest.raises(SyncError, match="d: only in the base"):
        publish(tmp_path / "other", runs, range(1, 2), base=more)
    for settings in ({"wire": "miles"}, {"wire": "slime", "checksum": "md5"}):
        with pytest.raises(SettingsError, match=r"expected trimtab or slime, and adler32, xxh3"):
            Publisher(tmp_path / "other", **settings)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="slime's layout has no signatures"):
        Publisher(tmp_path / "other", wire="slime", signing_key=tmp_path / "key")
