"""A real vLLM server in an environment of its own, for the tests that are marked `engine`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

import pytest

ROOT = Path(__file__).parents[2]

NO_ENGINE = "no vLLM: run `make engine`, or set VLLM_PYTHON to a Python that has it"


def vllm_python() -> str | None:
    """The Python that has vLLM; None if there is none."""
    if python := os.environ.get("VLLM_PYTHON"):
        return python
    folder = ROOT / ".engine-venv"
    return str(folder / "bin" / "python") if (folder / ".ready").exists() else None


@contextmanager
def vllm_server(model: Path, *flags: str, seconds: float = 400.0) -> Iterator[str]:
    """Serve a checkpoint in bf16 on the CPU; yields the URL. Skips the test without vLLM.

    Args:
        model: Folder of the checkpoint.
        flags: More options of the server.
        seconds: Longest time until it answers.
    """
    python = vllm_python()
    if python is None:
        pytest.skip(NO_ENGINE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        *(python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--dtype", "bfloat16", "--max-model-len", "128", "--enforce-eager"),
        *("--max-num-seqs", "16", "--host", "127.0.0.1", "--port", str(port), *flags),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            ends = time.monotonic() + seconds
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > ends:
                    log.seek(0)
                    pytest.fail(
                        f"vLLM did not start:\n{log.read()[-4000:].decode(errors='replace')}"
                    )
                time.sleep(0.5)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False
