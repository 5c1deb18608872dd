"""`trimtab paper list | show | run`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from trimtab.cli import options
from trimtab.cli.terminal import say, stop_asked
from trimtab.errors import TrimtabError


@click.group(
    "paper",
    cls=options.Group,
    short_help="Test a paper's claims in new runs.",
    epilog="Example: trimtab paper run mukherjee-2025 --scale tiny",
)
def paper() -> None:
    """Test a paper's claims in new runs, with controls that the paper lacks."""


@paper.command("list", short_help="List the papers.", epilog="Example: trimtab paper list")
def list_papers() -> None:
    """List the papers, with their numbers of claims."""
    from trimtab.papers.library import paper_ids, papers_folder, read_paper

    folder = papers_folder()
    ids = paper_ids(folder)
    width = max(map(len, ids))
    for id in ids:
        paper = read_paper(id, folder)
        num = len(paper.claims) + len(paper.public)
        say(f"{id.ljust(width)}  {num:>3} claims  {paper.title} ({paper.arxiv})")


@paper.command(
    "show",
    short_help="Show a paper's claims and the runs that test them.",
    epilog="Example: trimtab paper show mukherjee-2025",
)
@click.argument("paper")
@options.json_option
def show(paper: str, as_json: bool) -> None:
    """Show a paper's claims and the runs that test each of them.

    PAPER is an id of `trimtab paper list`.
    """
    from trimtab.papers.library import papers_folder, read_paper
    from trimtab.report.paper import claims_document
    from trimtab.report.terminal import render_text

    data = read_paper(paper, papers_folder()).to_dict()
    say(
        json.dumps(data, indent=1, ensure_ascii=False)
        if as_json
        else render_text(claims_document(data))
    )


@paper.command(
    "run",
    short_help="Run what the claims need, and show which of them hold.",
    epilog="Example: trimtab paper run mukherjee-2025 --scale small --dry-run",
)
@click.argument("paper")
@click.option("--scale", default="tiny", help="Size of the runs: tiny or small.")
@click.option(
    "--checkpoints",
    type=options.PATH,
    metavar="MAP.toml",
    help="File with the paths of published checkpoints, to measure them too.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    help="Number of runs that train at a time.",
)
@click.option("--seeds", metavar="SEED,...", help="Seeds, instead of those in the paper's config.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("papers-out"),
    help="Folder of all runs, which papers share.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and what it costs, and stop.")
@click.option("--no-training", is_flag=True, help="Measure the runs that are finished.")
@options.result_options
def run(
    paper: str,
    scale: str,
    checkpoints: Path | None,
    jobs: int,
    seeds: str | None,
    out: Path,
    dry_run: bool,
    no_training: bool,
    outputs: options.Outputs,
) -> None:
    """Run what a paper's claims need, measure it, and show which of them hold.

    PAPER is an id of `trimtab paper list`. It can be interrupted at any time: the same command
    resumes and keeps the runs that are finished.
    """
    from trimtab.papers.library import papers_folder, read_paper
    from trimtab.papers.public import read_checkpoints
    from trimtab.papers.run import plan_paper, run_paper
    from trimtab.report.paper import plan_document
    from trimtab.report.terminal import render_text

    chosen = read_paper(paper, papers_folder())
    pairs = [pair.id for pair in chosen.public]
    plan = plan_paper(
        chosen,
        scale,
        out,
        seeds=None if seeds is None else _numbers(seeds),
        checkpoints={} if checkpoints is None else read_checkpoints(checkpoints, pairs),
    )
    data = plan.to_dict()
    if dry_run:
        say(json.dumps(data, indent=1) if outputs.as_json else render_text(plan_document(data)))
        return
    say(f"{render_text(plan_document(data))}\n", err=True)
    with stop_asked("finishing the steps under way and saving them") as stop:
        result = run_paper(
            plan,
            jobs=jobs,
            trains=not no_training,
            notify=lambda message: say(message, err=True),
            stop=stop,
        )
    outputs.give(result)
    if failed := result.scale["failed"]:
        name, why = next(iter(failed.items()))
        raise TrimtabError(f"{len(failed)} of the runs failed, the first of them {name}: {why}")


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"--seeds {text}: expected whole numbers, as in 0,1,2")
    return [int(part) for part in parts]
