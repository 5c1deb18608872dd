"""Write a result file whole or not at all.

The text goes to a file beside the target, which then takes the target's name in one step: a
reader never sees half a file, and an interrupted write leaves the old one as it was.
"""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

from trimtab.errors import OutputExistsError

__all__ = ["ensure_free", "write_output"]


def ensure_free(path: str | Path, *, force: bool = False) -> None:
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


def write_output(path: str | Path, text: str, *, force: bool = False) -> Path:
    """Write text as UTF-8, atomically; missing parent folders are made.

    Args:
        path: The file to write.
        text: Its content. Characters that UTF-8 cannot hold (from file names that are not text)
            are written as escapes.
        force: Replace an existing file.

    Returns:
        The path written.

    Raises:
        OutputExistsError: The file exists and `force` is not set, or the path is a folder.
    """
    target = Path(path)
    ensure_free(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name[:100]}.{token_hex(4)}.tmp")
    try:
        with draft.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        ensure_free(target, force=force)  # it may have appeared while the text was written
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target
