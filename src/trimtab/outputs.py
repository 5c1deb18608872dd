"""Write an output file, or a folder of them, whole or not at all.

The content goes to a file beside the target, which then takes the target's name in one step: a
reader never sees half a file, and an interrupted write leaves the old one as it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from trimtab.errors import OutputExistsError

__all__ = ["ensure_free", "ensure_no_folder", "new_file", "new_folder"]


def ensure_free(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that an output may be written, before the work whose result it would hold.

    Args:
        path: The file to be written.
        force: Whether an existing file may be replaced; a folder never is.

    Raises:
        OutputExistsError: Something is in the way.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputExistsError(f"{target} is a folder: give the name of a file")
    if not force and os.path.lexists(target):
        raise OutputExistsError(f"{target} exists already: add --force to replace it")


@contextmanager
def new_file(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write to, which takes its name when the block succeeds.

    Missing parent folders are made.

    Args:
        path: The file to write.
        force: Replace an existing file.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    target = Path(path)
    ensure_free(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:100]}.{token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        ensure_free(target, force=force)  # it may have appeared while the draft was written
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill, which takes its name when the block succeeds.

    Missing parent folders are made. A folder that exists is never replaced: it may hold anything.

    Args:
        path: The folder to make.

    Raises:
        OutputExistsError: Something is in the way.
    """
    target = Path(path)
    ensure_no_folder(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:100]}.{token_hex(4)}.tmp")
    draft.mkdir()
    try:
        yield draft
        ensure_no_folder(target)  # it may have appeared while the draft was filled
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def ensure_no_folder(path: str | os.PathLike[str]) -> None:
    """Check that a folder may be made, before the work whose result it would hold.

    Raises:
        OutputExistsError: Something is in the way.
    """
    if os.path.lexists(path):
        raise OutputExistsError(
            f"{os.fspath(path)} exists already: choose another folder, or delete it first"
        )
