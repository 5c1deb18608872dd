"""`trimtab mask extract`."""

from __future__ import annotations

from pathlib import Path

import click

from trimtab.cli.mask.options import write_mask, writes_a_mask
from trimtab.cli.progress import byte_progress
from trimtab.cli.terminal import say
from trimtab.masks import extract_mask
from trimtab.outputs import ensure_free

__all__ = ["command"]


@click.command(
    "extract",
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
@click.option(
    "--cast",
    metavar="DTYPE",
    help="Round all floats to DTYPE (bf16, fp32, ...) first.",
)
@click.option("--dequantize", is_flag=True, help="Multiply quantised weights by their scales.")
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@writes_a_mask
def command(
    typed: str,
    base: str,
    tuned: str,
    changed: str,
    cast: str | None,
    dequantize: bool,
    threads: int | None,
    output: Path,
    force: bool,
) -> None:
    """Select the elements that changed from a BASE to a TUNED checkpoint.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed.
    """
    from trimtab.report.mask_steps import gaps_text

    ensure_free(output, force=force)
    with byte_progress("extracting") as progress:
        mask = extract_mask(
            base,
            tuned,
            changed=changed,
            cast=cast,
            dequantize=dequantize,
            threads=threads,
            progress=progress,
        )
    step = mask.provenance["steps"][0]
    if step["conversion"]:
        say(f"compared: {step['conversion']}", err=True)
    if gaps := gaps_text(step):
        say(f"not compared in full: {gaps}; `trimtab mask info --json` lists them", err=True)
    write_mask(mask, output, typed, force=force)
