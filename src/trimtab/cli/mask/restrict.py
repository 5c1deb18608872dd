"""`trimtab mask restrict`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from trimtab.cli.mask.options import mask_argument, save_derived, writes_a_mask
from trimtab.masks.algebra import restricted
from trimtab.masks.on_disk import open_mask
from trimtab.outputs import ensure_free

__all__ = ["command"]

SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")

MOST_LAYERS = 100_000


def _layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """`0-3,7`: layers 0, 1, 2, 3 and 7."""
    if value is None:
        return None
    layers: list[int] = []
    for word in value.split(","):
        match = SPAN.fullmatch(word.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MOST_LAYERS:
            raise click.BadParameter(f"{word!r} is no layer, such as 7, and no range, such as 0-3")
        layers += range(first, last + 1)
    return layers


@click.command(
    "restrict",
    epilog="Example: trimtab mask restrict m.safetensors --kinds q_proj,k_proj -o qk.safetensors",
)
@mask_argument
@click.option("--kinds", metavar="KIND,…", help="Tensors of these kinds, as `mask info` says.")
@click.option("--layers", callback=_layers, metavar="N,N-N,…", help="Tensors of these layers.")
@click.option(
    "--tensors",
    multiple=True,
    metavar="PATTERN",
    help="Tensors of this name, or pattern with * and ?; can be given several times.",
)
@writes_a_mask
def command(
    typed: str,
    mask: Path,
    kinds: str | None,
    layers: list[int] | None,
    tensors: tuple[str, ...],
    output: Path,
    force: bool,
) -> None:
    """Keep of MASK the tensors that meet every condition given, and leave out the others."""
    if kinds is None and layers is None and not tensors:
        raise click.UsageError("give at least one of --kinds, --layers and --tensors")
    ensure_free(output, force=force)
    with open_mask(mask) as opened:
        made = restricted(
            opened,
            kinds=None if kinds is None else [kind.strip() for kind in kinds.split(",")],
            layers=layers,
            tensors=tensors or None,
        )
        save_derived(made, output, typed, force=force)
