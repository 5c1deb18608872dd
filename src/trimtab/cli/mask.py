"""`trimtab mask VERB`: make masks of what changed and their controls, and compare masks.

The verbs of `trimtab mask make` are in `trimtab.cli.mask_make` and `trimtab.cli.mask_probe`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import trimtab
from trimtab.cli import coded_mask, mask_probe, options
from trimtab.cli.mask_make import complement, make
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free
from trimtab.progress import byte_progress

if TYPE_CHECKING:
    from trimtab.masks.on_disk import StoredMask

SPLIT_RESULT = "split.json"
"""The counts of `mask share`, next to the parts."""

SPAN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")

MOST_LAYERS = 100_000


@click.group(
    "mask",
    cls=options.Group,
    short_help="Make a mask of the elements that changed, and its controls.",
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
def mask() -> None:
    """Make a mask of the elements that changed, and its controls.

    A mask has one bit for each element of each tensor: whether it is selected.
    """


@mask.command(
    "extract",
    short_help="Select the elements that changed.",
    epilog="Example: trimtab mask extract base/ tuned/ -o m.safetensors",
)
@click.argument("base")
@click.argument("tuned")
@click.option(
    "--changed",
    default="bits",
    metavar="CRITERION",
    help="Criterion of what changed: bits, value, atol=T, strict_atol=T or rel=T.",
)
@options.conversion_options
@options.threads_option
@options.writes_a_mask
def extract(base: str, tuned: str, target: options.MaskTarget, **settings: Any) -> None:
    """Select the elements that changed from a BASE to a TUNED checkpoint.

    BASE and TUNED are each a folder, a .safetensors or .bin file, or a hub id with an optional
    @revision. Both are streamed.
    """
    from trimtab.report.mask import gaps_text

    with byte_progress("extracting") as progress:
        extracted = trimtab.extract_mask(base, tuned, progress=progress, **settings)
    step = extracted.provenance["steps"][0]
    if step["conversion"]:
        say(f"compared: {step['conversion']}", err=True)
    if gaps := gaps_text(step):
        say(f"not compared in full: {gaps}; `trimtab mask info --json` lists them", err=True)
    target.write(extracted)


@mask.command(
    "random",
    short_help="Control: the same number of elements, at random positions.",
    epilog="Example: trimtab mask random m.safetensors --seed 1 -o r.safetensors",
)
@click.argument("mask", type=options.PATH)
@click.option(
    "--match",
    type=click.Choice(["tensor", "magnitude"]),
    default="tensor",
    help="Match the numbers per tensor, or per tensor × exponent of the base weight.",
)
@click.option("--base", help="Base that MASK was made against, for --match magnitude.")
@options.seed_option("Seed of the positions.")
@options.writes_a_mask
def random(mask: Path, match: str, base: str | None, seed: int, target: options.MaskTarget) -> None:
    """Select the same number of elements in each tensor as MASK, at random positions.

    In bf16, training can hardly change weights that are not small, so most of what two masks share
    is that both prefer small weights. With --match magnitude, so does the control.
    """
    if (base is not None) != (match == "magnitude"):
        raise click.UsageError("--match magnitude and --base BASE go together")
    loaded = trimtab.Mask.load(mask)
    if base is None:
        target.write(loaded.random_like(seed))
        return
    with byte_progress("drawing") as progress:
        control = trimtab.random_matched(loaded, base, seed, progress=progress)
    target.write(control)


mask.add_command(complement)
mask.add_command(make)
for _verb in (mask_probe.fisher, mask_probe.sign_consistency, mask_probe.snip):
    make.add_command(_verb)


@mask.command(
    "survivors",
    short_help="Select the elements that survive pruning: those that are not 0.",
    epilog="Example: trimtab mask survivors pruned/ -o alive.safetensors",
)
@click.argument("checkpoint")
@options.writes_a_mask
def survivors(checkpoint: str, target: options.MaskTarget) -> None:
    """Select the elements of a CHECKPOINT that are not 0.

    CHECKPOINT is a folder, a .safetensors or .bin file, or a hub id with an optional @revision.
    Both zeros count, +0 and -0.
    """
    with byte_progress("reading") as progress:
        alive = trimtab.survivors(checkpoint, progress=progress)
    target.write(alive)


def _add_set_operation(
    operation: Literal["and", "or", "xor", "minus"], short_help: str, selects: str
) -> None:
    """Add a verb that makes one mask of two."""

    @mask.command(
        operation,
        help=f"{selects}\n\nBoth are masks of one model. A tensor that a mask does not have counts "
        "as not selected. Both stay on disk: memory is that of the largest tensor.",
        short_help=f"Combine two masks: {short_help}.",
        epilog=f"Example: trimtab mask {operation} a.safetensors b.safetensors -o m.safetensors",
    )
    @click.argument("first", type=options.PATH)
    @click.argument("second", type=options.PATH)
    @options.writes_a_mask
    def command(first: Path, second: Path, target: options.MaskTarget) -> None:
        with trimtab.open_mask(first) as one, trimtab.open_mask(second) as other:
            combined = trimtab.combine(operation, one, other)
            _say_names([one, other])
            _say_bases(combined.header.provenance["steps"][-1]["base_differs"])
            target.write_derived(combined)


_add_set_operation("and", "what both select", "Select the elements that both FIRST and SECOND do.")
_add_set_operation(
    "or", "what either selects", "Select the elements that FIRST or SECOND do, or both."
)
_add_set_operation(
    "xor",
    "what exactly one selects",
    "Select the elements that one of FIRST and SECOND does and the other does not.",
)
_add_set_operation(
    "minus",
    "what only the first selects",
    "Select the elements that FIRST does and SECOND does not.",
)


def _layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """`0-3,7`: layers 0, 1, 2, 3 and 7."""
    if value is None:
        return None
    layers: list[int] = []
    for word in value.split(","):
        match = SPAN.fullmatch(word.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MOST_LAYERS:
            raise click.BadParameter(f"{word!r} is no layer, such as 7, and no range, such as 0-3")
        layers += range(first, last + 1)
    return layers


@mask.command(
    "restrict",
    short_help="Keep the part in some kinds, layers or tensors.",
    epilog="Example: trimtab mask restrict m.safetensors --kinds q_proj,k_proj -o qk.safetensors",
)
@click.argument("mask", type=options.PATH)
@click.option("--kinds", metavar="KIND,…", help="Kinds of tensors to keep, as in `mask info`.")
@click.option("--layers", callback=_layers, metavar="N,N-N,…", help="Layers to keep.")
@click.option(
    "--tensors",
    multiple=True,
    metavar="PATTERN",
    help="Tensor to keep, or pattern with * and ?; may be repeated.",
)
@options.writes_a_mask
def restrict(
    mask: Path,
    kinds: str | None,
    layers: list[int] | None,
    tensors: tuple[str, ...],
    target: options.MaskTarget,
) -> None:
    """Keep the tensors of MASK that meet every condition given, and leave out the others."""
    if kinds is None and layers is None and not tensors:
        raise click.UsageError("give at least one of --kinds, --layers and --tensors")
    with trimtab.open_mask(mask) as opened:
        restricted = trimtab.restrict(
            opened, kinds=options.names_of(kinds), layers=layers, tensors=tensors or None
        )
        target.write_derived(restricted)


@mask.command(
    "share",
    short_help="Split masks into what all select and what only one does.",
    epilog="Example: trimtab mask share code.safetensors math.safetensors -o parts/",
)
@click.argument("masks", type=options.PATH, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="FOLDER",
    help=f"Folder to write the parts to, and {SPLIT_RESULT}.",
)
@click.option("--base", help="Base that MASKS were made against, for chance matched by magnitude.")
@options.json_option
@options.force_option
def share(
    masks: tuple[Path, ...], output: Path, base: str | None, as_json: bool, force: bool
) -> None:
    """Split MASKS, such as those of several tasks, into their common core and own parts.

    The core is what all of them select; the own part of a mask is what only this mask selects. Each
    part is written as a mask, and its size is compared with chance: with random masks of the same
    number of elements in each tensor, and with --base also at each magnitude of its weights.

    The counts are written to the same folder, for `trimtab report`.
    """
    from trimtab.masks.split import part_files
    from trimtab.report.mask import share_text

    if len(masks) < 2:
        raise click.UsageError("give at least two masks")
    result = output / SPLIT_RESULT
    ensure_free(result, force=force)
    with ExitStack() as stack:
        opened = [stack.enter_context(trimtab.open_mask(mask)) for mask in masks]
        _say_names(opened)
        files = part_files(output, [mask.stem for mask in masks])
        with byte_progress("counting") as progress:
            split = trimtab.share(
                opened,
                files,
                base=base,
                progress=progress,
                command=options.command_line(),
                force=force,
            )
    _say_bases(split.base_differs)
    for part in split.parts:
        selected = share_text(part.num_selected, split.num_elements)
        say(f"wrote {part.file}: {selected} selected", err=True)
    split.save(result, force=force)
    say(f"wrote {result}", err=True)
    options.Outputs(as_json, output=None, html=None, force=force).give(split)


@mask.command(
    "transfer",
    short_help="Carry a mask to another checkpoint.",
    epilog="Example: trimtab mask transfer m.safetensors --to other/ -o t.safetensors",
)
@click.argument("mask", type=options.PATH)
@click.option("--to", required=True, metavar="OTHER", help="Checkpoint to carry it to.")
@click.option(
    "--map",
    "maps",
    type=click.Choice(["layers=interpolate", "units=density"]),
    multiple=True,
    help="Carry it to another depth, or to another width; can be given twice.",
)
@options.seed_option("Seed of the positions, for --map units=density.")
@options.writes_a_mask
def transfer(
    mask: Path, to: str, maps: tuple[Any, ...], seed: int, target: options.MaskTarget
) -> None:
    """Carry MASK to another checkpoint: a folder, a .safetensors or .bin file, or a hub id.

    Tensors of the same names and shapes keep their bits, and a vocabulary of another size the rows
    that both have. Another depth needs --map layers=interpolate: each layer gets the bits of the
    one at the same relative depth. Another width needs --map units=density: each row gets the
    density of the row at the same relative position, at random positions. Anything else is refused.
    """
    from trimtab.report.mask import carried_text

    with trimtab.open_mask(mask) as opened:
        with byte_progress("hashing") as progress:
            transferred = trimtab.transfer(opened, to, maps=maps, seed=seed, progress=progress)
        if summary := carried_text(transferred.header.provenance["steps"][-1]):
            say(summary, err=True)
        target.write_derived(transferred)


@mask.command(
    "overlap",
    short_help="Count what masks share, compared with chance.",
    epilog="Example: trimtab mask overlap seed-0.safetensors seed-1.safetensors --base base/",
)
@click.argument("masks", nargs=-1, required=True, metavar="A B [C …]", type=options.PATH)
@click.option(
    "--base",
    metavar="BASE",
    help="Checkpoint that the masks were made against; with it, chance is also matched by the "
    "magnitude of its weights.",
)
@click.option(
    "--series",
    is_flag=True,
    help="The masks are in the order of time: compare each with the last.",
)
@options.threads_option
@options.result_options
def overlap(masks: tuple[Path, ...], outputs: options.Outputs, **settings: Any) -> None:
    """Count the elements that masks share, compared with what they would share by chance.

    A, B, … are files of masks of one model. What two of them share is compared with three nulls:
    random masks with the same number of elements in total, in each tensor, and (with --base) in
    each tensor at each magnitude of the base's weights. With three masks or more, every pair is
    compared, and the elements are counted by the number of masks that select them.

    Without -o, a table is printed.
    """
    with byte_progress("counting") as progress:
        result = trimtab.overlap(*masks, progress=progress, **settings)
    outputs.give(result)


@mask.command(
    "score",
    short_help="Measure how well a mask predicts another.",
    epilog="Example: trimtab mask score predicted.safetensors m.safetensors --base base/",
)
@click.argument("pred", type=options.PATH)
@click.argument("true", type=options.PATH)
@click.option(
    "--scores",
    type=options.PATH,
    help="Scores that PRED was selected by, to evaluate their whole ranking.",
)
@click.option(
    "--base",
    metavar="BASE",
    help="Checkpoint that both were made against; with it, PRED is also compared with random masks "
    "of its magnitudes, and with the smallest weights.",
)
@options.result_options
def score(
    pred: Path, true: Path, scores: Path | None, base: str | None, outputs: options.Outputs
) -> None:
    """Measure how well the mask PRED predicts the mask TRUE.

    Precision is the share of PRED that is in TRUE, recall the share of TRUE that is in PRED, and
    average precision that of the ranking by --scores, or of PRED alone. Next to them is the lift
    over random masks with the same number of elements in total, in each tensor and (with --base) in
    each tensor at each magnitude, and over the same number of the smallest weights.

    Without -o, a table is printed.
    """
    with byte_progress("counting") as progress:
        result = trimtab.score_prediction(pred, true, scores=scores, base=base, progress=progress)
    outputs.give(result)


@mask.command(
    "structure",
    short_help="Show where in the network masks are dense, compared with chance.",
    epilog="Example: trimtab mask structure m.safetensors --base base/ --html s.html",
)
@click.argument("masks", type=options.PATH, nargs=-1, required=True)
@click.option("--base", metavar="BASE", help="Checkpoint that the masks were made against.")
@click.option(
    "--config",
    type=options.PATH,
    metavar="FOLDER",
    help="Folder of the config.json, if BASE is not available.",
)
@click.option("--map", metavar="TENSOR", help="Name of the matrix to map.")
@options.seed_option("Seed of the random control of the first mask.")
@options.threads_option
@options.result_options
def structure(
    masks: tuple[Path, ...],
    base: str | None,
    config: Path | None,
    outputs: options.Outputs,
    **settings: Any,
) -> None:
    """Show where in the network masks are dense: by head, neuron, channel, row and column.

    The count of each unit is compared with chance (the same number of elements in each tensor, at
    random positions) and with a random mask drawn that way. With BASE (a folder, a file, or a hub
    id with an optional @revision) chance is also matched by magnitude, so that small weights alone
    do not explain what is left. Several masks of one model are compared by unit.

    Attention heads and KV groups need head counts, from BASE or --config. By default the map shows
    the most dispersed tensor.

    Without -o, a table is printed.
    """
    if base is not None and config is not None:
        raise click.UsageError("--base and --config: give one of them; BASE has a config.")
    with byte_progress("counting") as progress:
        result = trimtab.structure(*masks, base=base, config=config, progress=progress, **settings)
    outputs.give(result)


@mask.command(
    "info",
    short_help="Show what a mask selects, and how it was made.",
    epilog="Example: trimtab mask info m.safetensors",
)
@click.argument("mask", type=options.PATH)
@options.json_option
def info(mask: Path, as_json: bool) -> None:
    """Show what MASK selects, by kind, and how it was made."""
    from trimtab.masks.mask import summarise
    from trimtab.report.mask import mask_document
    from trimtab.report.terminal import render_text

    with trimtab.open_mask(mask) as opened:
        if as_json:
            say(json.dumps(summarise(opened), indent=1))
        else:
            say(render_text(mask_document(opened), styled=sys.stdout.isatty()))


mask.add_command(coded_mask.pack)
mask.add_command(coded_mask.unpack)


def _say_names(masks: Sequence[StoredMask]) -> None:
    """Say which tensors have different names in different masks."""
    from trimtab.masks.matching import named_alike
    from trimtab.words import first_few

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


def _say_bases(names: Sequence[str]) -> None:
    """Say which tensors lose their digest because masks were made against different bases."""
    from trimtab.words import first_few

    if names:
        say(
            f"made against different bases in {len(names)} of the tensors: {first_few(names)}; "
            "the result has no digest for them",
            err=True,
        )
