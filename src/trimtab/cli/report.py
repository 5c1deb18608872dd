"""`trimtab report RESULT.json -o report.html`: draw a report again without the checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trimtab.cli.renderings import Result, commands, read_result, rendering_of
from trimtab.errors import ResultFormatError
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]


@click.command("report", epilog="Example: trimtab report cmp.json -o report.html")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write HTML to this file.")
@click.option("--force", is_flag=True, help="Replace an output file that exists.")
def command(result: Path, output: Path | None, force: bool) -> None:
    """Show a saved result: a table, or with -o an HTML report.

    RESULT is what -o of a command that measures wrote, such as `trimtab compare`. No checkpoint is
    opened.
    """
    loaded = load_result(result)
    if output is None:
        click.echo(rendering_of(loaded).render_text(loaded, styled=sys.stdout.isatty()))
        return
    ensure_free(output, force=force)
    write_output(output, rendering_of(loaded).render_page(loaded), force=force)
    click.echo(f"wrote {output}", err=True)


def load_result(path: Path) -> Result:
    """Read what `-o` of a command wrote.

    Raises:
        ResultFormatError: The file is no JSON, or no result of this version.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        expected = f"expected JSON from -o of {commands()}"
        raise ResultFormatError(f"{path}: {expected}: {error}") from None
    try:
        return read_result(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{path}: {error}") from None
