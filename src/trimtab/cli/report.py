"""`trimtab report RESULT.json -o report.html`: draw a report again without the checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from trimtab.cli.results import Result, render_page, render_text
from trimtab.compare import Comparison, trajectory_result
from trimtab.compare.trajectory_result import Trajectory
from trimtab.errors import ResultFormatError
from trimtab.masks import identity_result
from trimtab.masks.identity_result import Identity
from trimtab.report.files import ensure_free, write_output
from trimtab.training.evaluation import result as evaluation_result
from trimtab.training.evaluation.result import Evaluation

__all__ = ["command"]


@click.command("report", epilog="Example: trimtab report cmp.json -o report.html")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write HTML to this file.")
@click.option("--force", is_flag=True, help="Replace an output file that exists.")
def command(result: Path, output: Path | None, force: bool) -> None:
    """Show a saved result: a table, or with -o an HTML report.

    RESULT is what -o of `trimtab compare`, `trimtab identity`, `trimtab trajectory` or `trimtab
    evaluate` wrote. No checkpoint is opened.
    """
    loaded = load_result(result)
    if output is None:
        click.echo(render_text(loaded, styled=sys.stdout.isatty()))
        return
    ensure_free(output, force=force)
    write_output(output, render_page(loaded), force=force)
    click.echo(f"wrote {output}", err=True)


def load_result(path: Path) -> Result:
    """Read what `-o` of a command wrote.

    Raises:
        ResultFormatError: The file is no JSON, or no result of this version.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultFormatError(
            f"{path}: expected JSON from -o of `trimtab compare`, `trimtab identity`, `trimtab "
            f"trajectory` or `trimtab evaluate`: {error}"
        ) from None
    format = data.get("format") if isinstance(data, dict) else None
    try:
        if format == identity_result.FORMAT:
            return Identity.from_dict(data)
        if format == trajectory_result.FORMAT:
            return Trajectory.from_dict(data)
        if format == evaluation_result.FORMAT:
            return Evaluation.from_dict(data)
        return Comparison.from_dict(data)
    except ResultFormatError as error:
        raise ResultFormatError(f"{path}: {error}") from None
