"""Write a result file as text, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from trimtab.outputs import ensure_free, new_file

__all__ = ["ensure_free", "write_output"]


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
    with new_file(path, force=force) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))
    return Path(path)
