"""A progress bar on stderr that stays silent when nobody is watching."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from trimtab.escaping import escaped

__all__ = ["byte_progress"]


@contextmanager
def byte_progress(
    title: str, *, is_work: bool = False
) -> Iterator[Callable[[int, int], None] | None]:
    """A bar over bytes read, as `trimtab.compare` reports them; None when stderr is no terminal.

    Args:
        title: What is done.
        is_work: What is reported are not bytes alone: shown as a share, with the time that is left.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *((TaskProgressColumn(),) if is_work else (DownloadColumn(), TransferSpeedColumn())),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(escaped(title), total=None)

        def advance(num_bytes: int, total: int) -> None:
            bar.update(task, advance=num_bytes, total=total)

        yield advance
