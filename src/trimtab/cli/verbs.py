"""A command of verbs, each in a module of its own that is loaded only when the verb is used.

So `--help` is instant, whatever a verb needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import click

from trimtab.cli.paths import with_paths_checked

__all__ = ["Verbs"]


class Verbs(click.Group):
    """Lists its verbs in the order of the work, not of the alphabet."""

    def __init__(
        self,
        *,
        package: str,
        verbs: Mapping[str, str],
        modules: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        """Name the verbs.

        Args:
            package: Dotted name of the package whose modules export each verb as `command`; the
                module of `off-principal` is `off_principal`.
            verbs: Verb -> the line that `--help` shows.
            modules: Verb -> the module that makes it together with others like it, and exports
                them by name as `commands`.
            more: As for `click.Group`.
        """
        super().__init__(**more)
        self._package = package
        self._verbs = verbs
        self._modules = modules or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in order."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load a verb; None if there is none of this name."""
        if cmd_name not in self._verbs:
            return None
        if together := self._modules.get(cmd_name):
            commands: Mapping[str, click.Command] = self._import(together).commands
            return with_paths_checked(commands[cmd_name])
        command: click.Command = self._import(cmd_name.replace("-", "_")).command
        return with_paths_checked(command)

    def _import(self, module: str) -> ModuleType:
        return import_module(f"{self._package}.{module}")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of verbs without loading any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._verbs.items()))
