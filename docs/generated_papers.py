"""Tables of `docs/papers.md`, drawn from the committed results of the papers.

Like the functions of `docs.generated`, those here print Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from docs.generated import rows, show_drawing

from trimtab.papers.library import papers_folder, read_paper
from trimtab.papers.results import PaperResult
from trimtab.report.html import figure_files
from trimtab.report.paper import (
    bound_text,
    expected_text,
    measured_text,
    paper_document,
    seeds_text,
)

__all__ = [
    "chosen",
    "claims",
    "controls",
    "frontier",
    "overview",
    "picture",
    "public",
    "reading",
    "runs",
]

NONE = "–"


def overview(*papers: str, scale: str = "small") -> None:
    """How many claims of each paper have each verdict."""
    results = {paper: _result(paper, scale) for paper in papers}
    titles = list(next(iter(results.values()))["verdicts"])
    rows(
        ["paper", "claims", *titles],
        [
            [
                f"[`{paper}`](#{paper})",
                str(len(result["claims"])),
                *(str(result["verdicts"][title] or NONE) for title in titles),
            ]
            for paper, result in results.items()
        ],
    )


def runs(*papers: str, scale: str = "small") -> None:
    """What was run: base, seeds, how many runs, on what, and how long."""
    results = [_result(paper, scale) for paper in papers]
    cells: dict[str, bool] = {}
    for result in results:
        cells |= result["scale"]["cells"]
    provenance = max(
        (result["provenance"] for result in results), key=lambda record: record["seconds_train"]
    )
    device = provenance["devices"][0] if provenance["devices"] else {}
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    print(
        f"{sum(cells.values())} of {len(cells)} runs were finished on "
        f"{provenance['date'][:10]} ({versions}; {device.get('type', '')} "
        f"{device.get('machine', '')}, {device.get('num_threads', '')} threads a run)."
    )


def claims(paper: str, *, scale: str = "small", verdict: str | None = None) -> None:
    """The claims of a paper: place, theirs, ours, verdict."""
    shown = [
        claim
        for claim in _result(paper, scale)["claims"]
        if claim["id"] not in _public(paper) and verdict in (None, claim["verdict"])
    ]
    sources = any(claim["source"] for claim in shown)

    def place(claim: Mapping[str, Any]) -> str:
        source = f"{claim['source'] or 'ours'}, " if sources else ""
        return f"`{claim['id']}`<br>{source}{claim['place']}"

    rows(
        ["id", "claim", "theirs", "ours", "verdict"],
        [
            [
                place(claim),
                _cell(claim["claim"]),
                expected_text(claim),
                _ours(claim),
                f"**{claim['verdict']}**",
            ]
            for claim in shown
        ],
    )


def chosen(
    *claims: tuple[str, str], scale: str = "small", page: str = "papers.md", theirs: bool = False
) -> None:
    """Some claims of several papers, each with the figures that decide it.

    Args:
        claims: Paper and id.
        scale: Scale of the runs.
        page: Path of the papers' page.
        theirs: Whether to add the figures of the paper.
    """
    by_id = {
        paper: {claim["id"]: claim for claim in _result(paper, scale)["claims"]}
        for paper, _ in claims
    }
    rows(
        ["claim", *(["theirs"] if theirs else []), "ours", "verdict"],
        [
            [
                f"[{_cell(claim['claim'])}]({page}#{paper})",
                *([expected_text(claim)] if theirs else []),
                _ours(claim),
                f"**{claim['verdict']}**",
            ]
            for paper, id in claims
            for claim in (by_id[paper][id],)
        ],
    )


def controls(paper: str, *ids: str, scale: str = "small") -> None:
    """Every figure of some claims, controls too."""
    by_id = {claim["id"]: claim for claim in _result(paper, scale)["claims"]}
    rows(
        ["claim", "figure", "mean [95 % interval]", "n", "bound"],
        [
            [
                f"`{id}`",
                _cell(trial["about"]),
                measured_text(trial),
                seeds_text(trial),
                bound_text(trial) or NONE,
            ]
            for id in ids
            for trial in by_id[id]["trials"]
        ],
    )


def frontier(paper: str, id: str, *, scale: str = "small") -> None:
    """A claim's figures by arm: the unchanged weights and what was learned."""
    (claim,) = (claim for claim in _result(paper, scale)["claims"] if claim["id"] == id)
    figures: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for trial in claim["trials"]:
        step = str(trial["settings"].get("step", ""))
        figures.setdefault((trial["arms"][0], step), {})[trial["measure"]] = trial

    def shown(by_measure: Mapping[str, Mapping[str, Any]], *measures: str) -> str:
        for measure in measures:
            if (trial := by_measure.get(measure)) is not None:
                return measured_text(trial)
        return NONE

    rows(
        ["runs", "after steps", "unchanged, by bits", "accuracy gained", "reward in training"],
        [
            [
                f"`{arm}`",
                step or "all",
                shown(by_measure, "sparsity", "sparsity-at"),
                shown(by_measure, "gain"),
                shown(by_measure, "reward-at"),
            ]
            for (arm, step), by_measure in figures.items()
        ],
    )


