"""`trimtab mask and | or | xor | minus`: two masks to one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from trimtab.cli.mask.options import save_derived, tell_of_bases, tell_of_names, writes_a_mask
from trimtab.masks.algebra import Operation, combined
from trimtab.masks.on_disk import open_mask
from trimtab.outputs import ensure_free

__all__ = ["commands"]

SELECTS: Mapping[Operation, str] = {
    "and": "Select the elements that both FIRST and SECOND do.",
    "or": "Select the elements that FIRST or SECOND do, or both.",
    "xor": "Select the elements that one of FIRST and SECOND does and the other does not.",
    "minus": "Select the elements that FIRST does and SECOND does not.",
}


def _verb(operation: Operation) -> click.Command:
    """The verb of an operation."""
    path = click.Path(path_type=Path)

    @click.command(
        operation,
        help=f"{SELECTS[operation]}\n\nBoth are masks of one model. What a mask does not have, it "
        "does not select. They stay on disk: memory is that of the largest tensor.",
        epilog=f"Example: trimtab mask {operation} a.safetensors b.safetensors -o m.safetensors",
    )
    @click.argument("first", type=path)
    @click.argument("second", type=path)
    @writes_a_mask
    def command(typed: str, first: Path, second: Path, output: Path, force: bool) -> None:
        ensure_free(output, force=force)
        with open_mask(first) as one, open_mask(second) as other:
            made = combined(operation, one, other)
            tell_of_names([one, other])
            tell_of_bases(made.outline.provenance["steps"][-1]["base_differs"])
            save_derived(made, output, typed, force=force)

    return command


commands = {operation: _verb(operation) for operation in SELECTS}
