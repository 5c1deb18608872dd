"""Imports on first use: optional dependencies, which fail with the cure, and public names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from trimtab.errors import MissingExtraError


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


def lazy_names(
    package: str, modules: Mapping[str, str], install: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported on first use (PEP 562).

    Args:
        package: The package.
        modules: Lazy name -> the module that defines it.
        install: The command that installs what these modules need.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(modules[name]), name)
        except ModuleNotFoundError as error:
            if install is None or (error.name or "").startswith("trimtab"):
                raise
            raise MissingExtraError(f"{error.name} is not installed: run `{install}`") from error
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *modules})
