"""What the commands that make a result share: where it goes, and in which form."""

from __future__ import annotations

import json
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

from trimtab.cli.paths import ensure_ending
from trimtab.cli.terminal import say
from trimtab.report import Result, html_of, text_of
from trimtab.report.files import ensure_free, write_output

__all__ = ["Outputs", "result_options", "to_json"]

_OPTIONS = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
    click.option(
        "-o", "--output", type=click.Path(path_type=Path), help="Write JSON to this file."
    ),
    click.option(
        "--html", type=click.Path(path_type=Path), help="Write an HTML report to this file."
    ),
    click.option(
        "--open",
        "is_opened",
        is_flag=True,
        help="Show the HTML report in the browser; without --html, from a temporary folder.",
    ),
    click.option("--force", is_flag=True, help="Replace output files that exist."),
)


@dataclass(frozen=True)
class Outputs:
    """Where a result goes.

    Attributes:
        as_json: Print JSON.
        output: Write JSON to this file. Without it and `as_json`, a table is printed.
        html: Write a page to this file.
        force: Replace files that exist.
        is_opened: Show the page in the browser.
    """

    as_json: bool
    output: Path | None
    html: Path | None
    force: bool
    is_opened: bool = False

    def check(self) -> None:
        """Refuse now what would be refused after long work.

        Raises:
            OutputExistsError: A file exists.
            click.UsageError: The ending of a name is that of another format.
            MissingExtraError: The chart library is not installed.
        """
        ensure_ending(self.output, "JSON")
        ensure_ending(self.html, "HTML")
        for target in (self.output, self.html):
            if target is not None:
                ensure_free(target, force=self.force)
        if self.html is not None:
            from trimtab.report.html import check_installed

            check_installed()

    def give(self, result: Result, typed: str) -> None:
        """Write and print a result, with the command as it was typed in its provenance."""
        told = {**result.provenance, "command": typed}
        result = replace(result, provenance=told)  # type: ignore[type-var]
        if self.output is not None:
            write_output(self.output, to_json(result), force=self.force)
            say(f"wrote {self.output}", err=True)
        if self.html is not None:
            write_output(self.html, html_of(result), force=self.force)
            say(f"wrote {self.html}", err=True)
            if self.is_opened and not webbrowser.open(self.html.absolute().as_uri()):
                say(f"no browser was found to open {self.html}", err=True)
        if self.as_json:
            say(to_json(result), nl=False)
        elif self.output is None:
            say(text_of(result, styled=sys.stdout.isatty()))


def result_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Outputs`, checked, as its argument `outputs`."""

    @wraps(command)
    def with_outputs(
        *args: Any,
        as_json: bool,
        output: Path | None,
        html: Path | None,
        is_opened: bool,
        force: bool,
        **more: Any,
    ) -> None:
        if is_opened and html is None:
            html = Path(tempfile.mkdtemp(prefix="trimtab-")) / "report.html"
        outputs = Outputs(as_json, output, html, force, is_opened)
        outputs.check()
        command(*args, outputs=outputs, **more)

    wrapped: Callable[..., None] = with_outputs
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


def to_json(result: Result) -> str:
    """A result as JSON text."""
    return json.dumps(result.to_dict(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
