"""`trimtab mask extract | random | complement | info`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import click

from trimtab.cli.progress import byte_progress
from trimtab.masks import Mask, extract_mask
from trimtab.outputs import ensure_free

__all__ = ["command"]


class _InOrder(click.Group):
    """Lists its commands in the order of the work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    "mask",
    cls=_InOrder,
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
def command() -> None:
    """Make a mask of the elements that changed, and its controls.

    A mask says of each element of each tensor whether it is selected; it is a file of one bit for
    each.
    """


_mask = click.argument("mask", type=click.Path(path_type=Path))


def _writes_a_mask(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that writes a mask."""
    path = click.Path(path_type=Path)
    output = click.option(
        "-o", "--output", type=path, required=True, help="Write the mask to this file."
    )
    force = click.option("--force", is_flag=True, help="Replace an output file that exists.")
    return output(force(click.pass_obj(function)))


@command.command(
    "extract",
    short_help="Select the elements that changed.",
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
@click.argument("base")
@click.argument("tuned")
@click.option(
    "--changed",
    default="bits",
    show_default=True,
    metavar="CRITERION",
    help="Select what changed by this criterion: bits, value, atol=T, strict_atol=T or rel=T.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@_writes_a_mask
def extract(
    typed: str,
    base: str,
    tuned: str,
    changed: str,
    threads: int | None,
    output: Path,
    force: bool,
) -> None:
    """Select the elements that changed from a BASE to a TUNED checkpoint.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed.
    """
    from trimtab.report.mask_table import gaps_text

    ensure_free(output, force=force)
    with byte_progress("extracting") as progress:
        mask = extract_mask(base, tuned, changed=changed, threads=threads, progress=progress)
    if gaps := gaps_text(mask.provenance["steps"][0]):
        click.echo(f"not compared in full: {gaps}; `trimtab mask info --json` lists them", err=True)
    _write(mask, output, typed, force=force)


@command.command(
    "random",
    short_help="Control: as many elements, at random places.",
    epilog="Example: trimtab mask random m.safetensors --seed 1 -o r.safetensors",
)
@_mask
@click.option("--seed", type=int, default=0, show_default=True, help="Of the places.")
@_writes_a_mask
def random(typed: str, mask: Path, seed: int, output: Path, force: bool) -> None:
    """Select as many elements in each tensor as MASK does, at random places."""
    ensure_free(output, force=force)
    _write(Mask.load(mask).random_like(seed), output, typed, force=force)


@command.command(
    "complement",
    short_help="Control: the elements that a mask does not select.",
    epilog="Example: trimtab mask complement m.safetensors -o c.safetensors",
)
@_mask
@_writes_a_mask
def complement(typed: str, mask: Path, output: Path, force: bool) -> None:
    """Select the elements that MASK does not, of the same tensors."""
    ensure_free(output, force=force)
    _write(Mask.load(mask).complement(), output, typed, force=force)


@command.command(
    "info",
    short_help="Show what a mask selects, and how it was made.",
    epilog="Example: trimtab mask info m.safetensors",
)
@_mask
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def info(mask: Path, as_json: bool) -> None:
    """Show what MASK selects, by kind, and how it was made."""
    loaded = Mask.load(mask)
    if as_json:
        from trimtab.masks.summary import summarise

        click.echo(json.dumps(summarise(loaded), indent=1))
        return
    from trimtab.report.mask_table import render_mask

    click.echo(render_mask(loaded, styled=sys.stdout.isatty()))


def _write(mask: Mask, output: Path, typed: str, *, force: bool) -> None:
    from trimtab.report.mask_table import selected_text

    mask.with_provenance(command=typed).save(output, force=force)
    click.echo(f"wrote {output}: {selected_text(mask)} selected", err=True)
