"""Progress bars on stderr, for people: none is drawn where stderr is not a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trimtab.escaping import escaped

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WORTH_TELLING = 300
"""Seconds from which on it is said how long work will take."""

__all__ = ["Stage", "note", "progress_bars", "stage"]


def progress_bars() -> Progress:
    """A rich progress display on stderr, to be used with `with`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description:<28}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


class Stage:
    """One line of the display: a piece of work of a known number of steps.

    Where nothing is drawn, one line says how long it will take, once a step of it was measured.
    """

    def __init__(self, progress: Progress, task: TaskID, total: int) -> None:
        self._progress = progress
        self._task = task
        self._since: tuple[int, float] | None = None
        self._is_told = not progress.disable
        self.total = total

    def expect(self, total: int) -> None:
        """Correct the number of steps, where it is known only once the work has begun."""
        self.total = total
        self._progress.update(self._task, total=total)

    def step(self, completed: int, metrics: Mapping[str, Any]) -> None:
        """Show that `completed` steps are done, and how the last one went."""
        shown = [f"{name} {metrics[name]:.3g}" for name in ("reward", "loss") if name in metrics]
        self._progress.update(self._task, completed=completed, note="  ".join(shown[:1]))
        if self._is_told:
            return
        if self._since is None:
            self._since = completed, perf_counter()
        elif completed > (first := self._since[0]):
            self._is_told = True
            seconds = (perf_counter() - self._since[1]) / (completed - first)
            if (left := seconds * (self.total - completed)) > WORTH_TELLING:
                of = self._progress.tasks[self._task].description
                note(self._progress, f"{of}: {_duration(left)} for {self.total - completed:,} more")


def _duration(seconds: float) -> str:
    """About how long, in words."""
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:.0f} h"


def note(progress: Progress, text: str) -> None:
    """Say something above the bars; on stderr also where no bars are drawn."""
    progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stage(progress: Progress, description: str, total: int = 1) -> Iterator[Stage]:
    """Show a piece of work while the block runs, and as done when it succeeds."""
    shown = escaped(description)  # it may name a file
    line = Stage(progress, progress.add_task(shown, total=total, note=""), total)
    yield line
    line.step(line.total, {})
