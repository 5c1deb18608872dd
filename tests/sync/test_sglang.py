"""SGLang's released code calls our loader, and its workers serve the version, all or none."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.deltas.building import Arrays, moved, random_bits, write_folder
from tests.sync.sglang_worker import Model, unpack
from trimtab.errors import SyncError
from trimtab.sync.engines.client import EngineClient
from trimtab.sync.engines.sglang import (
    TESTED,
    Instruction,
    load,
    sglang_request,
    update_sglang,
)
from trimtab.sync.publisher import Publisher

WORLD = 2


@pytest.fixture(scope="session")
def wheel(released_wheel: Callable[[str, str], Path]) -> Path:
    return released_wheel("sglang", TESTED)


@pytest.fixture
def server(wheel: Path, tmp_path: Path) -> Iterator[str]:
    """Two workers; yields the URL."""
    folder = tmp_path / "server"
    folder.mkdir()
    unpack(wheel, folder)
    processes = []
    for rank in range(WORLD):
        (at := tmp_path / f"rank{rank}").mkdir()
        command = [sys.executable, "-m", "tests.sync.sglang_worker", str(folder), f"{rank}", "2"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (folder / f"log{rank}").open("w") as log:
            processes.append(subprocess.Popen(command, cwd=at, env=environment, stderr=log))
    try:
        port = folder / "port"
        for _ in range(1200):
            if port.exists() and port.read_text():
                break
            for rank, process in enumerate(processes):
                assert process.poll() is None, (folder / f"log{rank}").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port.read_text()}"
    finally:
        for process in processes:
            process.kill()
            process.wait()


def digest_of(arrays: Arrays) -> str:
    model = Model()
    import torch

    model.load_weights(
        (name, torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16))
        if dtype == "BF16"
        else (name, torch.from_numpy(bits.view(np.float32)))
        for name, (dtype, bits) in arrays.items()
    )
    return model.digest()


def seen(url: str) -> dict[str, Any]:
    answer: dict[str, Any] = EngineClient(url).request("/seen", {})
    return answer


@pytest.mark.slow
def test_workers_follow_all_or_none(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays: dict[str, Any] = {
        name: ("BF16", random_bits("BF16", (8, 8), seed)) for seed, name in enumerate("qkv")
    }
    arrays["norm"] = ("F32", random_bits("F32", (8,), 9))
    base = write_folder(tmp_path / "base", arrays)
    place = tmp_path / "place"
    with pytest.raises(SyncError, match="nothing is published yet"):
        update_sglang(server, place, base=base)
    digests = [digest_of(arrays)]
    with Publisher(place, base) as publisher:
        for number in (1, 2, 3):
            names = "qkv" if number == 1 else "k"
            arrays = arrays | {n: ("BF16", moved(arrays[n][1], 0.1, number)) for n in names}
            publisher.publish(write_folder(tmp_path / f"v{number}", arrays))
            digests.append(digest_of(arrays))

        options: dict[str, Any] = {"base": base, "num_ranks": WORLD}
        done = update_sglang(server, place, 1, **options)
        assert [(each.name, each.version) for each in done] == [("sglang-0", 1), ("sglang-1", 1)]
        assert {"fetch", "decode", "pause", "apply"} <= done[0].seconds.keys()
        now = seen(server)
        expected = {"digest": digests[1], "loaded": [*"qkv", "norm"]}  # what it had, is not known
        assert now["ranks"] == [expected] * WORLD
        assert now["calls"] == [
            *("/pause_generation", "/begin_weight_update", "/update_weights_from_tensor"),
            *("/end_weight_update", "/continue_generation", "/update_weight_version", "/seen"),
        ]
        for version in (3, 3):
            update_sglang(server, place, version, **options)
            assert seen(server)["ranks"] == [{"digest": digests[3], "loaded": ["k"]}] * WORLD

        # One that a single worker can read: the paths are of its own folder.
        (tmp_path / "rank1/place").symlink_to(place)
        arrays = arrays | {"norm": ("F32", moved(arrays["norm"][1], 0.5, 4))}
        publisher.publish(write_folder(tmp_path / "v4", arrays))
        publisher.wait()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SyncError, match=r"version 4 was not loaded by sglang-0, sglang-1: the"):
        update_sglang(server, "place", 4, **options)
    assert seen(server)["ranks"] == [{"digest": digests[3], "loaded": ["k"]}] * WORLD
    logs = [(tmp_path / f"server/log{rank}").read_text() for rank in range(WORLD)]
    assert "version 4 is not loaded: place: there is no version 4" in logs[0]
    assert "version 4 is not loaded: another worker cannot load it" in logs[1]
    update_sglang(server, place, **options)
    assert seen(server)["ranks"] == [{"digest": digest_of(arrays), "loaded": ["norm"]}] * WORLD


def test_the_released_request_has_these_fields(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("sglang/srt/managers/io_struct.py").decode()
    fields = {
        node.name: {each.target.id for each in node.body if isinstance(each, ast.AnnAssign)}  # type: ignore[union-attr]
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
    }
    body = sglang_request(Instruction("place", "base", 1, "name"), 2)
    assert len(body["serialized_named_tensors"]) == 2
    assert body.keys() <= fields["UpdateWeightsFromTensorReqInput"]
    assert {"new_version", "abort_all_requests"} <= fields["UpdateWeightVersionReqInput"]
    assert "mode" in fields["PauseGenerationReqInput"]
    assert "selector" in fields["BeginWeightUpdateReqInput"]


def test_what_is_no_instruction(tmp_path: Path) -> None:
    with pytest.raises(SyncError, match="found q: expected an instruction of trimtab"):
        load(Model(), [("q", None)])  # type: ignore[list-item]
    with pytest.raises(SyncError, match="no server answers"):
        update_sglang("http://127.0.0.1:9", tmp_path, 1, base="base", timeout=1)
