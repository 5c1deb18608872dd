"""`trimtab store`: many checkpoints tuned from one base, each stored as a delta."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.delta import carry_option, max_rank_option
from trimtab.cli.terminal import say
from trimtab.progress import byte_progress
from trimtab.words import plural

store_argument = click.argument("folder", metavar="STORE", type=options.PATH)

base_option = click.option("--base", help="Where the base is now.  [default: where it was]")


@click.group(
    "store",
    cls=options.Group,
    short_help="Store many fine-tunes of one base.",
    epilog="Example: trimtab store init store/ --base base/",
)
def store() -> None:
    """Store many checkpoints that were tuned from one base, each as a lossless delta."""


@store.command(
    "init",
    cls=options.Command,
    short_help="Make an empty store.",
    epilog="Example: trimtab store init store/ --base base/",
)
@store_argument
@click.option("--base", required=True, help="The base: a folder, a file, or a hub id.")
def init(folder: Path, base: str) -> None:
    """Make an empty STORE for checkpoints that were tuned from a base.

    The base is not copied: the store records where it is, its revision and its hash.
    """
    with byte_progress("reading") as progress:
        made = trimtab.Store.create(folder, base, progress=progress)
    say(f"wrote {folder}: a store for {made.base.id}", err=True)


@store.command(
    "add",
    cls=options.Command,
    short_help="Add a tuned checkpoint.",
    epilog="Example: trimtab store add store/ run/checkpoint-20",
)
@store_argument
@click.argument("tuned")
@click.option("--name", help="Its name in the store.  [default: the last part of TUNED]")
@click.option(
    "--against",
    metavar="NAME|base|auto",
    default="auto",
    help="What to store the difference to; auto takes the base or the newest checkpoint, "
    "whichever gives the smaller file.",
)
@carry_option
@max_rank_option
@base_option
@options.threads_option
@click.option("--verify", is_flag=True, help="Decode what is stored before it gets its name.")
@click.option("--force", is_flag=True, help="Take the name from the checkpoint that has it.")
def add(folder: Path, tuned: str, name: str | None, **settings: Any) -> None:
    """Add a TUNED checkpoint to a STORE.

    A checkpoint whose files all equal those of another is stored once.
    """
    if name is None:
        name = Path(tuned.partition("@")[0]).resolve().name
    opened = trimtab.Store(folder)
    with byte_progress("coding") as progress:
        entry = opened.add(
            tuned, name, command=options.command_line(), progress=progress, **settings
        )
    say(f"added {entry.name}: {_size_of(entry)}, against {entry.against}", err=True)
    if entry.left_out:
        say(f"not stored: {', '.join(entry.left_out)} (see --carry)", err=True)


@store.command(
    "list",
    cls=options.Command,
    short_help="List the checkpoints of a store.",
    epilog="Example: trimtab store list store/",
)
@store_argument
@options.json_option
def list_(folder: Path, as_json: bool) -> None:
    """List the checkpoints of a STORE in the order in which they were added."""
    opened = trimtab.Store(folder)
    entries = opened.entries()
    if as_json:
        data = {"base": opened.base.to_dict(), "checkpoints": [asdict(each) for each in entries]}
        say(json.dumps(data, indent=1))
        return
    from trimtab.elements.counts import percent

    rows = [("name", "bytes", "of checkpoint", "against", "added")]
    for entry in entries:
        part = percent(entry.num_bytes, entry.num_dense_bytes)
        rows.append((entry.name, f"{entry.num_bytes:,}", part, entry.against, entry.date[:19]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, size, part, against, date in rows:
        start = f"{name:<{widths[0]}}  {size:>{widths[1]}}  {part:>{widths[2]}}"
        say(f"{start}  {against:<{widths[3]}}  {date}")
    total = sum({entry.hash: entry.num_bytes for entry in entries}.values())
    dense = sum(entry.num_dense_bytes for entry in entries)
    say(
        f"{plural(len(entries), 'checkpoint')} of {opened.base.id}: {total:,} bytes, "
        f"{percent(total, dense)} of their {dense:,}"
    )


@store.command(
    "checkout",
    cls=options.Command,
    short_help="Write a checkpoint of a store.",
    epilog="Example: trimtab store checkout store/ checkpoint-20 -o tuned/",
)
@store_argument
@click.argument("name")
@click.option("-o", "--output", type=options.PATH, required=True, help="Folder to make.")
@base_option
@options.threads_option
def checkout(folder: Path, name: str, output: Path, **settings: Any) -> None:
    """Write the checkpoint NAME of a STORE, byte for byte."""
    opened = trimtab.Store(folder)
    with byte_progress("decoding") as progress:
        opened.checkout(name, output, progress=progress, **settings)
    say(f"wrote {output}", err=True)


@store.command(
    "verify",
    cls=options.Command,
    short_help="Check everything in a store.",
    epilog="Example: trimtab store verify store/",
)
@store_argument
@click.option("--quick", is_flag=True, help="Do without the base, and decode nothing.")
@base_option
@options.threads_option
def verify(folder: Path, quick: bool, **settings: Any) -> None:
    """Decode every checkpoint of a STORE and check every hash.

    Exit code 1 says what is wrong.
    """
    opened = trimtab.Store(folder)
    with byte_progress("checking") as progress:
        num = opened.verify(decodes=not quick, progress=progress, **settings)
    say(f"{plural(num, 'object')} {'opened' if quick else 'decoded'}: nothing is wrong")


@store.command(
    "remove",
    cls=options.Command,
    short_help="Remove a name from a store.",
    epilog="Example: trimtab store remove store/ checkpoint-10",
)
@store_argument
@click.argument("name")
def remove(folder: Path, name: str) -> None:
    """Remove a NAME from a STORE; `trimtab store gc` frees the space."""
    trimtab.Store(folder).remove(name)
    say(f"removed {name}", err=True)


@store.command(
    "gc",
    cls=options.Command,
    short_help="Remove what no name needs.",
    epilog="Example: trimtab store gc store/",
)
@store_argument
def gc(folder: Path) -> None:
    """Remove the objects of a STORE that no name needs, and what killed processes left.

    Objects that others are deltas against are kept, and what is being added.
    """
    num_objects, num_bytes = trimtab.Store(folder).gc()
    say(f"removed {plural(num_objects, 'object')}, {num_bytes:,} bytes", err=True)


def _size_of(entry: trimtab.StoreEntry) -> str:
    from trimtab.elements.counts import percent

    share = percent(entry.num_bytes, entry.num_dense_bytes)
    return f"{entry.num_bytes:,} bytes, {share} of the {entry.num_dense_bytes:,} of the checkpoint"
