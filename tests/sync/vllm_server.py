"""A real vLLM server in an environment of its own, for the tests that are marked `engine`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from trimtab.errors import SyncError
from trimtab.sync.engines import control

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
    flags = ("--max-model-len", "128", "--max-num-seqs", "16", *flags)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        log = Path(folder, "server.log")
        try:
            url = stack.enter_context(
                control.vllm_server(
                    python,
                    model,
                    *flags,
                    log=log,
                    seconds=seconds,
                    environment={"OMP_NUM_THREADS": "1"},
                )
            )
        except SyncError as error:
            pytest.fail(f"{error}:\n{log.read_text(errors='replace')[-4000:]}")
        yield url
