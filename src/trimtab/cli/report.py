"""`trimtab report RESULT.json -o report.html`: draw a report again without the checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import click

from trimtab.cli.options import PATH, Command, ensure_ending, force_option
from trimtab.cli.terminal import say
from trimtab.errors import ResultFormatError
from trimtab.inputs import MAX_RESULT_BYTES, read_json
from trimtab.outputs import ensure_free, new_file
from trimtab.report import Result, commands, document_of, read_result, text_of
from trimtab.report.files import write_output
from trimtab.words import plural

__all__ = ["report"]


@click.command(
    "report",
    cls=Command,
    short_help="Draw the report of a saved result again.",
    epilog="Example: trimtab report cmp.json -o report.html",
)
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, help="HTML file to write.")
@click.option(
    "--figures",
    type=PATH,
    metavar="FOLDER",
    help="Folder to write every figure to, each in a file of its own.",
)
@click.option(
    "--format",
    type=click.Choice(["svg", "png"]),
    default="svg",
    show_default=True,
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
    """Show saved results: tables, or with -o an HTML report of all of them.

    RESULTS are what -o of a command that measures wrote, such as `trimtab compare`. No checkpoint
    is opened.
    """
    ensure_ending(output, "HTML")
    loaded = [load_result(path) for path in results]
    if output is None and figures is None:
        styled = sys.stdout.isatty()
        tables = [text_of(result, styled=styled) for result in loaded]
        say("\n\n".join(tables))
        return
    from trimtab.report.figures import figure_files
    from trimtab.report.html import render

    pages = [document_of(result) for result in loaded]
    if output is not None:
        ensure_free(output, force=force)
        write_output(output, render(*pages), force=force)
        say(f"wrote {output}", err=True)
    if figures is not None:
        drawn = {figures / file.name: file.content for file in figure_files(pages, format)}
        for path in drawn:
            ensure_free(path, force=force)
        for path, content in drawn.items():
            with new_file(path, force=force) as file:
                file.write(content)
        say(f"wrote {plural(len(drawn), 'figure')} to {figures}", err=True)


def load_result(path: Path) -> Result:
    """Read what `-o` of a command wrote.

    Raises:
        ResultFormatError: The file is no JSON, or no result of this version.
    """
    data = read_json(
        path,
        ResultFormatError,
        limit=MAX_RESULT_BYTES,
        strict=True,
        expected=f"JSON from -o of {commands()}",
    )
    try:
        return read_result(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{path}: {error}") from None
