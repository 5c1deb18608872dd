"""`trimtab identity BASE FULL SUB --mask m.safetensors`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from trimtab.cli.compare import to_json
from trimtab.cli.progress import byte_progress
from trimtab.masks.identity import identity
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]


@click.command("identity", epilog="Example: trimtab identity base/ full/ sub/ --mask m.safetensors")
@click.argument("base")
@click.argument("full")
@click.argument("sub")
@click.option(
    "--mask",
    type=click.Path(path_type=Path),
    required=True,
    help="The mask that SUB was trained in.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Tensors read at the same time.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON to this file.")
@click.option("--html", type=click.Path(path_type=Path), help="Write an HTML report to this file.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
@click.pass_obj
def command(
    typed: str,
    base: str,
    full: str,
    sub: str,
    mask: Path,
    threads: int | None,
    as_json: bool,
    output: Path | None,
    html: Path | None,
    force: bool,
) -> None:
    """Ask whether training only a mask gave the model that training every weight gave.

    BASE is where both trainings started, FULL the model after training every weight, SUB after
    training those of the mask; each a folder, a .safetensors or .bin file, or a hub id with an
    optional @revision. SUB is set against FULL inside the mask and outside it apart, and so is
    BASE: what doing nothing would score. All are streamed.

    Without -o, a table is printed.
    """
    for target in (output, html):
        if target is not None:
            ensure_free(target, force=force)
    if html is not None:
        # Better to hear of it now than after a long pass.
        from trimtab.report.html import check_installed

        check_installed()
    with byte_progress("comparing") as progress:
        result = identity(base, full, sub, mask, threads=threads, progress=progress)
    result = replace(result, provenance={**result.provenance, "command": typed})
    if output is not None:
        write_output(output, to_json(result), force=force)
        click.echo(f"wrote {output}", err=True)
    if html is not None:
        from trimtab.report.html import render_identity_html

        write_output(html, render_identity_html(result), force=force)
        click.echo(f"wrote {html}", err=True)
    if as_json:
        click.echo(to_json(result), nl=False)
    elif output is None:
        from trimtab.report.identity_table import render_identity_table

        click.echo(render_identity_table(result, styled=sys.stdout.isatty()))
