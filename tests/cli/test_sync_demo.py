"""`trimtab sync demo`, on the real model and a real vLLM."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import trimtab
from tests.cli.conftest import Run
from tests.sync.vllm_server import NO_ENGINE, vllm_python


@pytest.mark.engine
@pytest.mark.train
def test_a_server_follows_a_run(run: Run, tmp_path: Path) -> None:
    python = vllm_python()
    if python is None:
        pytest.skip(NO_ENGINE)
    out = tmp_path / "out"
    code, text, error = run("sync", "demo", "--steps", "2", "--out", out, "--engine-python", python)
    assert code == 0, error + (out / "train.log").read_text() + (out / "server.log").read_text()
    rows = [line.split() for line in text.splitlines() if re.match(r" +\d", line)]
    assert [(row[0], "equal" in row) for row in rows] == [("0", True), ("1", True), ("2", True)]
    log = trimtab.load_result(out / "sync.json")
    assert isinstance(log, trimtab.SyncLog)
    assert all(0 < each.num_bytes < each.num_dense_bytes / 20 for each in log.versions)
    assert [each.version for each in log.followed] == [1, 2]
    assert (out / "report.html").exists()


def test_without_vllm(run: Run, tmp_path: Path) -> None:
    code, _, error = run(
        "sync", "demo", "--out", tmp_path / "out", "--engine-python", tmp_path / "python"
    )
    assert code == 1
    assert "python: no such Python: `make engine` makes an environment" in error
