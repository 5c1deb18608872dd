"""`trimtab delta`: a tuned checkpoint as a delta against its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free, is_stream
from trimtab.progress import byte_progress
from trimtab.words import plural

max_rank_option = click.option(
    "--max-rank",
    type=click.IntRange(0, 16),
    default=16,
    help="Largest rank of the predictor of a matrix; 0 is faster, and the delta larger.",
)

carry_option = click.option(
    "--carry",
    multiple=True,
    metavar="PATTERN",
    help="Files to store that are left out otherwise, such as '*.pt'. May be repeated.",
)

sha256_option = click.option(
    "--sha256", is_flag=True, help="Store the SHA-256 of every file, which `apply` checks."
)

signed_options = options.adding(
    click.option(
        "--signers",
        type=options.PATH,
        help="Public keys, or allowed_signers of OpenSSH: refuse what none of them signed.",
    ),
    click.option(
        "--signature", type=options.PATH, help="Signature of DELTA.  [default: DELTA.sig]"
    ),
)

mask_option = click.option(
    "--mask",
    type=options.PATH,
    multiple=True,
    help="Mask over whose elements DELTA is coded. May be repeated for a chain.  [default: "
    "mask-DIGEST.safetensors beside DELTA]",
)

deltas_argument = click.argument("deltas", nargs=-1, required=True)


@click.group(
    "delta",
    cls=options.Group,
    short_help="Store a tuned checkpoint as a delta.",
    epilog="Example: trimtab delta make base/ tuned/ -o run.delta",
)
def delta() -> None:
    """Store a tuned checkpoint as a lossless delta against its base, and get it back."""


@delta.command(
    "make",
    cls=options.Command,
    short_help="Write a tuned checkpoint as a delta.",
    epilog="Example: trimtab delta make base/ tuned/ -o run.delta",
)
@click.argument("base")
@click.argument("tuned")
@click.option("-o", "--output", type=options.PATH, required=True, help="Delta file to write.")
@click.option("--after", type=options.PATH, help="Delta that produced BASE, to continue its chain.")
@click.option(
    "--mask", type=options.PATH, help="Mask of the elements that were trained: code only these."
)
@carry_option
@sha256_option
@max_rank_option
@options.threads_option
@options.force_option
def make(base: str, tuned: str, output: Path, carry: tuple[str, ...], **settings: Any) -> None:
    """Write a TUNED checkpoint as a delta against its BASE: a few per cent of its size.

    BASE and TUNED are each a folder, a file, or a hub id with an optional @revision; TUNED is of
    safetensors files. `trimtab delta apply` gives all of its files back, byte for byte. With
    --mask, it needs the mask too.
    """
    ensure_free(output, force=settings["force"])
    with byte_progress("coding") as progress:
        made = trimtab.make_delta(
            base,
            tuned,
            output,
            carry=carry,
            command=options.command_line(),
            progress=progress,
            **settings,
        )
    _say_written(output, made)
    if made.left_out:
        say(f"not stored: {', '.join(made.left_out)} (see --carry)", err=True)


@delta.command(
    "apply",
    cls=options.Command,
    short_help="Write the checkpoint that deltas make of a base.",
    epilog="Example: trimtab delta apply base/ run.delta -o tuned/",
)
@click.argument("base")
@click.argument("deltas", nargs=-1)
@click.option("-o", "--output", type=options.PATH, help="Folder to make.")
@click.option("--in-place", is_flag=True, help="Change the folder BASE itself.")
@click.option(
    "--no-undo", is_flag=True, help="With --in-place: keep nothing for `trimtab delta revert`."
)
@signed_options
@mask_option
@options.threads_option
def apply(
    base: str | None,
    deltas: tuple[str, ...],
    output: Path | None,
    in_place: bool,
    no_undo: bool,
    **settings: Any,
) -> None:
    """Write the checkpoint that DELTAS make of a BASE, byte for byte.

    DELTAS are one delta file, or those of a chain in any order; each may be a hub id with an
    optional @revision. A single delta without BASE is applied to the base that it names, at the
    commit that it names, from the hub. The hash of every tensor is checked before and after. With
    --in-place, the folder BASE becomes the result; if that is interrupted,
    `trimtab delta apply BASE --in-place` completes it.
    """
    if in_place == (output is not None):
        raise click.UsageError("give either -o FOLDER or --in-place")
    if no_undo and not in_place:
        raise click.UsageError("--no-undo is for --in-place")
    if settings["signature"] is not None and settings["signers"] is None:
        raise click.UsageError("--signature needs --signers")
    if base is not None and not deltas and not in_place:
        deltas, base = (base,), None
    with byte_progress("decoding") as progress:
        if output is not None:
            trimtab.apply_delta(base, deltas, output, progress=progress, **settings)
        elif base is not None:
            trimtab.apply_in_place(
                base, deltas or None, keep_undo=not no_undo, progress=progress, **settings
            )
    say(f"wrote {output or base}", err=True)


@delta.command(
    "revert",
    cls=options.Command,
    short_help="Undo `trimtab delta apply --in-place`.",
    epilog="Example: trimtab delta revert base/",
)
@click.argument("folder", type=options.PATH)
@options.threads_option
def revert(folder: Path, threads: int | None) -> None:
    """Undo the last `trimtab delta apply --in-place` on a FOLDER, bit for bit."""
    with byte_progress("decoding") as progress:
        trimtab.revert(folder, threads=threads, progress=progress)
    say(f"wrote {folder}", err=True)


@delta.command(
    "verify",
    cls=options.Command,
    short_help="Check deltas, alone or against their base.",
    epilog="Example: trimtab delta verify run.delta --base base/",
)
@deltas_argument
@click.option("--base", help="The base: decode everything and check every hash.")
@signed_options
@mask_option
@options.threads_option
def verify(
    deltas: tuple[str, ...],
    base: str | None,
    threads: int | None,
    signers: Path | None,
    signature: Path | None,
    mask: tuple[Path, ...],
) -> None:
    """Check that DELTAS are whole and form one chain; with --base, that they decode on it.

    DELTAS are files or hub ids. With --signers, each needs a signature of one of the keys: that of
    `ssh-keygen -Y sign -n trimtab.delta -f KEY DELTA`, which writes DELTA.sig. Exit code 1 says
    what is wrong.
    """
    if signature is not None and (signers is None or len(deltas) > 1):
        raise click.UsageError("--signature is for one DELTA, and needs --signers")
    if signers is not None:
        for path in deltas:
            say(f"{path} is signed by {trimtab.verify_signature(path, signers, signature)}")
    if base is None:
        from trimtab.deltas.chain import opened_chain

        with opened_chain(deltas):
            pass
        say(f"{plural(len(deltas), 'delta')} in order; give --base to decode and check the tensors")
        return
    with byte_progress("checking") as progress:
        checked = trimtab.verify_delta(base, deltas, mask=mask, threads=threads, progress=progress)
    files = plural(len(checked.files), "file")
    tensors = plural(len(checked.tensors), "tensor")
    say(f"{tensors} and {files} decode to what the delta says")


@delta.command(
    "info",
    cls=options.Command,
    short_help="Show what a delta holds, and where its bytes go.",
    epilog="Example: trimtab delta info run.delta --html info.html",
)
@click.argument("path", metavar="DELTA")
@click.option("--base", help="The base: decode everything, and show how far elements moved.")
@mask_option
@options.threads_option
@options.result_options
def info(path: str, base: str | None, outputs: options.Outputs, **settings: Any) -> None:
    """Show what a DELTA holds, and where its bytes go by kind, layer and tensor.

    DELTA is a file or a hub id. With --base, also the distances by which elements moved, and the
    size that the entropies of positions and distances allow a coder that does not look at the base.
    """
    with byte_progress("decoding") as progress:
        manifest = trimtab.delta_info(path, base, progress=progress, **settings)
    outputs.give(manifest)


@delta.command(
    "chain",
    cls=options.Command,
    short_help="Show the order in which deltas are applied.",
    epilog="Example: trimtab delta chain run/*.delta",
)
@deltas_argument
def chain(deltas: tuple[str, ...]) -> None:
    """Show the order in which DELTAS are applied; refuse gaps and forks."""
    from trimtab.deltas.chain import opened_chain

    with opened_chain(deltas) as ordered:
        for step in ordered:
            manifest = step.manifest
            say(
                f"{step.path}: {manifest.base.content_hash} → {manifest.result.content_hash}, "
                f"{step.num_bytes:,} bytes"
            )


@delta.command(
    "compact",
    cls=options.Command,
    short_help="Write one delta in place of a chain.",
    epilog="Example: trimtab delta compact base/ run/*.delta -o run.delta",
)
@click.argument("base")
@deltas_argument
@click.option("-o", "--output", type=options.PATH, required=True, help="Delta file to write.")
@mask_option
@sha256_option
@max_rank_option
@options.threads_option
@options.force_option
def compact(base: str, deltas: tuple[str, ...], output: Path, **settings: Any) -> None:
    """Write one delta that does what a chain of DELTAS does to its BASE."""
    ensure_free(output, force=settings["force"])
    with byte_progress("coding") as progress:
        made = trimtab.compact_deltas(
            base, deltas, output, command=options.command_line(), progress=progress, **settings
        )
    _say_written(output, made)


@delta.command(
    "export",
    cls=options.Command,
    short_help="Write a delta in a format of another program.",
    epilog="Example: trimtab delta export base/ tuned/ --to slime -o weight_v000001",
)
@click.argument("base")
@click.argument("tuned")
@click.option("-o", "--output", type=options.PATH, required=True, help="Folder or file to write.")
@click.option(
    "--to",
    "format",
    type=click.Choice(["slime", "arc_v2", "index_value"]),
    required=True,
    help="Format: slime's folder, Fireworks' arc_v2, or indices and values.",
)
@click.option(
    "--encoding",
    type=click.Choice(["xor", "overwrite"]),
    default="xor",
    show_default=True,
    help="Encoding of slime's format.",
)
@click.option(
    "--checksum",
    type=click.Choice(["adler32", "xxh3-128", "blake3"]),
    default="adler32",
    show_default=True,
    help="Checksum of slime's format.",
)
@click.option("--version", default=1, show_default=True, help="Version of TUNED, for slime.")
@click.option("--base-version", default=0, show_default=True, help="Version of BASE, for slime.")
@options.force_option
def export(base: str, tuned: str, output: Path, format: str, force: bool, **settings: Any) -> None:
    """Write a TUNED checkpoint as a delta against its BASE in a format of another program."""
    from trimtab.checkpoints.checkpoint import opened
    from trimtab.deltas.exchange.arc import write_arc_v2
    from trimtab.deltas.exchange.index_value import write_index_value
    from trimtab.deltas.exchange.slime import write_slime

    if force and format != "index_value":
        raise click.UsageError("--force is for index_value: a folder is never replaced")
    with opened(base, tuned) as (old, new), byte_progress("coding") as progress:
        if format == "slime":
            done = write_slime(old, new, output, progress=progress, **settings)
        elif format == "arc_v2":
            done = write_arc_v2(old, new, output, progress=progress)
        else:
            done = write_index_value(old, new, output, force=force, progress=progress)
    say(f"wrote {output}: {done.num_bytes:,} bytes", err=True)


@delta.command(
    "import",
    cls=options.Command,
    short_help="Apply a delta of another program.",
    epilog="Example: trimtab delta import base/ weight_v000001 -o tuned/",
)
@click.argument("base")
@click.argument("source", type=options.PATH)
@click.option("-o", "--output", type=options.PATH, required=True, help="Folder to make.")
@click.option(
    "--from",
    "format",
    type=click.Choice(["slime", "arc_v2", "index_value"]),
    help="Format of SOURCE.  [default: detected]",
)
@click.option("--base-version", type=int, help="Version of BASE, which slime's format checks.")
def import_(base: str, source: Path, output: Path, format: Any, base_version: int | None) -> None:
    """Apply a delta of another program to its BASE and write the checkpoint that results."""
    from trimtab.deltas.exchange.importing import import_delta

    with byte_progress("decoding") as progress:
        done = import_delta(
            base, source, output, format=format, base_version=base_version, progress=progress
        )
    say(f"wrote {output} from a delta of format {done.format}", err=True)
    if done.unchecked:
        say(f"without a checksum: {plural(len(done.unchecked), 'tensor')}", err=True)


@delta.command(
    "push",
    cls=options.Command,
    short_help="Write a delta to the hub, with a model card.",
    epilog="Example: trimtab delta push run.delta org/name-delta --base org/base@main",
)
@click.argument("path", metavar="DELTA", type=options.PATH)
@click.argument("repository")
@click.option(
    "--base",
    metavar="ID",
    help="The base as a hub id, if DELTA was made against a local copy of it.",
)
@click.option("--private", is_flag=True, help="Make a new repository private.")
def push(path: Path, repository: str, base: str | None, private: bool) -> None:
    """Write a DELTA to a REPOSITORY on the hub as model.delta, with a model card.

    It needs `hf auth login`, or HF_TOKEN. The delta must name its base by hub id and commit: it
    does so if it was made against a hub id; with --base it is checked against that one first.
    """
    with byte_progress("checking") as progress:
        pushed = trimtab.push_delta(path, repository, base=base, private=private, progress=progress)
    say(f"pushed {pushed}", err=True)


def _say_written(path: Path, made: trimtab.Manifest) -> None:
    from trimtab.report.delta import size_sentence

    size = None if is_stream(path) else path.stat().st_size
    say(f"wrote {path}: {size_sentence(made, size)}", err=True)
