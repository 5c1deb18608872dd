"""`trimtab report CMP.json -o report.html`: draw a report again without the checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trimtab.compare import Comparison
from trimtab.errors import ResultFormatError
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]


@click.command("report", epilog="Example: trimtab report cmp.json -o report.html")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write HTML to this file.")
@click.option("--force", is_flag=True, help="Replace an output file that exists.")
def command(result: Path, output: Path | None, force: bool) -> None:
    """Show a saved comparison: a table, or with -o an HTML report.

    RESULT is what `trimtab compare -o` wrote. No checkpoint is opened.
    """
    comparison = load_comparison(result)
    if output is None:
        from trimtab.report.table import render_table

        click.echo(render_table(comparison, styled=sys.stdout.isatty()))
        return
    from trimtab.report.html import render_html

    ensure_free(output, force=force)
    write_output(output, render_html(comparison), force=force)
    click.echo(f"wrote {output}", err=True)


def load_comparison(path: Path) -> Comparison:
    """Read what `trimtab compare -o` wrote.

    Raises:
        ResultFormatError: The file is no JSON, or no comparison of this version.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultFormatError(
            f"{path}: expected JSON from `trimtab compare -o`: {error}"
        ) from None
    try:
        return Comparison.from_dict(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{path}: {error}") from None
