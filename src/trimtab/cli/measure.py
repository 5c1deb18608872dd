"""`trimtab compare`, `trajectory` and `identity`: what differs between checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import trimtab
from trimtab.cli import options
from trimtab.progress import byte_progress


@click.command(
    "compare",
    cls=options.Command,
    short_help="Count what changed from a BASE to a TUNED checkpoint.",
    epilog="Example: trimtab compare base/ tuned/ --html report.html",
)
@click.argument("base")
@click.argument("tuned")
@click.option(
    "--changed",
    default="bits",
    metavar="CRITERION",
    help="Criterion of the headline: bits, value, atol=T, strict_atol=T or rel=T. "
    "The others are counted as well.",
)
@options.conversion_options
@click.option(
    "--lr", type=float, help="Learning rate, to predict what precision lets change at this rate."
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    help="Number of optimizer steps, for --lr.",
)
@click.option(
    "--betas",
    type=(float, float),
    default=(0.9, 0.999),
    help="Adam's betas, for --lr.",
)
@click.option(
    "--rank", is_flag=True, help="Also compute the rank of each update, and of a random one. Slow."
)
@click.option("--geometry", is_flag=True, help="Also show how updates lie in the base. Slow.")
@options.seed_option("Seed of the random controls.")
@click.option("--profiles", is_flag=True, help="Keep the count of every row and column.")
@options.threads_option
@options.result_options
def compare(
    base: str, tuned: str, rank: bool, geometry: bool, outputs: options.Outputs, **settings: Any
) -> None:
    """Count what changed from a BASE to a TUNED checkpoint, tensor by tensor.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed: memory stays below 1 GB for any size, except with --rank and
    --geometry, which need whole matrices.

    Without -o, a table is printed.
    """
    with byte_progress("comparing", is_work=rank or geometry) as progress:
        result = trimtab.compare(
            base, tuned, rank=rank, geometry=geometry, progress=progress, **settings
        )
    outputs.give(result)


@click.command(
    "trajectory",
    cls=options.Command,
    short_help="Track how the update forms over a series of checkpoints.",
    epilog="Example: trimtab trajectory base/ run/ --html report.html",
)
@click.argument("base")
@click.argument("checkpoints", nargs=-1, metavar="[CKPT]...")
@options.conversion_options
@options.threads_option
@options.result_options
def trajectory(
    base: str, checkpoints: tuple[str, ...], outputs: options.Outputs, **settings: Any
) -> None:
    """Show how a subnetwork forms, from a BASE through a series of checkpoints.

    BASE and each CKPT are a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision, the CKPTs in the order of training. The folder of a training run is replaced by the
    checkpoint-* folders in it. All are streamed: memory does not grow with their size or number.

    The file of a tracker alone, instead of BASE and CKPTs, shows the run that was tracked.

    Without -o, a table is printed.
    """
    if checkpoints:
        with byte_progress("following") as progress:
            result = trimtab.trajectory(base, checkpoints, progress=progress, **settings)
    elif Path(base).is_file():
        result = trimtab.read_tracked(base)
    else:
        raise click.UsageError(
            f"{Path(base)}: expected a BASE and at least one CKPT, or the file of a tracker"
        )
    outputs.give(result)


@click.command(
    "identity",
    cls=options.Command,
    short_help="Check whether training only a mask gave the same model.",
    epilog="Example: trimtab identity base/ full/ sub/ --mask m.safetensors",
)
@click.argument("base")
@click.argument("full")
@click.argument("sub")
@click.option("--mask", type=options.PATH, required=True, help="Mask that SUB was trained in.")
@options.threads_option
@options.result_options
def identity(
    base: str, full: str, sub: str, mask: Path, threads: int | None, outputs: options.Outputs
) -> None:
    """Check whether training only a mask gave the model that training every weight gave.

    BASE is where both runs started, FULL the model after training every weight, SUB the model after
    training only the mask; each a folder, a .safetensors or .bin file, or a hub id with an
    optional @revision. SUB is compared with FULL inside and outside the mask, and so is BASE, the
    score of an untrained model. All are streamed.

    Without -o, a table is printed.
    """
    with byte_progress("comparing") as progress:
        result = trimtab.identity(base, full, sub, mask, threads=threads, progress=progress)
    outputs.give(result)
