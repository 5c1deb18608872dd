"""`trimtab mask info`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument
from trimtab.cli.terminal import say
from trimtab.masks import open_mask

__all__ = ["command"]


@click.command(
    "info",
    epilog="Example: trimtab mask info m.safetensors",
)
@mask_argument
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(mask: Path, as_json: bool) -> None:
    """Show what MASK selects, by kind, and how it was made."""
    with open_mask(mask) as opened:
        if as_json:
            from trimtab.masks.mask import summarise

            say(json.dumps(summarise(opened), indent=1))
            return
        from trimtab.report.mask_table import render_mask

        say(render_mask(opened, styled=sys.stdout.isatty()))
