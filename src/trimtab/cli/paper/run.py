"""`trimtab paper run PAPER`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from trimtab.cli.paper.commands import ask_to_stop, in_its_own_process, in_this_process
from trimtab.cli.results import Outputs, result_options
from trimtab.cli.stopping import stop_told
from trimtab.cli.terminal import say
from trimtab.errors import TrimtabError

__all__ = ["command"]

QUICK = 1.0
"""Minutes of a run that is not worth a process of its own, which first loads torch."""


@click.command("run", epilog="Example: trimtab paper run mukherjee-2025 --scale small --dry-run")
@click.argument("paper")
@click.option("--scale", default="tiny", show_default=True, help="Which runs: tiny or small.")
@click.option(
    "--checkpoints",
    type=click.Path(path_type=Path),
    metavar="MAP.toml",
    help="Where published checkpoints are, to measure them, too.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs that train at a time.",
)
@click.option("--seeds", metavar="SEED,...", help="In place of those that the paper's config has.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("papers-out"),
    show_default=True,
    help="Folder of all runs, which papers share.",
)
@click.option("--dry-run", is_flag=True, help="Print the plan and what it costs, and stop.")
@click.option("--no-training", is_flag=True, help="Measure the runs that are finished.")
@result_options
@click.pass_obj
def command(
    typed: str,
    paper: str,
    scale: str,
    checkpoints: Path | None,
    jobs: int,
    seeds: str | None,
    out: Path,
    dry_run: bool,
    no_training: bool,
    outputs: Outputs,
) -> None:
    """Run what a paper's claims need, measure it, and say which of them hold.

    PAPER is an id of `trimtab paper list`. Interrupt it when you like: the same command goes on,
    and keeps the runs that are finished.
    """
    from trimtab.papers.library import papers_folder, read_paper
    from trimtab.papers.public import read_checkpoints
    from trimtab.papers.run import plan_paper, run_paper
    from trimtab.report.paper_plan import render_paper_plan

    of = read_paper(paper, papers_folder())
    pairs = [pair.id for pair in of.public]
    plan = plan_paper(
        of,
        scale,
        out,
        seeds=None if seeds is None else _numbers(seeds),
        checkpoints={} if checkpoints is None else read_checkpoints(checkpoints, pairs),
    )
    told = plan.to_dict()
    if dry_run:
        say(json.dumps(told, indent=1) if outputs.as_json else render_paper_plan(told))
        return
    say(f"{render_paper_plan(told)}\n", err=True)
    is_quick = plan.scale.minutes < QUICK and jobs == 1
    with stop_told(ask_to_stop):
        try:
            result = run_paper(
                plan,
                in_this_process if is_quick else in_its_own_process,
                jobs=jobs,
                trains=not no_training,
                told=lambda said: say(said, err=True),
            )
        except KeyboardInterrupt as interrupt:
            missing = f"{len(plan.missing)} of {len(plan.cells)} runs"
            raise type(interrupt)(f"the same command goes on: {missing} are missing") from None
    outputs.give(result, typed)
    if failed := result.scale["failed"]:
        name, why = next(iter(failed.items()))
        raise TrimtabError(f"{len(failed)} of the runs failed, the first of them {name}: {why}")


def _numbers(said: str) -> list[int]:
    parts = said.split(",")
    if not all(part.isdecimal() for part in parts):
        raise click.UsageError(f"--seeds {said}: expected whole numbers, as in 0,1,2")
    return [int(part) for part in parts]
