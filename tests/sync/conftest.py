"""A real S3 server in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

SECRET = "the-secret-of-these-tests"


@pytest.fixture(scope="session")
def released_wheel() -> Callable[[str, str], Path]:
    """Gets the wheel of a name and version, from a cache or a package index; skips without one.

    These packages pin versions of others, or need a GPU: parts of them are run, none is installed.
    """

    def get(name: str, version: str) -> Path:
        folder = Path(os.environ.get("TRIMTAB_WHEELS") or Path.home() / ".cache/trimtab/wheels")
        pattern = f"{name}-{version}-*.whl"
        if not (found := sorted(folder.glob(pattern))):
            command = [sys.executable, "-m", "pip", "download", f"{name}=={version}", "--no-deps"]
            quiet = ["-q", "--disable-pip-version-check", "--retries", "0", "-d", str(folder)]
            try:
                subprocess.run([*command, *quiet], check=True, capture_output=True, timeout=60)
            except (subprocess.SubprocessError, OSError):
                pytest.skip(f"{name} {version} is not in {folder}, and pip cannot download it")
            found = sorted(folder.glob(pattern))
        return found[0]

    return get


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """Options of fsspec for a server that runs here; skipped without moto and s3fs."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "moto.server",
        "-H",
        "127.0.0.1",
        "-p",
        f"{port}",
    ]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None
            time.sleep(0.1)
        yield {
            "endpoint_url": f"http://127.0.0.1:{port}",
            "key": "the-key-of-these-tests",
            "secret": SECRET,
        }
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def bucket(s3_options: dict[str, Any]) -> str:
    """URL of a new bucket on that server."""
    import s3fs

    name = f"runs-{uuid4().hex}"
    s3fs.S3FileSystem(skip_instance_cache=True, **s3_options).mkdir(name)
    return f"s3://{name}"
