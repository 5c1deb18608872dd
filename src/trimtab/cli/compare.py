"""`trimtab compare BASE TUNED`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import click

import trimtab
from trimtab.cli.progress import byte_progress
from trimtab.compare import Comparison
from trimtab.compare.trajectory_result import Trajectory
from trimtab.masks.identity_result import Identity
from trimtab.report.files import ensure_free, write_output

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
@click.option("--dequantize", is_flag=True, help="Multiply fp8 weights by their block scales.")
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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON to this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write an HTML report to this file.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
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
    as_json: bool,
    output: Path | None,
    html: Path | None,
    force: bool,
) -> None:
    """Count what changed from a BASE to a TUNED checkpoint, tensor by tensor.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed: memory stays below 1 GB however large they are, but for --rank and
    --geometry, which need whole matrices.

    Without -o, a table is printed.
    """
    for target in (output, html):
        if target is not None:
            ensure_free(target, force=force)
    if html is not None:
        # Better to hear of it now than after a long comparison.
        from trimtab.report.html import check_installed

        check_installed()
    with byte_progress("comparing") as progress:
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
    told = {**comparison.provenance, "command": typed}
    comparison = replace(comparison, provenance=told)
    if output is not None:
        write_output(output, to_json(comparison), force=force)
        click.echo(f"wrote {output}", err=True)
    if html is not None:
        from trimtab.report.html import render_html

        write_output(html, render_html(comparison), force=force)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(to_json(comparison), nl=False)
    elif output is None:
        from trimtab.report.table import render_table

        click.echo(render_table(comparison, styled=sys.stdout.isatty()))


def to_json(result: Comparison | Identity | Trajectory) -> str:
    """A result as JSON text."""
    return json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
