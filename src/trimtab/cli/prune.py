"""`trimtab prune BASE -o PRUNED --sparsity S`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import trimtab
from trimtab.cli import options
from trimtab.cli.terminal import say
from trimtab.outputs import ensure_free, ensure_no_folder
from trimtab.progress import byte_progress

if TYPE_CHECKING:
    from trimtab.masks.pruning import Method


@click.command(
    "prune",
    cls=options.Command,
    short_help="Zero the weights of least magnitude, or least effect.",
    epilog="Example: trimtab prune base/ -o pruned/ --sparsity 0.5",
)
@click.argument("base")
@click.option("-o", "--output", type=options.PATH, required=True, help="Folder to write.")
@click.option(
    "--sparsity",
    type=click.FloatRange(0, 1),
    required=True,
    help="Share of each matrix to set to zero; by wanda, of each of its rows.",
)
@click.option(
    "--method",
    type=click.Choice(["magnitude", "wanda"]),
    default="magnitude",
    help="Which weights to zero: the smallest, or those that affect the outputs least.",
)
@click.option(
    "--statistics", type=options.PATH, help="Norms of the inputs of each matrix, for wanda."
)
@click.option(
    "--text", type=options.PATH, help="Text to measure the norms on.  [default: a neutral one]"
)
@click.option(
    "--prompts", type=options.PATH, help="JSON Lines file of prompts to measure the norms on."
)
@click.option("--save-statistics", type=options.PATH, help="File to write the measured norms to.")
@click.option(
    "--kinds",
    metavar="KIND,...",
    help="Kinds of matrices to prune.  [default: those of the layers; not embed, lm_head, router]",
)
@options.seed_option("Seed for choosing among equal magnitudes.")
@click.option(
    "--survivors", type=options.PATH, help="File to write the mask of what is not zero to."
)
@click.option("--force", is_flag=True, help="Replace output files that exist; never a folder.")
def prune(
    base: str,
    output: Path,
    method: Method,
    statistics: Path | None,
    text: Path | None,
    prompts: Path | None,
    save_statistics: Path | None,
    kinds: str | None,
    survivors: Path | None,
    force: bool,
    **settings: Any,
) -> None:
    """Set a share of the weights to zero, and write the pruned checkpoint.

    BASE is a folder of safetensors, or a hub id with an optional @revision. Its dtypes, files,
    config and tokenizer stay as they are. Embeddings, head, norms, biases and routers are left
    alone unless --kinds names them.

    wanda needs the norms of the inputs of each matrix: from --statistics, or measured on a text
    (needs the extra "train").
    """
    sources = {"statistics": statistics, "text": text, "prompts": prompts}
    given = [f"--{name}" for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)}: give one of them")
    if method != "wanda" and (given or save_statistics is not None):
        raise click.UsageError(f"{(*given, '--save-statistics')[0]} is for --method wanda")
    if statistics is not None and save_statistics is not None:
        raise click.UsageError("--save-statistics is for measured norms, without --statistics")
    ensure_no_folder(output)
    for path in (save_statistics, survivors):
        options.ensure_ending(path, "safetensors")
        if path is not None:
            ensure_free(path, force=force)

    norms = None
    if statistics is not None:
        norms = trimtab.InputNorms.load(statistics)
    elif method == "wanda":
        from trimtab.training.input_norms import measure_input_norms

        norms = measure_input_norms(base, text=text, prompts=prompts)
        if save_statistics is not None:
            norms.save(save_statistics, force=force)
            say(f"wrote {save_statistics}", err=True)
    with byte_progress("pruning") as progress:
        pruning = trimtab.prune(
            base,
            output,
            method=method,
            norms=norms,
            kinds=options.names_of(kinds),
            command=options.command_line(),
            progress=progress,
            **settings,
        )
    from trimtab.report.wording import of_all
    from trimtab.words import plural

    total, checkpoint = pruning.total, pruning.total + pruning.others
    matrices = plural(len(pruning.pruned), "matrix", "matrices")
    say(
        f"wrote {output}: zeros are {of_all(total.num_after, total.num_elements)} of "
        f"{matrices}, {of_all(total.num_before, total.num_elements)} before; "
        f"{of_all(checkpoint.num_after, checkpoint.num_elements)} of the checkpoint",
        err=True,
    )
    if survivors is not None:
        with byte_progress("reading") as progress:
            mask = trimtab.survivors(output, progress=progress)
        options.MaskTarget(survivors, force).write(mask)
