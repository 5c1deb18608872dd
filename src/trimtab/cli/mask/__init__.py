"""`trimtab mask VERB`: one module per verb, registered here in the order of the work."""

from __future__ import annotations

import click

from trimtab.cli.verbs import Verbs

__all__ = ["command"]

VERBS = {
    "extract": "Select the elements that changed.",
    "random": "Control: as many elements, at random places.",
    "complement": "Control: the elements that a mask does not select.",
    "info": "Show what a mask selects, and how it was made.",
}
"""Verb -> the line that `trimtab mask --help` shows; its module has the verb's name."""


@click.group(
    "mask",
    cls=Verbs,
    package="trimtab.cli.mask",
    verbs=VERBS,
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
def command() -> None:
    """Make a mask of the elements that changed, and its controls.

    A mask says of each element of each tensor whether it is selected; it is a file of one bit for
    each.
    """
