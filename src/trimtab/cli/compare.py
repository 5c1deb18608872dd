"""`trimtab compare BASE TUNED`."""

from __future__ import annotations

import click

import trimtab
from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options

__all__ = ["command"]


@click.command("compare", epilog="Example: trimtab compare base/ tuned/ --html report.html")
@click.argument("base")
@click.argument("tuned")
@click.option(
    "--changed",
    default="bits",
    show_default=True,
    metavar="CRITERION",
    help="Criterion of the headline: bits, value, atol=T, strict_atol=T or rel=T. "
    "The others are counted as well.",
)
@click.option("--cast", metavar="DTYPE", help="Round all floats to DTYPE (bf16, fp16, ...) first.")
@click.option("--dequantize", is_flag=True, help="Multiply quantised weights by their scales.")
@click.option("--lr", type=float, help="Also predict what precision lets change at this rate.")
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Optimizer steps for --lr.",
)
@click.option(
    "--betas",
    type=(float, float),
    default=(0.9, 0.999),
    show_default=True,
    help="Adam's betas for --lr.",
)
@click.option("--rank", is_flag=True, help="Also rank each update, beside a random one. Slow.")
@click.option("--geometry", is_flag=True, help="Also how updates lie in the base. Slow.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random controls.")
@click.option("--profiles", is_flag=True, help="Keep the count of every row and column.")
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@result_options
@click.pass_obj
def command(
    typed: str,
    base: str,
    tuned: str,
    changed: str,
    cast: str | None,
    dequantize: bool,
    lr: float | None,
    steps: int,
    betas: tuple[float, float],
    rank: bool,
    geometry: bool,
    seed: int,
    profiles: bool,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Count what changed from a BASE to a TUNED checkpoint, tensor by tensor.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed: memory stays below 1 GB however large they are, but for --rank and
    --geometry, which need whole matrices.

    Without -o, a table is printed.
    """
    with byte_progress("comparing", is_work=rank or geometry) as progress:
        comparison = trimtab.compare(
            base,
            tuned,
            changed=changed,
            cast=cast,
            dequantize=dequantize,
            profiles=profiles,
            lr=lr,
            steps=steps,
            betas=betas,
            rank=rank,
            geometry=geometry,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    outputs.give(comparison, typed)
