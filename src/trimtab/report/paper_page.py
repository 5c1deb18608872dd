"""The page of a paper's result: what holds, claim by claim, and every figure behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.blocks import Column, Section, Table, table
from trimtab.report.page import Hero, Page
from trimtab.report.paper_wording import (
    bound_text,
    expected_text,
    figure_text,
    reason,
    seeds_text,
)

__all__ = ["paper_page"]


TRIED = ("holds", "does not hold", "not settled")
"""Verdicts of claims that something was measured for."""


def paper_page(result: Mapping[str, Any]) -> Page:
    """What is told of a paper's result.

    Args:
        result: Its plain data; nothing else is read.
    """
    paper, scale, claims = result["paper"], result["scale"], result["claims"]
    cells = scale["cells"].values()
    held, refuted, open_ = (result["verdicts"][verdict] for verdict in TRIED)
    num_tried = held + refuted + open_
    return Page(
        title=paper["title"],
        heading="Which claims hold",
        subtitle=(f"arXiv {paper['arxiv']}", f"scale {scale['name']}"),
        heroes=[
            Hero(
                label="",
                figure=f"{held} of {num_tried}",
                words=f"tried claims of “{paper['title']}” hold in our runs; {refuted} do not, and "
                f"{open_} are not settled",
                filled=held / max(1, num_tried),
                under="hold",
            )
        ],
        sections=[_verdicts(claims), _figures(claims)],
        source=f"arXiv {paper['arxiv']} · scale {scale['name']}",
        date=result["provenance"].get("date", ""),
        coverage=f"{sum(cells)} of {len(cells)} planned runs",
        warnings=[f"{name} failed: {why}" for name, why in scale["failed"].items()],
    )


def _verdicts(claims: Sequence[Mapping[str, Any]]) -> Section:
    tried = [claim for claim in claims if claim["verdict"] in TRIED]
    others: dict[str, list[Mapping[str, Any]]] = {}
    for claim in claims:
        if claim["verdict"] not in TRIED:
            others.setdefault(claim["verdict"], []).append(claim)
    return Section(
        "Claims",
        (
            "A claim holds where the whole interval is on its side of the bound, and does not "
            "where all of it is on the other; one with the bound in it, or of one seed, settles "
            "nothing.",
        ),
        (
            *([_claims("Tried: their figures and ours", tried, is_folded=False)] if tried else []),
            *(
                _claims(f"{verdict[0].upper()}{verdict[1:]}: {len(of)}", of, is_folded=True)
                for verdict, of in others.items()
            ),
        ),
    )


def _claims(title: str, claims: Sequence[Mapping[str, Any]], *, is_folded: bool) -> Table:
    columns: list[Column] = [
        ("place", "text"),
        ("claim", "text"),
        ("theirs", "text"),
        ("ours", "text"),
        ("verdict", "text"),
        ("why", "text"),
    ]
    rows = [
        (
            claim["place"],
            claim["claim"],
            expected_text(claim),
            figure_text(claim["measured"], claim["interval"], _unit(claim)),
            claim["verdict"],
            reason(claim),
        )
        for claim in claims
    ]
    return table(title, columns, rows, is_folded=is_folded)


def _figures(claims: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        (
            claim["id"],
            trial["about"],
            figure_text(trial["value"], trial["interval"], trial["unit"]),
            seeds_text(trial),
            bound_text(trial) or "control",
        )
        for claim in claims
        for trial in claim["trials"]
    ]
    columns: list[Column] = [
        ("claim", "code"),
        ("figure", "text"),
        ("mean [95 % interval]", "text"),
        ("n", "text"),
        ("asked for", "text"),
    ]
    return Section("Figures", (), (table("Every figure, controls too", columns, rows),))


def _unit(claim: Mapping[str, Any]) -> str:
    unit: str = claim["trials"][0]["unit"] if claim["trials"] else "share"
    return unit
