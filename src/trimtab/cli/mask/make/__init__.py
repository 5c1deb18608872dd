"""`trimtab mask make KIND`: one module for each family of kinds, registered here."""

from __future__ import annotations

import click

from trimtab.cli.verbs import Verbs

__all__ = ["command"]

KINDS = {
    "random": "Control: any elements.",
    "complement": "Control: the elements that a mask does not select.",
    "low-magnitude": "The smallest weights.",
    "high-magnitude": "The largest weights.",
    "principal": "Elements that carry the principal directions of their matrix.",
    "off-principal": "Elements that do not.",
    "safe": "Small weights and elements off the principal directions.",
    "absorption": "Elements that steps of size LR can change at all in the stored dtype.",
    "consensus": "Elements that several masks agree on.",
    "fisher": "Elements with the largest Fisher information of the base on some prompts.",
    "sign-consistency": "Elements that the gradients of many batches push the same way.",
    "snip": "Elements whose removal would change the loss most.",
    "warm": "Elements that the first steps of a run moved.",
}
"""Kind -> the line that `trimtab mask make --help` shows."""

MODULES = {
    "low-magnitude": "magnitude",
    "high-magnitude": "magnitude",
    "principal": "principal",
    "off-principal": "principal",
    "safe": "principal",
}
"""Kind -> the module that exports it with others, where it has none of its own."""


@click.group(
    "make",
    cls=Verbs,
    package="trimtab.cli.mask.make",
    verbs=KINDS,
    modules=MODULES,
    epilog="Example: trimtab mask make low-magnitude --base base/ --density 0.1 -o p.safetensors",
)
def command() -> None:
    """Predict which elements training will change, without having trained, or make a control.

    Each kind gives every element of the base a score and selects those with the highest, exactly as
    many as are asked for; which of equal scores is random, by seed. `trimtab mask score` tells how
    well a mask predicts another.
    """
