"""`trimtab mask pack` and `unpack`: a mask in a fraction of a bit for each element."""

from __future__ import annotations

from pathlib import Path

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free
from trimtab.progress import byte_progress

_base_option = click.option(
    "--base", required=True, metavar="BASE", help="Checkpoint that the mask was made against."
)


@click.command(
    "pack",
    cls=options.Command,
    short_help="Write a mask in a fraction of a bit for each element.",
    epilog="Example: trimtab mask pack m.safetensors --base base/ -o packed.safetensors",
)
@click.argument("mask", type=options.PATH)
@_base_option
@click.option("-o", "--output", type=options.PATH, required=True, help="File to write.")
@options.threads_option
@options.force_option
def pack(mask: Path, base: str, output: Path, threads: int | None, force: bool) -> None:
    """Write MASK as small as its base allows; `trimtab mask unpack` gives it back.

    A mask file has one bit for each element. Which elements training moves is mostly a question of
    their exponent in the base, so given the base, a mask needs less.
    """
    options.ensure_ending(output, "safetensors")
    ensure_free(output, force=force)
    with byte_progress("coding") as progress:
        num_bytes = trimtab.pack_mask(
            mask, base, output, threads=threads, force=force, progress=progress
        )
    with trimtab.open_mask(mask) as opened:
        num_bits = 8 * num_bytes / max(opened.num_elements(), 1)
    factor = mask.stat().st_size / num_bytes
    say(
        f"wrote {output}: {num_bytes:,} bytes, {num_bits:.3f} bits an element, {factor:.2f} times "
        "smaller than the mask",
        err=True,
    )


@click.command(
    "unpack",
    cls=options.Command,
    short_help="Get a packed mask back.",
    epilog="Example: trimtab mask unpack packed.safetensors --base base/ -o m.safetensors",
)
@click.argument("path", metavar="PACKED", type=options.PATH)
@_base_option
@click.option("-o", "--output", type=options.PATH, required=True, help="Mask file to write.")
@options.threads_option
@options.force_option
def unpack(path: Path, base: str, output: Path, threads: int | None, force: bool) -> None:
    """Write the mask that `trimtab mask pack` was given, with its provenance; check its digest."""
    options.ensure_ending(output, "safetensors")
    ensure_free(output, force=force)
    with byte_progress("decoding") as progress:
        digest = trimtab.unpack_mask(
            path, base, output, threads=threads, force=force, progress=progress
        )
    say(f"wrote {output}: digest {digest}", err=True)
