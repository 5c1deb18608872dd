"""Trains the cells that are missing, some at a time, each after those that it needs.

A cell is `trimtab train run.toml`. Whatever stops it, the same call goes on: with the cells that
are missing, and in an unfinished one at its last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from typing import Any

from trimtab.errors import OutputExistsError, TrimtabError
from trimtab.outputs import new_file
from trimtab.papers.bases import make_base
from trimtab.papers.cells import DATA, Cell
from trimtab.papers.masks import make_mask
from trimtab.papers.measuring import Measuring

__all__ = ["prepare", "train_cells"]

Told = Callable[[str], None]


def prepare(cells: Sequence[Cell]) -> None:
    """Make the base, copy the data, and write every run file.

    Raises:
        OutputExistsError: A cell is there and is of another run, or of other data.
        TrimtabError: The base cannot be made.
    """
    first = cells[0]
    data = first.root / DATA
    data.mkdir(parents=True, exist_ok=True)
    for file in sorted((first.scale.folder / DATA).iterdir()):
        copy = data / file.name
        if copy.exists() and copy.read_bytes() != file.read_bytes():
            raise OutputExistsError(
                f"{copy} is not {file}, as it is now: choose another --out, or delete {first.root}"
            )
        with new_file(copy, force=True) as whole:
            whole.write(file.read_bytes())
    for cell in cells:
        cell.write()
    make_base(first.scale.base, first.base)


def train_cells(
    cells: Sequence[Cell], measuring: Measuring, *, jobs: int, told: Told
) -> dict[str, str]:
    """Train the cells that are missing.

    Args:
        cells: In their order; `prepare` was called with them.
        measuring: Runs the commands.
        jobs: Cells at a time.
        told: Told what happens, in a few words.

    Returns:
        Name of a cell that failed, or could not start -> why.
    """
    waiting = [cell for cell in cells if not cell.is_done]
    failed: dict[str, str] = {}
    running: dict[Future[None], Cell] = {}
    with ThreadPoolExecutor(jobs) if jobs > 1 else _OneByOne() as pool:
        while waiting or running:
            for cell in list(waiting):
                if bad := [of.name for of in cell.needs() if of.name in failed]:
                    waiting.remove(cell)
                    failed[cell.name] = f"needs {', '.join(bad)}"
                elif len(running) < jobs and all(of.is_done for of in cell.needs()):
                    waiting.remove(cell)
                    told(f"{cell.name}: started, {len(waiting)} after it")
                    running[pool.submit(_train, cell, measuring)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                try:
                    future.result()
                except TrimtabError as error:
                    failed[cell.name] = str(error)
                told(f"{cell.name}: {failed.get(cell.name, 'finished')}")
    return failed


class _OneByOne(Executor):
    """Runs what it is given at once, in the calling thread: the only one that hears Ctrl-C."""

    def submit(self, function: Any, /, *arguments: Any, **more: Any) -> Future[Any]:
        """Run it, and keep what an expected error there was."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments, **more))
        except TrimtabError as error:
            future.set_exception(error)
        return future


def _train(cell: Cell, measuring: Measuring) -> None:
    make_mask(cell, measuring)
    if not cell.is_trained:
        measuring.run(["train", str(cell.run)], cell)
    cast = ["--cast", "bf16"] if cell.is_saved_as_fp32 else []
    extract = ("mask", "extract", str(cell.start), str(cell.model), "-o", str(cell.changed))
    measuring.run([*extract, *cast], cell)
