"""The page of a paper's result: what holds, claim by claim, and every figure behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trimtab.report.document import Document as Page
from trimtab.report.document import Hero
from trimtab.report.paper import TRIED, claims_section, figures_section, frontier_section
from trimtab.report.paper_wording import tried_text

__all__ = ["paper_page"]


def paper_page(result: Mapping[str, Any]) -> Page:
    """What is told of a paper's result.

    Args:
        result: Its plain data; nothing else is read.
    """
    paper, scale, claims = result["paper"], result["scale"], result["claims"]
    cells = scale["cells"].values()
    held, refuted, open_ = (result["verdicts"][verdict] for verdict in TRIED)
    num_tried = held + refuted + open_
    number: str = paper["arxiv"]
    papers = f"arXiv {number}" if number[:1].isdigit() else f"{number} papers"
    return Page(
        title=f"Which claims hold: {paper['title']}",
        heading=paper["title"],
        subtitle=(f"{papers} ({paper['status']})", f"our runs, scale {scale['name']}"),
        heroes=[
            Hero(
                label="",
                figure=f"{held} of {num_tried}",
                words=f"claims that we could try {'holds' if held == 1 else 'hold'} in our runs; "
                f"{tried_text(refuted, open_)}",
                filled=held / max(1, num_tried),
                under="hold",
            )
        ],
        sections=[claims_section(claims), frontier_section(claims), figures_section(claims)],
        source=f"{papers} · scale {scale['name']}",
        date=result["provenance"].get("date", ""),
        coverage=f"{sum(cells)} of {len(cells)} planned runs",
        warnings=[f"{name} failed: {why}" for name, why in scale["failed"].items()],
    )
