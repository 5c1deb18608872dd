"""`trimtab mask share`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from trimtab.cli.mask.options import tell_of_bases, tell_of_names
from trimtab.cli.progress import byte_progress
from trimtab.cli.results import Outputs, to_json
from trimtab.cli.terminal import say
from trimtab.masks.on_disk import open_mask
from trimtab.masks.split import part_files, write_parts
from trimtab.report.files import ensure_free, write_output

__all__ = ["command"]

RESULT = "split.json"
"""What came of it, beside the parts."""


@click.command(
    "share",
    epilog="Example: trimtab mask share code.safetensors math.safetensors -o parts/",
)
@click.argument("masks", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="FOLDER",
    help=f"Write the parts to this folder, and {RESULT}.",
)
@click.option("--base", help="What MASKS were made against, for chance matched by magnitude.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--force", is_flag=True, help="Replace output files that exist.")
@click.pass_obj
def command(
    typed: str,
    masks: tuple[Path, ...],
    output: Path,
    base: str | None,
    as_json: bool,
    force: bool,
) -> None:
    """Split MASKS, such as those of several tasks, into their common core and own parts.

    The core is what all of them select; the own part of a mask is what it selects and no other
    does. Each is a mask, in a file of its own, and is counted next to what chance gives: for masks
    with as many elements in each tensor, and with --base also of each magnitude of its weights.

    The counts are written beside them, for `trimtab report`.
    """
    from trimtab.report.mask_table import share_text

    if len(masks) < 2:
        raise click.UsageError("give at least two masks")
    result = output / RESULT
    ensure_free(result, force=force)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_mask(mask)) for mask in masks]
        tell_of_names(opened)
        files = part_files(output, [mask.stem for mask in masks])
        with byte_progress("counting") as progress:
            split = write_parts(
                opened, files, base=base, progress=progress, command=typed, force=force
            )
    tell_of_bases(split.base_differs)
    for part in split.parts:
        share = share_text(part.num_selected, split.num_elements)
        say(f"wrote {part.file}: {share} selected", err=True)
    write_output(result, to_json(split), force=force)
    say(f"wrote {result}", err=True)
    Outputs(as_json, output=None, html=None, force=force).give(split, typed)