def picture(paper: str, file: str, *, scale: str = "small") -> None:
    """A figure of a paper's page as an image, redrawn when its marks have changed.

    The digest of all marks is printed with it, so that a picture of old results is noticed.

    Args:
        paper: Id.
        file: Name of the figure's file, without its position on the page.
        scale: Scale of the runs.
    """
    (drawn,) = (
        figure
        for figure in figure_files([paper_document(_read(paper, scale))])
        if figure.name.endswith(file)
    )
    show_drawing(f"{paper}-{file}", drawn.content)


def reading() -> None:
    """Our findings from the results of `small`, with their figures.

    Each sentence names the verdict that it states. If the verdict is another one, the page is not
    built, and the sentence must be rewritten.
    """
    claims = {
        claim["id"]: claim
        for paper in ("critics", "mukherjee-2025")
        for claim in _result(paper, "small")["claims"]
    }

    def figure(id: str, *arms: str, verdict: str | None = None, **wanted: Any) -> str:
        """A figure of a claim, by arms and settings; by default the one that decides it."""
        claim = claims[id]
        if verdict is not None and claim["verdict"] != verdict:
            raise ValueError(f"{id}: {claim['verdict']}, and the page says {verdict}")
        measure = wanted.pop("measure", None)
        match = next(
            trial
            for trial in claim["trials"]
            if (not arms or tuple(trial["arms"]) == arms)
            and measure in (None, trial["measure"])
            and all(trial["settings"].get(key) == value for key, value in wanted.items())
        )
        return measured_text(match)

    for line in (
        "**RL is sparser than SFT at the same learning rate, but not by much**: "
        f"{figure('fig-1-rl-sparser', 'grpo')} unchanged, compared with "
        f"{figure('fig-1-rl-sparser', 'sft')}, a difference of "
        f"{figure('fig-1-rl-sparser', verdict='holds')}. The published gap of more than 50 points "
        "comes with a tenfold gap in learning rate.",
        "**SFT is not dense by nature**: that it leaves only 6 to 15 % unchanged does not hold at "
        f"RL's learning rate ({figure('fig-1-sft-dense', verdict='does not hold')} within 1e-5).",
        "**The learning rate decides more than the algorithm**: SFT at a tenth of it is sparser "
        f"than RL by {figure('learning-rate-is-the-cause', verdict='holds')}. But it hardly "
        f"learned: it gains {figure('learns-and-sparse', 'sft-lr-1e-6', measure='gain')} of "
        f"accuracy, where RL gains {figure('learns-and-sparse', verdict='holds')}.",
        "**Precision matters too**: pure bf16 weights are sparser by "
        f"{figure('pulse-precision', verdict='holds')}, since small updates are lost, and gain "
        f"{figure('pulse-precision', 'grpo-bf16', measure='gain')}. Trained and saved in fp32, "
        f"{figure('razor-fp32-dense', verdict='holds')} of the weights are unchanged.",
        "**What bf16 rounds away is not harmless**: the same training answers differently by "
        f"{figure('rounded-away-is-harmless', verdict='does not hold')} when saved as fp32 instead "
        "of bf16. During training, its bf16 arithmetic never saw what is below bf16.",
        "**KL and clipping matter little**: "
        f"{figure('sec-6-kl', verdict='holds')} and {figure('sec-6-clip', verdict='holds')}.",
        "**The sparsity falls, and then flattens**: in the last quarter of 80 steps by "
        f"{figure('fig-5-flattens', verdict='holds')} of its fall in the first. With "
        f"SFT the figure is {figure('fig-5-flattens', 'sft-80-steps')}.",
        "**Training only what RL changed gives the accuracy of training all**: the difference is "
        f"{figure('table-3-accuracy', verdict='holds')}.",
        "**Other weights of the same number do worse**: its own mask is better than a random one "
        "by "
        f"{figure('table-3-these-weights', 'grpo-own', 'grpo-random', verdict='holds')}, and than "
        "one of the same magnitudes by "
        f"{figure('table-3-these-weights', 'grpo-own', 'grpo-matched')}. So magnitude is most of "
        "what a random mask lacks, but not all.",
        "**Small weights are the better guess**: the smallest of each tensor, chosen without "
        "training, do better than the same number at random by "
        f"{figure('tpnt-low-magnitude-mask', verdict='holds')}.",
        "**A random 1 % needs another learning rate**: accuracy minus that of training all is "
        f"{figure('tickets-random', verdict='does not hold')} at the same one, "
        f"{figure('tickets-random', 'grpo-random-1-percent-lr-1e-4', 'grpo')} at 10 times that, "
        "and "
        f"{figure('tickets-random-rate')} at 100 times, where "
        f"{figure('tickets-random-rate', 'grpo-random-1-percent-lr-1e-3')} of the weights stay "
        "unchanged. So a control with fewer weights may fail only because of its step size.",
        "**Most of what two seeds share is magnitude**: they overlap "
        f"{figure('table-4-seed', verdict='holds')} times as much as independent masks, and "
        f"{figure('table-4-beyond-magnitude', verdict='holds')} times as much as masks of the "
        "same magnitudes.",
        "**The same accuracy is not the same model**: by 1e-5 "
        f"{figure('identity-1e-5', 'grpo-own', verdict='holds')} of all weights are equal; but the "
        f"base scores {figure('identity-1e-5', to='base')}, and inside the mask it is "
        f"{figure('identity-1e-5', part='inside')}.",
        "**One step changes hardly anything that bf16 can store**: "
        f"{figure('pulse-absorbed', verdict='holds')} of the weights, by gradients that are "
        "dense.",
    ):
        print(f"- {line}")


