"""`trimtab paper list`."""

from __future__ import annotations

import click

from trimtab.cli.terminal import say

__all__ = ["command"]


@click.command("list", epilog="Example: trimtab paper list")
def command() -> None:
    """List the papers, with how many claims of each are known."""
    from trimtab.papers.library import paper_ids, papers_folder, read_paper

    folder = papers_folder()
    ids = paper_ids(folder)
    width = max(map(len, ids))
    for id in ids:
        paper = read_paper(id, folder)
        num = len(paper.claims) + len(paper.public)
        say(f"{id.ljust(width)}  {num:>3} claims  {paper.title} ({paper.arxiv})")
