"""Trainer and followers in processes that are killed, at a folder and at a real S3 server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sync.processes import supervise

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_processes_are_killed(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the process that those are forked from
    url, options = str(tmp_path / "place"), dict[str, Any]()
    if kind == "s3":
        url = f"{request.getfixturevalue('bucket')}/run"
        options = request.getfixturevalue("s3_options")
    count = supervise(url=url, options=options, folder=tmp_path, num=12, seed=1, pause=3.0, kills=8)
    assert count["acknowledgements"] > 3