def public(paper: str) -> None:
    """The published checkpoints that `--checkpoints` takes."""
    rows(
        ["id", "from", "to", "where", "unchanged within 1e-5", "within 1e-8"],
        [
            [
                f"`{pair.id}`",
                pair.base,
                pair.tuned,
                pair.place,
                f"{pair.sparsity['atol=1e-05']} %",
                f"{pair.sparsity['atol=1e-08']} %" if "atol=1e-08" in pair.sparsity else NONE,
            ]
            for pair in read_paper(paper, papers_folder()).public
        ],
    )


def _ours(claim: Mapping[str, Any]) -> str:
    """The figures that decide a claim, with their bounds; a dash if there are none."""
    figures = []
    for trial in claim["trials"]:
        if trial["bound"] and not trial["premise"]:
            figure = measured_text(trial)
            n = f"n = {trial['n']}"
            figures.append(f"{_cell(trial['about'])}: {figure}, {n}; bound: {bound_text(trial)}")
    return "<br>".join(figures) if figures and not claim["why"] else NONE


@cache
def _public(paper: str) -> Iterable[str]:
    return {pair.id for pair in read_paper(paper, papers_folder()).public}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


@cache
def _read(paper: str, scale: str) -> PaperResult:
    return PaperResult.load(papers_folder() / paper / "results" / f"{scale}.json")


@cache
def _result(paper: str, scale: str) -> dict[str, Any]:
    return _read(paper, scale).to_dict()
