"""What commands share: options, checks of paths, and the output of results and masks."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trimtab.cli.terminal import say
from trimtab.errors import CheckpointError, OutputExistsError
from trimtab.outputs import ensure_distinct, ensure_free, is_same_file, is_stream, write_text
from trimtab.report import html_of, text_of

if TYPE_CHECKING:
    from trimtab.masks.algebra import DerivedMask
    from trimtab.masks.mask import Mask
    from trimtab.results.result import Result

PATH = click.Path(path_type=Path)

SEED = click.IntRange(min=0, max=2**32 - 1)

OUTPUTS = ("output", "html", "survivors", "save_statistics", "scores")
"""Parameters of commands that name a file to write."""

ENDINGS = {
    ".csv": "CSV",
    ".htm": "HTML",
    ".html": "HTML",
    ".json": "JSON",
    ".md": "Markdown",
    ".pdf": "PDF",
    ".png": "PNG",
    ".safetensors": "safetensors",
    ".svg": "SVG",
    ".tsv": "TSV",
    ".xlsx": "XLSX",
}
"""Ending of a file name -> the format that it implies; other endings imply none."""

OTHER_FILES = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "adapter_*")
"""Files of a model that are read by name, next to its weights and its config."""

Function = Callable[..., Any]


class Command(click.Command):
    """A verb; refuses outputs that are the same file, or a file that it reads."""

    def invoke(self, ctx: click.Context) -> Any:
        """Check the paths, and run the verb."""
        flags = {param.name: param.opts[0] for param in self.params if param.name is not None}
        outputs = {
            flag: ctx.params[name]
            for name, flag in flags.items()
            if name in OUTPUTS and isinstance(ctx.params[name], Path)
        }
        ensure_distinct(outputs)
        inputs = [value for name, value in ctx.params.items() if name not in OUTPUTS]
        for flag, output in outputs.items():
            if output.exists() and not is_stream(output):
                _ensure_not_read(flag, output, inputs)
        return super().invoke(ctx)


class Group(click.Group):
    """A group of verbs, listed in the order in which they were added."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the verbs, in the order in which they were added."""
        return list(self.commands)


def _ensure_not_read(flag: str, output: Path, inputs: Any) -> None:
    for path in _read_by(inputs):
        if is_same_file(path, output):
            raise OutputExistsError(
                f"{flag} {output}: the command reads that file, so it is never replaced: "
                "give another name"
            )


def _read_by(value: Any) -> Iterator[Path]:
    """The files that a command reads for the value of a parameter."""
    from trimtab.checkpoints.folder import find_weights, read_config

    if isinstance(value, (tuple, list)):
        for each in value:
            yield from _read_by(each)
    if not isinstance(value, (str, Path)) or not os.fspath(value):
        return
    path = Path(value)
    with suppress(OSError, ValueError):
        if path.is_file():
            yield path
        elif path.is_dir():
            yield from (file for pattern in OTHER_FILES for file in path.glob(pattern))
            yield path / "config.json"
            with suppress(CheckpointError):
                yield from find_weights(path, read_config(path)).paths
            yield from path.glob("*.index.json")


def ensure_ending(path: Path | None, format: str) -> None:
    """Refuse a file name that implies another format.

    Args:
        path: The file to write; None is not checked.
        format: The format written: one of the values of `ENDINGS`.

    Raises:
        click.UsageError: The ending is that of another format.
    """
    if path is None:
        return
    ending = path.suffix.lower()
    if ENDINGS.get(ending, format) != format:
        expected = next(ending for ending, name in reversed(ENDINGS.items()) if name == format)
        raise click.UsageError(
            f"{path}: {format} is written, and {ending} says {ENDINGS[ending]}: give a name that "
            f"ends in {expected}"
        )


def command_line() -> str:
    """The current command line, which results keep in their provenance."""
    command: str = click.get_current_context().obj
    return command


def names_of(text: str | None) -> list[str] | None:
    """The names in an option such as `--kinds q_proj,k_proj`; None if it was not given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def adding(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """A decorator that adds options to a command, in this order."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


