from __future__ import annotations

import pytest

from trimtab.elements.counts import ChangeCounts
from trimtab.elements.criteria import DEFAULT_CRITERIA
from trimtab.measure.compare_result import Coverage
from trimtab.report.wording import (
    changed_means,
    coverage_sentence,
    headline,
    magnitude,
    printable,
    rule,
    share,
    unchanged,
)
from trimtab.words import distinct_names, plural


def counts(num_elements: int, num_changed: int) -> ChangeCounts:
    return ChangeCounts(num_elements=num_elements, num_changed={"bits": num_changed})


def test_headline_states_figure_elements_and_criterion() -> None:
    assert headline(counts(134_515_008, 13_897_412), "bits") == (
        "89.67 %",
        "of 134,515,008 weights are bit-identical to the base",
    )


@pytest.mark.parametrize(
    ("changed", "figure"),
    [(0, "100 %"), (1, ">99.99 %"), (10**9 - 1, "<0.01 %"), (10**9, "0 %")],
)
def test_headline_is_0_or_100_only_when_exact(changed: int, figure: str) -> None:
    assert headline(counts(10**9, changed), "bits")[0] == figure


def test_headline_of_nothing() -> None:
    assert headline(ChangeCounts(), "bits") == ("–", "no weights were compared")


def test_every_criterion_has_words_that_state_its_tolerance() -> None:
    for criterion in DEFAULT_CRITERIA:
        size = criterion.key.partition("=")[2]
        for words in (unchanged(criterion.key), rule(criterion.key), changed_means(criterion.key)):
            assert size in words
    assert "<" in rule("strict_atol=1e-05")
    assert "≤" in rule("atol=1e-05")


def test_coverage_says_what_is_missing() -> None:
    complete = Coverage(num_base=10, num_tuned=10, num_compared=10)
    assert coverage_sentence(complete) == "complete: all 10 stored elements were compared"
    gap = {"name": "a", "shape": [4], "num_elements": 4}
    partial = Coverage(num_base=14, num_tuned=10, num_compared=10, missing=(gap,))
    assert coverage_sentence(partial) == (
        "INCOMPLETE: 10 elements were compared, 71.43 % of base and 100 % of tuned "
        "(1 tensor only in base)"
    )


def test_small_words() -> None:
    assert (plural(1, "tensor"), plural(1024, "tensor")) == ("1 tensor", "1,024 tensors")
    assert plural(2, "matrix", "matrices") == "2 matrices"
    assert (magnitude(None), magnitude(0.0), magnitude(0.23456)) == ("–", "0", "0.235")
    assert magnitude(-0.0000862) == "-8.62e-05"


@pytest.mark.parametrize(
    ("part", "figure"), [(0, "0 %"), (1, "<0.1 %"), (9999, ">99.9 %"), (10_000, "100 %")]
)
def test_a_share_is_0_or_100_percent_only_when_exact(part: int, figure: str) -> None:
    assert share(part, 10_000, 1) == figure
    assert share(part, 10_000, 1).value == part / 10_000
    assert share(1, 0) == "–"


def test_invisible_characters_become_escapes() -> None:
    assert printable("a\x1b[31m\u202eb\udc80 ü") == r"a\x1b[31m\u202eb\udc80 ü"


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["masks/grpo.st", "sft.st"], ["grpo", "sft"]),
        (["a/m.st", "b/m.st", "/c.st"], ["a/m", "b/m", "c"]),
        (["x/a/m.st", "y/a/m.st", "b/m.st"], ["x/a/m", "y/a/m", "b/m"]),
        (["all", "masks/all.st", "random:0.1"], ["all", "masks/all", "random:0.1"]),
        (["m", "m.st"], ["m", "m.st"]),
        (["/m.st", "a/m.st", "m.st"], ["/m.st", "a/m", "m.st"]),
        ([".st", "", "../.."], [".st", "", ".."]),
    ],
)
def test_the_shortest_names_of_paths(paths: list[str], names: list[str]) -> None:
    assert list(distinct_names(paths, ".st").values()) == names
