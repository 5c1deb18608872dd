"""`trimtab paper VERB`: one module per verb."""

from __future__ import annotations

import click

from trimtab.cli.verbs import Verbs

__all__ = ["command"]

VERBS = {
    "list": "List the papers.",
    "show": "Show what a paper claims, and by which runs that is tried.",
    "run": "Run what the claims need, and say which of them hold.",
}
"""Verb -> the line that `trimtab paper --help` shows; its module has the verb's name."""


@click.group(
    "paper",
    cls=Verbs,
    package="trimtab.cli.paper",
    verbs=VERBS,
    epilog="Example: trimtab paper run mukherjee-2025 --scale tiny",
)
def command() -> None:
    """Run a paper's claims again, with the controls they lacked."""
