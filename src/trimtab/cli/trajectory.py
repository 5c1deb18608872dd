"""`trimtab trajectory BASE CKPT…`."""

from __future__ import annotations

from pathlib import Path

import click

import trimtab
from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, result_options
from trimtab.compare.tracked import read_tracked
from trimtab.compare.trajectory_result import Trajectory

__all__ = ["command"]


@click.command("trajectory", epilog="Example: trimtab trajectory base/ run/ --html report.html")
@click.argument("base")
@click.argument("checkpoints", nargs=-1, metavar="[CKPT]...")
@click.option("--cast", metavar="DTYPE", help="Round all floats to DTYPE (bf16, fp16, ...) first.")
@click.option("--dequantize", is_flag=True, help="Multiply quantised weights by their scales.")
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@result_options
@click.pass_obj
def command(
    typed: str,
    base: str,
    checkpoints: tuple[str, ...],
    cast: str | None,
    dequantize: bool,
    threads: int | None,
    outputs: Outputs,
) -> None:
    """Show how a subnetwork forms, from a BASE through a series of checkpoints.

    BASE and each CKPT are a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision, the CKPTs in the order of training. The folder of a training run may stand for the
    checkpoint-* folders in it. All are streamed: memory does not grow with their size or number.

    The file of a tracker alone, instead of BASE and CKPTs, shows the run that was tracked.

    Without -o, a table is printed.
    """
    result = (
        _followed(base, checkpoints, cast=cast, dequantize=dequantize, threads=threads)
        if checkpoints
        else _tracked(Path(base))
    )
    outputs.give(result, typed)


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
