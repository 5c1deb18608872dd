"""Commands of a paper's runs: their exit codes, their talk, and Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trimtab.cli.paper_commands import in_its_own_process, in_this_process

Command = Callable[[Sequence[str], Path], int]


@pytest.mark.parametrize("command", [in_its_own_process, in_this_process])
def test_the_exit_code_comes_back_and_the_talk_goes_to_the_log(
    command: Command, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.txt"
    assert command(["--version"], log) == 0
    assert command(["mask", "info", str(tmp_path / "no.safetensors")], log) == 1
    assert command(["mask", "dance"], log) == 2
    text = log.read_text("utf-8")
    assert "version" in text and "no.safetensors" in text and "dance" in text
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_here_ends_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.cli.trimtab.main", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_this_process(["--version"], tmp_path / "log.txt")


def test_ctrl_c_waits_for_the_step_of_a_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    waited = []

    class Process:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Process:
            return self

        def __exit__(self, *_: Any) -> None: ...

        def wait(self) -> int:
            waited.append(True)
            if len(waited) == 1:
                raise KeyboardInterrupt
            return 130

    monkeypatch.setattr("subprocess.Popen", Process)
    with pytest.raises(KeyboardInterrupt):
        in_its_own_process(["train"], tmp_path / "log.txt")
    assert len(waited) == 2
