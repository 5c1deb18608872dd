"""`trimtab mask VERB`: one module per verb, registered here in the order of the work."""

from __future__ import annotations

import click

from trimtab.cli.verbs import Verbs

__all__ = ["command"]

VERBS = {
    "extract": "Select the elements that changed.",
    "random": "Control: as many elements, at random places.",
    "complement": "Control: the elements that a mask does not select.",
    "make": "Predict what training will change, without having trained.",
    "survivors": "Select the elements that pruning has left: those that are not 0.",
    "and": "Combine two masks: what both select.",
    "or": "Combine two masks: what either selects.",
    "xor": "Combine two masks: what exactly one selects.",
    "minus": "Combine two masks: what only the first selects.",
    "restrict": "Keep the part in some kinds, layers or tensors.",
    "share": "Split masks into what all select and what only one does.",
    "transfer": "Carry a mask to another checkpoint.",
    "overlap": "Ask whether masks select the same elements, or do so by chance.",
    "score": "Ask how well a mask predicts another.",
    "structure": "Ask where in the network masks live, against chance.",
    "info": "Show what a mask selects, and how it was made.",
}
"""Verb -> the line that `trimtab mask --help` shows; its module has the verb's name."""

MODULES = dict.fromkeys(["and", "or", "xor", "minus"], "set_algebra")
"""Verb -> the module that makes several."""


@click.group(
    "mask",
    cls=Verbs,
    package="trimtab.cli.mask",
    verbs=VERBS,
    modules=MODULES,
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
def command() -> None:
    """Make a mask of the elements that changed, and its controls.

    A mask says of each element of each tensor whether it is selected; it is a file of one bit for
    each.
    """
