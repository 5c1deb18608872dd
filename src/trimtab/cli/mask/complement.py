"""`trimtab mask complement`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, save_derived, writes_a_mask
from trimtab.masks.algebra import complemented
from trimtab.masks.on_disk import open_mask
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command(
    "complement",
    epilog="Example: trimtab mask complement m.safetensors -o c.safetensors",
)
@mask_argument
@writes_a_mask
def command(typed: str, mask: Path, output: Path, force: bool) -> None:
    """Select the elements that MASK does not, of the same tensors."""
    ensure_free(output, force=force)
    with open_mask(mask) as opened:
        save_derived(complemented(opened), output, typed, force=force)
