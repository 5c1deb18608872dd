"""The page of a paper: every claim and figure, drawn as what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.papers.test_results import result, trial
from trimtab.report.charts import Marks
from trimtab.report.document import Document, Figure, Table
from trimtab.report.html import render
from trimtab.report.paper import paper_document
from trimtab.report.paper_charts import learned_beside_unchanged


def claim(*trials: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A claim with these trials."""
    return {**result(*trials).claims[0], **more}


def page_of(*claims: dict[str, Any]) -> Document:
    """The page of these claims."""
    return paper_document(replace(result(), claims=claims))


def figures(title: str, *claims: dict[str, Any]) -> list[Figure]:
    """The figures of a section."""
    return [
        block
        for section in page_of(*claims).shown
        if section.title == title
        for block in section.shown
        if isinstance(block, Figure)
    ]


def forest(*claims: dict[str, Any]) -> Figure:
    """The only chart of figures."""
    (figure,) = figures("Figures", *claims)
    return figure


def marks(figure: Figure) -> dict[str, list[dict[str, Any]]]:
    """What a forest draws, by kind."""
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for row in figure.spec["data"]["values"]:
        by_kind.setdefault(row["kind"], []).append(row)
    return by_kind


def test_the_page_has_every_claim_and_figure() -> None:
    page = page_of(claim(trial(), trial(bound={}, about="sparsity of sft")))
    (tried,), (every,) = (section.shown for section in page.shown)
    assert isinstance(tried, Table) and isinstance(every, Figure)
    assert tried.rows[0][0] == "It is sparse. (Table 1)"
    assert [row[-1] for row in every.table.rows] == ["above 50 %", "control"]
    assert page.heroes[0].figure == "1 of 1"


def test_verbs_agree_with_how_many_claims_there_are() -> None:
    no, open_ = trial(bound={"below": 0.5}), trial(bound={"above": 0.91})
    (hero,) = page_of(*map(claim, (trial(), no, no, open_))).heroes
    assert hero.figure == "1 of 4"
    assert hero.words == (
        "claims that we could try holds in our runs; 2 do not, and 1 is not settled"
    )


def test_an_interval_of_a_share_is_drawn_within_what_a_share_can_be() -> None:
    figure = forest(claim(trial(values={"0": 0.9, "1": 0.99})))
    (ours,) = marks(figure)["ours"]
    assert ours["high"] == 100 and ours["tip_2"] == "94.50 % [37.32, 100.00]"
    assert "t-intervals (of overlaps a jackknife), cut" in figure.reading


def test_what_was_not_tried_is_folded_and_not_counted() -> None:
    page = page_of(claim(trial(values={})))
    ((not_run,),) = (section.shown for section in page.shown)
    assert isinstance(not_run, Table)
    assert (not_run.title, not_run.is_folded) == ("Not yet run: 1", True)
    assert page.heroes[0].figure == "0 of 0"


def test_a_forest_has_ours_theirs_and_the_bound() -> None:
    figure = forest(claim(trial(), trial(bound={}, about="sparsity of sft")))
    drawn = marks(figure)
    assert [(one["name"], round(one["value"], 9), one["arm"]) for one in drawn["ours"]] == [
        ("sparsity of grpo", 91, "holds"),
        ("sparsity of sft", 91, "control"),
    ]
    assert [(one["name"], one["value"]) for one in drawn["asked"]] == [("sparsity of grpo", 50)]
    assert [(one["name"], one["value"]) for one in drawn["theirs"]] == [("sparsity of grpo", 68.5)]
    assert drawn["ours"][0]["low"] < 91 < drawn["ours"][0]["high"]


def test_a_figure_that_two_claims_share_is_drawn_as_what_one_asks() -> None:
    figure = forest(claim(trial(bound={})), claim(trial(), id="b"))
    (ours,) = marks(figure)["ours"]
    assert ours["arm"] == "holds"
    assert [row[0] for row in figure.table.rows] == ["a", "b"]


def test_theirs_in_another_unit_is_not_drawn_on_this_axis() -> None:
    figure = forest(claim(trial(), unit="% of the most"))
    assert "theirs" not in marks(figure)


def test_a_bound_on_both_sides_and_ratios_on_a_log_axis() -> None:
    within = trial(bound={"within": 0.5}, measure="cosine", values={"0": 0.1, "1": 0.2, "2": 0.4})
    figure = forest(claim(within))
    assert [one["value"] for one in marks(figure)["asked"]] == [-0.5, 0.5]
    assert "type" not in figure.spec["layer"][0]["encoding"]["x"]["scale"]
    figure = forest(claim(trial(bound={"above": 1.0}, measure="cosine")))
    assert figure.spec["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"


def test_the_frontier_has_the_arms_of_which_both_are_known() -> None:
    def of(arm: str, measure: str, *values: float) -> dict[str, Any]:
        by_seed = {str(seed): value for seed, value in enumerate(values)}
        return trial(arms=[arm], measure=measure, values=by_seed, bound={})

    trials = [of("grpo", "sparsity", 0.9, 0.92), of("grpo", "gain", 0.5, 0.5)]
    assert not figures("Sparsity and learning", claim(*trials))
    trials += [of("sft", "sparsity", 0.8, 0.8), of("sft", "gain", 0.6, 0.7), of("ppo", "gain", 0.1)]
    (figure,) = figures("Sparsity and learning", claim(*trials))
    rows = figure.spec["data"]["values"]
    places = [(row["name"], round(row["unchanged"], 9), round(row["gained"], 9)) for row in rows]
    assert places == [("grpo", 91, 50), ("sft", 80, 65)]
    assert [row[0] for row in figure.table.rows] == ["grpo", "sft"]


def test_labels_of_near_points_stand_apart() -> None:
    places = {"one": (90.0, 50.0), "two": (90.2, 50.0), "three": (90.4, 50.0), "far": (50.0, 0.0)}
    ends = ("_low", "_high", "")
    rows = [
        {
            "name": name,
            **{f"unchanged{end}": x for end in ends},
            **{f"gained{end}": y for end in ends},
        }
        for name, (x, y) in places.items()
    ]
    spec = learned_beside_unchanged(Marks(rows))
    sides = {row["name"]: row["side"] for row in spec["data"]["values"]}
    assert len({sides[name] for name in ("one", "two", "three")}) == 3
    assert sides["far"] == "above"
    drawn = [layer for layer in spec["layer"] if layer["mark"]["type"] == "text"]
    assert {layer["transform"][0]["filter"]["equal"] for layer in drawn} == set(sides.values())


def test_a_hostile_name_stays_text() -> None:
    name = "</script><script>alert(1)</script>"
    assert name not in render(page_of(claim(trial(about=name))))
