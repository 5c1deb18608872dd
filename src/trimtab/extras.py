"""Optional dependencies: import them where they are used, and fail with the cure."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from trimtab.errors import MissingExtraError

__all__ = ["require"]


def require(module: str, install: str) -> Any:
    """Import an optional module.

    Args:
        module: Dotted name of the module.
        install: The command that installs it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{module} is not installed: run `{install}`") from error
