"""What the verbs of `trimtab mask` share: their argument, and where a mask is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import click

from trimtab.cli.paths import ensure_ending
from trimtab.cli.terminal import say
from trimtab.masks import Mask
from trimtab.masks.algebra import DerivedMask
from trimtab.masks.matching import named_alike
from trimtab.masks.on_disk import StoredMask
from trimtab.words import first_few

__all__ = [
    "mask_argument",
    "save_derived",
    "tell_of_bases",
    "tell_of_names",
    "write_mask",
    "writes_a_mask",
]

mask_argument = click.argument("mask", type=click.Path(path_type=Path))


def writes_a_mask(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of a command that writes a mask; it is given `typed` first."""
    path = click.Path(path_type=Path)
    output = click.option(
        "-o",
        "--output",
        type=path,
        required=True,
        callback=_mask_ending,
        help="Write the mask to this file.",
    )
    force = click.option("--force", is_flag=True, help="Replace an output file that exists.")
    return output(force(click.pass_obj(function)))


def _mask_ending(context: click.Context, parameter: click.Parameter, path: Path) -> Path:
    ensure_ending(path, "safetensors")
    return path


def write_mask(mask: Mask, output: Path, typed: str, *, force: bool) -> None:
    """Write a mask with the command as it was typed, and say what it selects."""
    from trimtab.report.mask_table import selected_text

    mask.with_provenance(command=typed).save(output, force=force)
    say(f"wrote {output}: {selected_text(mask)} selected", err=True)


def save_derived(mask: DerivedMask, output: Path, typed: str, *, force: bool) -> None:
    """Make a mask from others on disk, straight into its file, and say what it selects."""
    from trimtab.report.mask_table import share_text

    num_selected = mask.with_provenance(command=typed).save(output, force=force)
    share = share_text(num_selected, mask.outline.num_elements())
    say(f"wrote {output}: {share} selected", err=True)


def tell_of_names(masks: Sequence[StoredMask]) -> None:
    """Say which tensors of some masks are taken for those that others call by another name."""
    pairs = [
        f"{name} is {new_name}"
        for mask, alike in zip(masks, named_alike(masks), strict=True)
        for name, new_name in zip(mask, alike, strict=True)
        if name != new_name
    ]
    if pairs:
        say(
            f"the masks name {len(pairs)} of the tensors differently, by a wrapper or a prefix: "
            f"{first_few(pairs)}; they are taken as the same tensors",
            err=True,
        )


def tell_of_bases(differs: Sequence[str]) -> None:
    """Say which tensors have lost their digest because masks were made against different bases."""
    if differs:
        say(
            f"made against different bases in {len(differs)} of the tensors: {first_few(differs)}; "
            "the result says of these no longer what they were",
            err=True,
        )
