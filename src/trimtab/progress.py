"""Progress on stderr; nothing is drawn if stderr is not a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from trimtab.escaping import escaped

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LONG_SECONDS = 120
"""Stages that take longer are announced with an estimate."""


@contextmanager
def byte_progress(
    title: str, *, is_work: bool = False
) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a callback that draws a bar over bytes read, or None if stderr is not a terminal.

    Args:
        title: Title of the bar.
        is_work: The reported numbers are not only bytes: shown as a share, with the time left.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich import progress as rich
    from rich.console import Console

    bar = rich.Progress(
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        *(
            (rich.TaskProgressColumn(),)
            if is_work
            else (rich.DownloadColumn(), rich.TransferSpeedColumn())
        ),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(escaped(title), total=None)

        def advance(num_bytes: int, total: int) -> None:
            if bar.finished:  # another stage of the same work
                bar.reset(task)
            bar.update(task, advance=num_bytes, total=total)

        yield advance


def progress_bars() -> Progress:
    """A rich progress display of stages, to be used with `with`."""
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    return rich.Progress(
        rich.TextColumn("{task.description:<28}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
    )


class Stage:
    """One line of the display: a stage with a known number of steps.

    If nothing is drawn, a single line estimates how long the stage will take, once a step was
    measured:
    the second, since the first has more to do, or the first after a call of `step(0, {})`.
    """

    def __init__(self, progress: Progress, task: TaskID, total: int) -> None:
        self._progress = progress
        self._task = task
        self._since: tuple[int, float] | None = None
        self._is_announced = not progress.disable
        self.total = total

    def expect(self, total: int) -> None:
        """Correct the number of steps once it is known."""
        self.total = total
        self._progress.update(self._task, total=total)

    def follow(self, completed: int, total: int) -> None:
        """Show that `completed` steps of `total` are done."""
        self.expect(total)
        self.step(completed, {})

    def step(self, completed: int, metrics: Mapping[str, Any]) -> None:
        """Show that `completed` steps are done, with the metrics of the last."""
        shown = [f"{name} {metrics[name]:.3g}" for name in ("reward", "loss") if name in metrics]
        self._progress.update(self._task, completed=completed, note="  ".join(shown[:1]))
        if self._is_announced:
            return
        if self._since is None:
            self._since = completed, perf_counter()
        elif completed > (first := self._since[0]):
            self._is_announced = True
            seconds = (perf_counter() - self._since[1]) / (completed - first)
            if (left := seconds * (self.total - completed)) > LONG_SECONDS:
                description = self._progress.tasks[self._task].description
                note(
                    self._progress,
                    f"{description}: {_duration(left)} for {self.total - completed:,} more",
                )


def _duration(seconds: float) -> str:
    """About how long, in words."""
    minutes = seconds / 60
    return f"about {minutes:.0f} min" if minutes < 120 else f"about {minutes / 60:.0f} h"


def note(progress: Progress, text: str) -> None:
    """Print a line above the bars; also if no bars are drawn."""
    progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def stage(progress: Progress, description: str, total: int = 1) -> Iterator[Stage]:
    """Show a stage while the block runs, and as done when it succeeds."""
    shown = escaped(description)  # it may name a file
    line = Stage(progress, progress.add_task(shown, total=total, note=""), total)
    yield line
    line.step(line.total, {})
