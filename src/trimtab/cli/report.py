"""`trimtab report RESULT.json`: show results again, or write them as a page, tables or figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from trimtab.cli.options import PATH, Command, ensure_ending, force_option
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free, new_file, write_text
from trimtab.report import document_of, html_of, load_result, text_of
from trimtab.words import plural


@click.command(
    "report",
    cls=Command,
    short_help="Draw the report of a saved result again.",
    epilog="Example: trimtab report cmp.json -o report.html",
)
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option(
    "-o",
    "--output",
    type=PATH,
    help="HTML file to write; or tables for a paper, as .csv, .md or .tex.",
)
@click.option(
    "--figures",
    type=PATH,
    metavar="FOLDER",
    help="Folder to write the figures to, one file each.",
)
@click.option(
    "--format",
    type=click.Choice(["svg", "png"]),
    default="svg",
    help="Format of the figures.",
)
@force_option
def report(
    results: tuple[Path, ...],
    output: Path | None,
    figures: Path | None,
    format: Literal["svg", "png"],
    force: bool,
) -> None:
    """Show saved results: tables, or with -o an HTML report of all of them, or their tables.

    RESULTS are JSON files written by -o of a command such as `trimtab compare`. No checkpoint is
    opened. A CSV file has the exact numbers, with a row for each row of each table.
    """
    from trimtab.report.html import figure_files
    from trimtab.report.tables import WRITERS

    draw = html_of
    if output is not None and output.suffix.lower() in WRITERS:
        draw = WRITERS[output.suffix.lower()]
    else:
        ensure_ending(output, "HTML")
    loaded = [load_result(path) for path in results]
    if output is None and figures is None:
        say("\n\n".join(text_of(result, styled=sys.stdout.isatty()) for result in loaded))
        return
    if output is not None:
        ensure_free(output, force=force)
        write_text(output, draw(*loaded), force=force)
        say(f"wrote {output}", err=True)
    if figures is not None:
        files = figure_files([document_of(result) for result in loaded], format)
        drawn = {figures / file.name: file.content for file in files}
        for path in drawn:
            ensure_free(path, force=force)
        for path, content in drawn.items():
            with new_file(path, force=force) as file:
                file.write(content)
        say(f"wrote {plural(len(drawn), 'figure')} to {figures}", err=True)
