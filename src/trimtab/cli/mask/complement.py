"""`trimtab mask complement`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, write_mask, writes_a_mask
from trimtab.masks import Mask
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
    write_mask(Mask.load(mask).complement(), output, typed, force=force)
