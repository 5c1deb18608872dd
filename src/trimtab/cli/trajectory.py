"""`trimtab trajectory BASE CKPT…`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

import trimtab
from trimtab.cli.compare import to_json
from trimtab.cli.progress import byte_progress
from trimtab.compare.tracked import read_tracked
from trimtab.compare.trajectory_result import Trajectory
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]


@click.command("trajectory", epilog="Example: trimtab trajectory base/ run/ --html report.html")
@click.argument("base")
@click.argument("checkpoints", nargs=-1, metavar="[CKPT]...")
@click.option("--cast", metavar="DTYPE", help="Round all floats to DTYPE (bf16, fp16, ...) first.")
@click.option("--dequantize", is_flag=True, help="Multiply fp8 weights by their block scales.")
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON to this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write an HTML report to this file.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
@click.pass_obj
def command(
    typed: str,
    base: str,
    checkpoints: tuple[str, ...],
    cast: str | None,
    dequantize: bool,
    threads: int | None,
    as_json: bool,
    output: Path | None,
    html: Path | None,
    force: bool,
) -> None:
    """Show how a subnetwork forms, from a BASE through a series of checkpoints.

    BASE and each CKPT are a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision, the CKPTs in the order of training. The folder of a training run may stand for the
    checkpoint-* folders in it. All are streamed: memory does not grow with their size or number.

    The file of a tracker alone, instead of BASE and CKPTs, shows the run that was tracked.

    Without -o, a table is printed.
    """
    for target in (output, html):
        if target is not None:
            ensure_free(target, force=force)
    if html is not None:
        # Better to hear of it now than after a long pass.
        from trimtab.report.html import check_installed

        check_installed()
    result = (
        _followed(base, checkpoints, cast=cast, dequantize=dequantize, threads=threads)
        if checkpoints
        else _tracked(Path(base))
    )
    result = replace(result, provenance={**result.provenance, "command": typed})
    if output is not None:
        write_output(output, to_json(result), force=force)
        click.echo(f"wrote {output}", err=True)
    if html is not None:
        from trimtab.report.html import render_trajectory_html

        write_output(html, render_trajectory_html(result), force=force)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(to_json(result), nl=False)
    elif output is None:
        from trimtab.report.trajectory_table import render_trajectory_table

        click.echo(render_trajectory_table(result, styled=sys.stdout.isatty()))


def _followed(
    base: str,
    checkpoints: tuple[str, ...],
    *,
    cast: str | None,
    dequantize: bool,
    threads: int | None,
) -> Trajectory:
    with byte_progress("following") as progress:
        return trimtab.trajectory(
            base,
            checkpoints,
            cast=cast,
            dequantize=dequantize,
            threads=threads,
            progress=progress,
        )


def _tracked(path: Path) -> Trajectory:
    if not path.is_file():
        raise click.UsageError(
            f"{path}: expected a BASE and at least one CKPT, or the file of a tracker"
        )
    return read_tracked(path)
