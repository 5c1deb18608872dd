"""An evaluation in words, as a table and as a page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.report.page import Page
from tests.report.test_comparison_page import HOSTILE
from tests.report.test_identity import table_row
from tests.training.evaluation.results import make_evaluation
from trimtab.report.evaluation import evaluation_document
from trimtab.report.html import render
from trimtab.report.terminal import render_text
from trimtab.results.evaluation import Evaluation
from trimtab.results.statistics import paired_interval, wilson


def text_of(evaluation: Evaluation, width: int = 120, *, styled: bool = False) -> str:
    return render_text(evaluation_document(evaluation), console_width=width, styled=styled)


def page_of(evaluation: Evaluation) -> Page:
    return Page(render(evaluation_document(evaluation)))


def test_accuracy_beside_the_constant_answer() -> None:
    text = text_of(make_evaluation())
    low, high = wilson(2 / 6, 6)
    row = table_row(text, "model", "base")
    assert row["greedy"] == f"33.3 % [{100 * low:.1f}, {100 * high:.1f}]"
    assert row["sampled, T = 1"].startswith("29.2 % [")  # 7 of 24
    assert row["cut off"] == "1"
    assert table_row(text, "model", "tuned")["cut off"] == "0"
    line = next(line for line in text.splitlines() if line.startswith("always"))
    assert line.split("  ")[0] == "always “b”"
    assert "50.0 %" in line


def test_difference_on_the_same_questions() -> None:
    text = text_of(make_evaluation())
    row = table_row(text[text.index("Differences") :], "model", "tuned")
    low, high = paired_interval(3, 0, 6)
    assert row == {
        "model": "tuned",
        "gained": "3",
        "lost": "0",
        "greedy": f"+50.0 [{100 * low:+.1f}, {100 * high:+.1f}]",
        "p": "0.2500",
        "sampled": row["sampled"],
    }
    assert row["sampled"].startswith("+8.3 [")  # 2 of 24
    assert "In points, from base." in text


def test_a_single_model_has_no_difference() -> None:
    text = text_of(make_evaluation(names=("base",)))
    assert "Difference" not in text


def test_greedy_only() -> None:
    text = text_of(make_evaluation(num_samples=0))
    assert "sampled" not in text
    assert "Asked greedily; at most 8 tokens an answer, 32 at a time, computed in bf16." in text


def test_levels() -> None:
    text = text_of(make_evaluation(levels=(1, 1, 1, 2, 2, 2)))
    assert "Accuracy by level" in text
    first, second = (table_row(text, "level", level) for level in ("1", "2"))
    assert (first["questions"], first["always"]) == ("3", "66.7 %")
    assert first["base"].startswith("33.3 % [")
    assert first["tuned"].startswith("100 % [")
    assert second["tuned"].startswith("66.7 % [")


def test_forgetting() -> None:
    text = text_of(make_evaluation())
    assert "Forgetting [95 % interval]: 40 tokens of a text, in 2 passages" in text
    base, tuned = (
        table_row(text[text.index("Forgetting") :], "model", name) for name in ("base", "tuned")
    )
    assert base == {"model": "base", "KL(base ‖ model)": "–", "perplexity": "7.389"}
    assert tuned["KL(base ‖ model)"].startswith("0.015 [")
    assert tuned["perplexity"] == "11.02"


def test_suites() -> None:
    text = text_of(make_evaluation(suites=True))
    row = table_row(text, "task", "arc_easy")
    assert row == {
        "task": "arc_easy",
        "metric": "acc",
        "base": "0.5 [0.304, 0.696]",
        "tuned": "0.625 [0.429, 0.821]",
    }
    assert "lm-evaluation-harness [95 % interval]\n" in text


def test_forgetting_alone() -> None:
    whole = make_evaluation()
    models = tuple(replace(model, answers=None) for model in whole.models)
    data = replace(whole, questions=None, models=models)
    text = text_of(data)
    assert text.startswith("Forgetting")
    page = page_of(data)
    assert page.sections == ["Forgetting", "Provenance"]


def test_questions_that_the_run_had_seen_are_told() -> None:
    whole = make_evaluation()
    assert whole.questions is not None
    asked = replace(whole.questions, record={**whole.questions.record, "num_seen": 3})
    text = text_of(replace(whole, questions=asked))
    assert "6 questions (3 more were left out: the run was trained on them)" in text


def test_a_model_may_be_called_as_a_column_is() -> None:
    data = make_evaluation(levels=(1, 1, 1, 2, 2, 2), names=("always", "questions"), suites=True)
    text = text_of(data)
    row = table_row(text[text.index("Accuracy by") :], "level", "1")
    assert list(row) == ["level", "questions", "always", "./always", "./questions"]
    assert row["questions"] == "3"


def test_the_page_has_what_the_table_has() -> None:
    data = make_evaluation(levels=(1, 1, 1, 2, 2, 2), suites=True)
    page = page_of(data)
    assert page.sections == [
        "Held-out accuracy",
        "Forgetting",
        "lm-evaluation-harness",
        "Answers",
        "Provenance",
    ]
    text = text_of(data)
    accuracy = page.table("Held-out accuracy [95 % interval]")
    assert accuracy.headings == ["model", "greedy", "sampled, T = 1", "cut off"]
    assert accuracy.body[1][1] == table_row(text, "model", "tuned")["greedy"]
    differences = page.table("Differences on the same questions [95 % interval]")
    assert differences.body[0][1:3] == ["3", "0"]
    assert [row[0] for row in page.table("Accuracy by level").body] == ["1", "2"]
    assert page.table("Greedy answers").body[0] == ["question 0", "a", "✓ right", "✓ right"]
    assert page.table("Greedy answers").body[1] == ["question 1", "a", "✗ wrong", "✓ right"]


def test_whiskers_are_the_intervals() -> None:
    data = make_evaluation()
    (spec,) = page_of(data).specs
    rows = {(row["model"], row["way"]): row for row in spec["data"]["values"]}
    assert set(rows) == {(name, way) for name in ("base", "tuned") for way in ("greedy", "sampled")}
    for (name, way), row in rows.items():
        answers = data.models[name == "tuned"].answers
        assert answers is not None
        expected = [100 * end for end in getattr(answers, f"{way}_interval")]
        assert [row["low"], row["high"]] == pytest.approx(expected)
        assert row["accuracy"] == pytest.approx(100 * getattr(answers, f"{way}_accuracy"))


def hostile() -> Evaluation:
    """Names, questions and answers that would be more than text."""
    whole = make_evaluation(levels=(HOSTILE,) * 6, names=(HOSTILE, f"{HOSTILE}2"), suites=True)
    assert whole.questions is not None
    rows = tuple(replace(row, prompt=HOSTILE, answer=HOSTILE) for row in whole.questions.rows)
    asked = replace(whole.questions, rows=rows, by=HOSTILE)
    models = []
    for model in whole.models:
        assert model.answers is not None
        message = tuple(replace(answer, greedy=HOSTILE) for answer in model.answers.answers)
        models.append(replace(model, answers=replace(model.answers, answers=message)))
    return replace(whole, questions=asked, models=tuple(models))


def test_text_from_files_stays_text() -> None:
    data = hostile()
    page = page_of(data)
    assert len(page.scripts) == 2
    assert not [attribute for attribute in page.attributes if attribute[1].startswith("on")]
    text = text_of(data)
    assert text.replace("\n", "").isprintable()
