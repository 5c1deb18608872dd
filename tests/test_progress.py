"""Progress lines on a terminal, and nothing elsewhere."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn

from trimtab.progress import byte_progress, progress_bars, stage


def test_a_stage_shows_its_steps_and_last_metric() -> None:
    out = StringIO()
    columns = [
        TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f} {task.fields[note]}")
    ]
    with (
        Progress(
            *columns, console=Console(file=out, force_terminal=True), auto_refresh=False
        ) as bars,
        stage(bars, "grpo", total=4) as line,
    ):
        line.step(3, {"reward": 0.8125, "loss": 0.5})
        bars.refresh()
        middle = out.getvalue()
    assert "grpo 3/4 reward 0.812" in middle
    assert "grpo 4/4" in out.getvalue()


def test_a_failed_stage_is_not_shown_as_done() -> None:
    out = StringIO()
    columns = [TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}")]
    bars = Progress(*columns, console=Console(file=out, force_terminal=True), auto_refresh=False)
    with pytest.raises(KeyboardInterrupt), bars, stage(bars, "sft", total=4):
        raise KeyboardInterrupt
    assert "4/4" not in out.getvalue()


def test_where_nothing_is_drawn_long_work_says_how_long_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 30.0])  # seconds when 2 steps are done, and when 3 are
    monkeypatch.setattr("trimtab.progress.perf_counter", lambda: next(now))
    with progress_bars() as bars, stage(bars, "robustness", total=144) as line:
        for completed in (2, 3, 4):
            line.step(completed, {})
    assert capsys.readouterr().err == "robustness: about 70 min for 141 more\n"


def test_work_of_few_parts_says_it_after_the_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 80.0])
    monkeypatch.setattr("trimtab.progress.perf_counter", lambda: next(now))
    with progress_bars() as bars, stage(bars, "evaluate 4 models", total=4) as line:
        for completed in range(5):
            line.step(completed, {})
    assert capsys.readouterr().err == "evaluate 4 models: about 4 min for 3 more\n"


def test_silent_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bars() as bars, stage(bars, "grpo", total=1) as line:
        line.step(1, {})
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_a_bar_of_bytes_starts_again_for_the_next_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, float | None]] = []
    update = Progress.update

    def watched(bars: Progress, task: TaskID, **options: Any) -> None:
        update(bars, task, **options)
        shown.append((bars.tasks[0].completed, bars.tasks[0].total))

    monkeypatch.setattr(Progress, "update", watched)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with byte_progress("decoding") as advance:
        assert advance is not None
        for num_bytes, total in ((4, 10), (6, 10), (8, 20), (12, 20)):
            advance(num_bytes, total)
    assert shown == [(4, 10), (10, 10), (8, 20), (20, 20)]
