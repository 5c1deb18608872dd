"""`trimtab report RESULT.json -o report.html`: draw a report again without the checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trimtab.compare import Comparison
from trimtab.errors import ResultFormatError
from trimtab.masks import identity_result
from trimtab.masks.identity_result import Identity
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]


@click.command("report", epilog="Example: trimtab report cmp.json -o report.html")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write HTML to this file.")
@click.option("--force", is_flag=True, help="Replace an output file that exists.")
def command(result: Path, output: Path | None, force: bool) -> None:
    """Show a saved result: a table, or with -o an HTML report.

    RESULT is what `trimtab compare -o` or `trimtab identity -o` wrote. No checkpoint is opened.
    """
    loaded = load_result(result)
    if output is None:
        click.echo(_table(loaded, styled=sys.stdout.isatty()))
        return
    ensure_free(output, force=force)
    write_output(output, _page(loaded), force=force)
    click.echo(f"wrote {output}", err=True)


def _table(result: Comparison | Identity, *, styled: bool) -> str:
    if isinstance(result, Identity):
        from trimtab.report.identity_table import render_identity_table

        return render_identity_table(result, styled=styled)
    from trimtab.report.table import render_table

    return render_table(result, styled=styled)


def _page(result: Comparison | Identity) -> str:
    from trimtab.report.html import render_html, render_identity_html

    return render_identity_html(result) if isinstance(result, Identity) else render_html(result)


def load_result(path: Path) -> Comparison | Identity:
    """Read what `trimtab compare -o` or `trimtab identity -o` wrote.

    Raises:
        ResultFormatError: The file is no JSON, or no result of this version.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultFormatError(
            f"{path}: expected JSON from `trimtab compare -o` or `trimtab identity -o`: {error}"
        ) from None
    is_identity = isinstance(data, dict) and data.get("format") == identity_result.FORMAT
    try:
        return Identity.from_dict(data) if is_identity else Comparison.from_dict(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{path}: {error}") from None
