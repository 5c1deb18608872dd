"""A real S3 server in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

SECRET = "the-secret-of-these-tests"


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
