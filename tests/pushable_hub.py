"""A stand-in of the hub that takes commits, and processes that use it.

huggingface_hub reads its settings when it is imported, so each use has its own process.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

from tests.checkpoints.test_hub import COMMITS, REPOSITORIES, Hub
from tests.forks import Forks


class PushableHub(Hub):
    """The stand-in, which takes commits too."""

    creations: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        words = self.path.partition("?")[0].strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.reply(401, b"{}", {}, with_body=True)
        answer: dict[str, Any] = {}
        if words[-2:] == ["repos", "create"]:
            asked = json.loads(body)
            self.creations.append(asked)
            id = f"{asked['organization']}/{asked['name']}"
            REPOSITORIES.setdefault(id, {})
            answer = {"url": f"http://{self.headers['Host']}/{id}"}
        elif words[-2] == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer["files"] = [
                {"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths
            ]
        elif words[-2] == "commit":
            files = REPOSITORIES["/".join(words[2:4])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"http://{self.headers['Host']}/{words[2]}/{words[3]}/commit/{COMMITS['main']}"
            answer = {"commitUrl": url, "commitOid": COMMITS["main"]}
        else:
            assert words[-1] == "validate-yaml", words
            answer = {"errors": [], "warnings": []}
        return self.reply(200, json.dumps(answer).encode(), {}, with_body=True)


class Running(NamedTuple):
    """A running stand-in, and the processes that use it."""

    forks: Forks
    endpoint: str
    downloads: list[str]
    creations: list[dict[str, Any]]


@contextmanager
def running_hub(forks: Forks) -> Iterator[Running]:
    """Run the stand-in; its repositories are as before at the end."""
    before, downloads, creations = dict(REPOSITORIES), [], []  # type: ignore[var-annotated]
    handler = type("Handler", (PushableHub,), {"downloads": downloads, "creations": creations})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Running(forks, f"http://127.0.0.1:{server.server_port}", downloads, creations)
    server.shutdown()
    thread.join()
    server.server_close()
    REPOSITORIES.clear()
    REPOSITORIES.update(before)


def run(
    folder: Path,
    hub: Running,
    code: str,
    *arguments: str,
    token: str = "hf_right",
    offline: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with a cache of its own, against a hub."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return hub.forks.run(code, *arguments, folder=folder, environment=environment)