def seed_option(help: str, type: Any = int) -> Callable[[Function], Function]:
    """`--seed`, 0 by default."""
    return click.option("--seed", type=type, default=0, help=help)


def set_option(help: str) -> Callable[[Function], Function]:
    """`--set KEY=VALUE`, as the argument `overrides`."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=help)


threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Number of tensors read at the same time."
)

conversion_options = adding(
    click.option(
        "--cast", metavar="DTYPE", help="Dtype to round all floats to first: bf16, fp16, ..."
    ),
    click.option("--dequantize", is_flag=True, help="Multiply quantised weights by their scales."),
)

batch_size_option = click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    help="Number of answers generated at a time.",
)

text_option = click.option(
    "--text", type=PATH, metavar="FILE", help="Text to read, instead of the built-in neutral one."
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")

force_option = click.option("--force", is_flag=True, help="Replace output files that exist.")


@dataclass(frozen=True)
class Outputs:
    """How a result is printed and written.

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
        """Raise now what would otherwise be raised after a long computation.

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

    def give(self, result: Result) -> None:
        """Write and print a result, with the command line in its provenance."""
        provenance = {**result.provenance, "command": command_line()}
        result = replace(result, provenance=provenance)  # type: ignore[type-var]
        if self.output is not None:
            result.save(self.output, force=self.force)
            say(f"wrote {self.output}", err=True)
        if self.html is not None:
            write_text(self.html, html_of(result), force=self.force)
            say(f"wrote {self.html}", err=True)
            if self.is_opened and not webbrowser.open(self.html.absolute().as_uri()):
                say(f"no browser was found to open {self.html}", err=True)
        if self.as_json:
            say(result.to_json(), nl=False)
        elif self.output is None:
            say(text_of(result, styled=sys.stdout.isatty()))


def result_options(function: Callable[..., None]) -> Function:
    """Add the options of `Outputs` to a command, checked, as its argument `outputs`."""

    @wraps(function)
    def with_outputs(
        *,
        as_json: bool,
        output: Path | None,
        html: Path | None,
        is_opened: bool,
        force: bool,
        **options: Any,
    ) -> None:
        if is_opened and html is None:
            html = Path(tempfile.mkdtemp(prefix="trimtab-")) / "report.html"
        outputs = Outputs(as_json, output, html, force, is_opened)
        outputs.check()
        function(outputs=outputs, **options)

    return adding(
        click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table."),
        click.option("-o", "--output", type=PATH, help="JSON file to write."),
        click.option("--html", type=PATH, help="HTML report to write."),
        click.option(
            "--open",
            "is_opened",
            is_flag=True,
            help="Show the HTML report in the browser; without --html, from a temporary folder.",
        ),
        force_option,
    )(with_outputs)


@dataclass(frozen=True)
class MaskTarget:
    """The file that a mask is written to.

    Attributes:
        path: The file.
        force: Replace it if it exists.
    """

    path: Path
    force: bool

    def write(self, mask: Mask) -> None:
        """Write a mask with the command line in its provenance, and print its size."""
        mask.with_provenance(command=command_line()).save(self.path, force=self.force)
        self._say(mask.num_selected(), mask.num_elements())

    def write_derived(self, mask: DerivedMask) -> None:
        """Compute a mask from others on disk, directly into its file, and print its size."""
        mask = mask.with_provenance(command=command_line())
        self._say(mask.save(self.path, force=self.force), mask.header.num_elements())

    def _say(self, num_selected: int, num_elements: int) -> None:
        from trimtab.report.mask import share_text

        say(f"wrote {self.path}: {share_text(num_selected, num_elements)} selected", err=True)


def writes_a_mask(function: Callable[..., None]) -> Function:
    """Add `-o` and `--force` to a command, checked, as its argument `target`."""

    @wraps(function)
    def with_target(*, output: Path, force: bool, **options: Any) -> None:
        ensure_ending(output, "safetensors")
        ensure_free(output, force=force)
        function(target=MaskTarget(output, force), **options)

    return adding(
        click.option("-o", "--output", type=PATH, required=True, help="Mask file to write."),
        force_option,
    )(with_target)
