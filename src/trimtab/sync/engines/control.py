"""Control a vLLM server that follows a run: its own routes for weights, and those of `trimtab`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeAlias

from trimtab.errors import SyncError
from trimtab.inputs import AnyPath
from trimtab.sync.engines.client import EngineClient
from trimtab.words import one_line

Pause: TypeAlias = Literal["wait", "abort", "keep"]
"""What happens to the requests that are in progress: they end first, are ended, or go on later."""


class EngineControl:
    """A vLLM server that follows a run.

    It has to be started with `VLLM_SERVER_DEV_MODE=1`, or it has no routes for its weights, and
    with `--weight-transfer-config '{"backend": "trimtab"}'`.

    Attributes:
        url: Of the server.
    """

    def __init__(self, url: str, *, timeout: float = 600.0) -> None:
        """Set the server; nothing is sent.

        Args:
            url: `http://HOST:PORT`.
            timeout: Seconds to wait for an answer.

        Raises:
            SettingsError: The URL or the timeout cannot be used.
        """
        # What changes something is not tried again.
        self._client = EngineClient(url, timeout=timeout, retries=0)
        self.url = self._client.url

    def __repr__(self) -> str:
        return one_line(self, self.url)

    def follow(
        self, place: AnyPath, *, base: AnyPath | None = None, name: str | None = None
    ) -> None:
        """Set which run it follows; its weights stay as they are.

        Args:
            place: A folder, or a URL of an object store, as the server sees it.
            base: The checkpoint that the run began with; by default the model of the server.
            name: Of this follower, unlike that of any other.

        Raises:
            SyncError: The server cannot be reached, or cannot read the base.
        """
        info = {"folder": absolute(place), "base": None if base is None else os.fspath(base)}
        self._post("/init_weight_transfer_engine", {"init_info": {**info, "name": name}})

    def status(self) -> dict[str, Any]:
        """What it serves: `place`, `version`, `content_hash`, `is_whole`, `state` and `error`."""
        return self._call("trimtab_status")

    def prepare(self, version: int | None = None) -> dict[str, Any]:
        """Let it fetch and decode a version while it goes on generating; returns its status."""
        return self._call("trimtab_prepare", version)

    def update(self, version: int | None = None) -> None:
        """Let it serve a version, prepared or not, from the next step of its scheduler on.

        Raises:
            SyncError: It cannot; it serves what it served before, unless its status says that this
                is not whole.
        """
        try:
            self._post("/start_weight_update")
        except SyncError:  # somebody began an update and did not end it
            self._post("/finish_weight_update")
            self._post("/start_weight_update")
        # If this fails, the server has ended the update itself.
        self._post("/update_weights", {"update_info": {"version": version}})
        self._post("/finish_weight_update", {"weight_version": f"{self.status()['version']}"})

    def pause(self, mode: Pause = "wait") -> None:
        """Let it start nothing new, and forget the keys and values of finished prompts."""
        self._post(f"/pause?mode={mode}&clear_cache=true")

    def resume(self) -> None:
        """Let it go on."""
        self._post("/resume")

    def served(self) -> dict[str, Any]:
        """Its status, and what it serves of every tensor: see `sync.engines.vllm_weights`."""
        return self._call("trimtab_served")

    def _call(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of the workers, of which there may be one.

        Raises:
            SyncError: As of `_post`; or there are several.
        """
        found = self._post("/collective_rpc", {"method": method, "args": args})
        results = found.get("results")
        if not isinstance(results, list) or not all(isinstance(one, dict) for one in results):
            raise SyncError(f"{self.url}: its answer to {method} is none: is it a vLLM server?")
        if len(results) != 1:
            raise SyncError(
                f"{self.url}: it has {len(results)} workers, of which each has a part of the "
                "weights: so far trimtab asks servers with one worker"
            )
        return dict(results[0])

    def _post(self, path: str, content: Any = None) -> dict[str, Any]:
        found = self._client.request(path, content or {})
        if found is None:
            raise SyncError(
                f"{self.url} has no route {path.partition('?')[0]}: start vLLM with "
                'VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config \'{"backend": "trimtab"}\''
            )
        if not isinstance(found, dict):
            raise SyncError(f"{self.url}{path}: no JSON object came back: is it a vLLM server?")
        return found


@contextmanager
def vllm_server(
    python: AnyPath,
    model: AnyPath,
    *flags: str,
    log: Path,
    seconds: float = 300.0,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Serve a checkpoint in bf16 by a vLLM in a process of its own, which ends with the block.

    Args:
        python: The Python of an environment with vLLM and trimtab.
        model: The checkpoint, a folder.
        flags: More options of the server.
        log: File to which it writes.
        seconds: Longest time until it answers.
        environment: More variables of its environment.

    Yields:
        Its URL.

    Raises:
        SyncError: It does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(os.fspath(python), "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", os.fspath(model), "--dtype", "bfloat16", "--enforce-eager"),
        *("--host", "127.0.0.1", "--port", str(port), *flags),
    ]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for its weights
        **(environment or {}),
    }
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=variables, start_new_session=True
        )
        try:
            client = EngineClient(f"http://127.0.0.1:{port}", timeout=5.0, retries=0)
            ends = time.monotonic() + seconds
            while not _answers(client):
                if process.poll() is not None or time.monotonic() > ends:
                    raise SyncError(f"vLLM does not start: see {log}")
                time.sleep(0.5)
            yield client.url
        finally:
            for sent in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, sent)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                    break


def _answers(client: EngineClient) -> bool:
    with suppress(SyncError):
        client.request("/v1/models")
        return True
    return False


def absolute(place: AnyPath) -> str:
    """A place as another process finds it."""
    text = os.fspath(place)
    return text if "://" in text else str(Path(text).absolute())
