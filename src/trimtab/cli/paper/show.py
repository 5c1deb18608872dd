"""`trimtab paper show PAPER`."""

from __future__ import annotations

import json

import click

from trimtab.cli.terminal import say

__all__ = ["command"]


@click.command("show", epilog="Example: trimtab paper show mukherjee-2025")
@click.argument("paper")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(paper: str, as_json: bool) -> None:
    """Show what a paper claims, and by which runs each claim is tried.

    PAPER is an id of `trimtab paper list`.
    """
    from trimtab.papers.library import papers_folder, read_paper
    from trimtab.report.paper_plan import render_claims

    told = read_paper(paper, papers_folder()).to_dict()
    say(json.dumps(told, indent=1, ensure_ascii=False) if as_json else render_claims(told))
