"""Every key of the result is in the documentation, and what it says of our text is so."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import keys_of
from tests.training.evaluation.results import make_evaluation
from trimtab.training.evaluation.forgetting import read_text

DOCS = Path(__file__).parents[3] / "docs"

NAMED_ELSEWHERE = {"checkpoint", "provenance", "suites", "reward"}
"""Objects whose keys are those of another format, or names of tasks and metrics."""


def test_every_key_of_an_evaluation() -> None:
    page = (DOCS / "formats.md").read_text("utf-8")
    section = page.partition("## The result of an evaluation")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(\w+)`", section))
    data = make_evaluation(levels=(1, 1, 1, 2, 2, 2), suites=True).to_dict()
    data["text"]["max_passage_tokens"] = 512
    assert not set(keys_of(data, elsewhere=NAMED_ELSEWHERE)) - documented


def test_our_own_text_is_as_the_page_says() -> None:
    page = (DOCS / "evaluation.md").read_text("utf-8")
    assert f"{len(read_text().passages)} short passages" in page
