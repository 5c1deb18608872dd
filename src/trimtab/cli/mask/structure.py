"""`trimtab mask structure MASK [MASK …]`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options

__all__ = ["command"]


@click.command(
    "structure", epilog="Example: trimtab mask structure m.safetensors --base base/ --html s.html"
)
@click.argument("masks", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--base", metavar="BASE", help="The checkpoint that the masks were made against.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where the config.json is, if BASE is not at hand.",
)
@click.option("--map", "tensor", metavar="TENSOR", help="The matrix to map, by name.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Of the random control of the first."
)
@click.option("--threads", type=click.IntRange(min=1), help="Tensors counted at the same time.")
@result_options
@click.pass_obj
def command(
    typed: str,
    masks: tuple[Path, ...],
    base: str | None,
    config: Path | None,
    tensor: str | None,
    seed: int,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Ask where in the network masks live: by head, neuron, channel, row and column.

    What each unit has is set against chance: as many elements as the mask has in each tensor,
    anywhere in it, and beside a random control that does just that. With BASE (a folder, a file,
    or a hub id with an optional @revision) also as many as it has of each magnitude, so that what
    is left is not a matter of small weights. Several masks of one model are asked whether they
    favour the same units.

    Attention heads and KV groups need head counts, from BASE or --config. The tensor of the map is
    by default the most dispersed one.

    Without -o, a table is printed.
    """
    from trimtab.masks.structure import structure

    if base is not None and config is not None:
        raise click.UsageError("--base and --config: give one of them; BASE has a config.")
    with byte_progress("counting") as progress:
        result = structure(
            *masks,
            base=base,
            config=config,
            map=tensor,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    outputs.give(result, typed)
