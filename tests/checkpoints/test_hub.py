"""The hub, played by a server on this machine, and its cache. Nothing leaves 127.0.0.1.

huggingface_hub reads its settings when it is imported, so each opening has its own process.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.building import random_bits, tensors_bytes
from tests.forks import Forks

COMMITS = {"main": "a" * 40, "step-100": "b" * 40}
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
WHOLE = tensors_bytes({"w": random_bits((3, 4))})
SHARD_NAMES = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
REPOSITORIES: dict[str, dict[str, bytes]] = {
    "org/whole": {
        "config.json": CONFIG,
        "model.safetensors": WHOLE,
        "pytorch_model.bin": b"not wanted",
        "README.md": b"not wanted",
    },
    "org/sharded": {
        "config.json": CONFIG,
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {"v": SHARD_NAMES[0], "w": SHARD_NAMES[1]}}
        ).encode(),
        SHARD_NAMES[0]: tensors_bytes({"v": random_bits((2,))}),
        SHARD_NAMES[1]: WHOLE,
        "consolidated.safetensors": b"not wanted",
    },
    "org/old": {"pytorch_model.bin": b"no zip", "tf_model.h5": b"not wanted"},
    "org/gguf": {"q4.gguf": b"GGUF"},
    "org/adapter": {"adapter_config.json": b"{}", "adapter_model.safetensors": WHOLE},
}

SCRIPT = """
import json, sys
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import CheckpointError

def opened(ref):
    try:
        with open_checkpoint(ref) as checkpoint:
            return {
                "id": checkpoint.id,
                "revision": checkpoint.revision,
                "architecture": checkpoint.architecture,
                "tensors": {name: t.read().tolist() for name, t in checkpoint.tensors.items()},
            }
    except CheckpointError as error:
        return {"error": str(error), "class": type(error).__name__}

print(json.dumps([*map(opened, sys.argv[1:])]))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloading takes."""

    protocol_version = "HTTP/1.1"
    downloads: list[str]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        words = self.path.partition("?")[0].strip("/").split("/")
        api = words[0] == "api"
        if api:
            words = words[2:]
        files = REPOSITORIES.get("/".join(words[:2]))
        if words[:2] == ["org", "gated"]:
            return self.reply(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        if files is None:
            return self.reply(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)
        revision = words[3] if len(words) > 3 else "main"
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values():
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, with_body)
        if api and words[2:3] == ["tree"]:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": self.etag(data)}
                for name, data in files.items()
            ]
            return self.reply(200, json.dumps(tree).encode(), {}, with_body)
        if api:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": "/".join(words[:2]), "sha": commit, "siblings": siblings}
            return self.reply(200, json.dumps(info).encode(), {}, with_body)
        name = "/".join(words[4:])
        data = files.get(name)
        if data is None:
            return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, with_body)
        if with_body:
            self.downloads.append(name)
        headers = {"ETag": f'"{self.etag(data)}"', "X-Repo-Commit": commit}
        return self.reply(200, data, headers, with_body)

    @staticmethod
    def etag(data: bytes) -> str:
        return hashlib.sha1(data).hexdigest()

    def reply(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """Address of a running stand-in, and the files that were downloaded from it."""
    downloads: list[str] = []
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (Hub,), {"downloads": downloads})
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", downloads
    server.shutdown()
    thread.join()
    server.server_close()


def open_in_process(
    forks: Forks, ref: str, cache: Path, endpoint: str, *, offline: bool = False
) -> dict[str, Any]:
    """What a process of its own, with a cache of its own, finds in a checkpoint."""
    (found,) = open_all(forks, [ref], cache, endpoint, offline=offline)
    return found


def open_all(
    forks: Forks, refs: Sequence[str], cache: Path, endpoint: str, *, offline: bool = False
) -> list[dict[str, Any]]:
    """The same of several, one after the other in one process."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = forks.run(SCRIPT, *refs, folder=cache, environment=environment)
    assert "Traceback" not in done.stderr, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    assert not any("\n" in result.get("error", "") for result in results)
    return results


NOWHERE = "http://127.0.0.1:9"
"""The discard port: nobody answers."""


def test_only_the_weights_are_downloaded_and_once(
    forks: Forks, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, downloads = hub
    first = open_in_process(forks, "org/whole", tmp_path, endpoint)
    assert first == {
        "id": "org/whole",
        "revision": COMMITS["main"],
        "architecture": "LlamaForCausalLM",
        "tensors": {"w": random_bits((3, 4)).tolist()},
    }
    assert sorted(downloads) == ["config.json", "model.safetensors"]
    assert open_in_process(forks, "org/whole", tmp_path, endpoint) == first
    assert len(downloads) == 2
    assert open_in_process(forks, "org/whole", tmp_path, NOWHERE, offline=True) == first


def test_shards_of_a_revision_and_the_cache_without_a_network(
    forks: Forks, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, downloads = hub
    first = open_in_process(forks, "org/sharded@step-100", tmp_path, endpoint)
    assert first["revision"] == COMMITS["step-100"]
    assert list(first["tensors"]) == ["v", "w"]
    assert sorted(downloads) == ["config.json", *SHARD_NAMES, "model.safetensors.index.json"]
    assert open_in_process(forks, "org/sharded@step-100", tmp_path, NOWHERE) == first
    other = open_in_process(forks, "org/sharded", tmp_path, NOWHERE)
    assert other["class"] == "CheckpointNotFoundError"


REFUSED = {
    "org/absent": ("CheckpointNotFoundError", "the hub has no such repository"),
    "org/whole@absent": ("CheckpointNotFoundError", "the repository has no such revision"),
    "org/gated": ("CheckpointNotFoundError", "it is gated: accept its terms"),
    "org/gguf": ("CheckpointError", "the repository holds none of model.safetensors"),
    "org/adapter": ("CheckpointError", "a LoRA adapter"),
    "org/old": ("CheckpointError", "pytorch_model.bin: not a zip file of torch.save"),
    "org/--x": ("CheckpointNotFoundError", "it is not a hub id"),
}
"""What the hub does not have -> what is said of it."""


def test_what_the_hub_does_not_have(
    forks: Forks, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    found = open_all(forks, list(REFUSED), tmp_path, hub[0])
    for result, (kind, expected) in zip(found, REFUSED.values(), strict=True):
        assert result["class"] == kind
        assert expected in result["error"]


@pytest.mark.parametrize("offline", [False, True])
def test_no_network(forks: Forks, tmp_path: Path, offline: bool) -> None:
    found = open_in_process(forks, "org/whole@v1", tmp_path, NOWHERE, offline=offline)
    assert found == {
        "class": "CheckpointNotFoundError",
        "error": "org/whole@v1: no such local path, and not taken from the hub: "
        "the hub cannot be reached and the local cache does not hold it",
    }


def test_a_local_folder_wins_over_the_hub(
    forks: Forks, hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    endpoint, downloads = hub
    (tmp_path / "org" / "whole").mkdir(parents=True)
    (tmp_path / "org" / "whole" / "model.safetensors").write_bytes(
        tensors_bytes({"local": random_bits((1,))})
    )
    found = open_in_process(forks, "org/whole", tmp_path, endpoint)
    assert (found["revision"], list(found["tensors"])) == (None, ["local"])
    assert downloads == []
