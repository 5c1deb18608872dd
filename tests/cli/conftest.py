"""What the tests of the command line share: a way to run it, and two checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.cli import main


class Result(NamedTuple):
    """What a run left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, captured.out, captured.err)

    return call


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A base and a tuned checkpoint."""
    base = llama_tensors()
    return save(tmp_path / "base", base), save(tmp_path / "tuned", moved(base))
