"""Which of a model's own samples it is trained on, by hand and by brute force."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trimtab.training.runs.algorithms import Made
from trimtab.training.runs.samples import Sample, select
from trimtab.training.runs.settings import SamplesTable


def said(*samples: tuple[str, float] | tuple[str, float, bool]) -> list[Sample]:
    return [
        Sample(text, [ord(text)], reward, not rest or rest[0]) for text, reward, *rest in samples
    ]


MIXED = said(("a", 0), ("b", 1), ("c", 1, False), ("b", 1), ("d", 0.5), ("e", 2), ("f", -1, False))


def chosen(made: Made, group: list[Sample] = MIXED, **table: Any) -> list[dict[str, Any]]:
    rows = select(["q"], [group], made, SamplesTable(**table))
    assert all(row.pop("prompt") == "q" for row in rows)
    if made == "completions":
        assert all(row.pop("completion_ids") == [ord(row["completion"])] for row in rows)
    return rows


def test_accepted_samples_once_each_and_none_that_was_cut_off() -> None:
    assert chosen("completions") == [{"completion": "b"}, {"completion": "e"}]
    assert chosen("completions", most=1) == [{"completion": "b"}]
    assert chosen("completions", threshold=2) == [{"completion": "e"}]
    assert chosen("completions", threshold=3) == []


def test_pairs_use_no_sample_twice() -> None:
    assert chosen("pairs") == [
        {"chosen": "b", "rejected": "a"},
        {"chosen": "e", "rejected": "d"},
    ]
    assert chosen("pairs", most=1) == [{"chosen": "b", "rejected": "a"}]
    assert chosen("pairs", threshold=2) == [{"chosen": "e", "rejected": "a"}]
    assert chosen("pairs", threshold=-1) == []


def test_labels() -> None:
    assert chosen("labels", most=1) == [
        {"completion": "b", "label": True},
        {"completion": "a", "label": False},
    ]
    assert [row["label"] for row in chosen("labels")] == [True, True, False, False]


def test_the_best_and_the_worst() -> None:
    assert chosen("completions", rule="best") == [{"completion": "e"}]
    assert chosen("pairs", rule="best") == [{"chosen": "e", "rejected": "a"}]
    assert chosen("pairs", said(("a", 1), ("b", 1)), rule="best") == []
    assert chosen("completions", said(("a", 1, False)), rule="best") == []


def test_messages_are_kept_as_they_are() -> None:
    message = [{"role": "assistant", "content": "b"}]
    group = [Sample(message, [1], 1.0, True), Sample(list(message), [1], 1.0, True)]
    assert chosen("labels", group) == [{"completion": message, "label": True}]


@given(
    groups=st.lists(
        st.lists(
            st.builds(
                Sample,
                st.sampled_from("abcd"),
                st.just([1]),
                st.sampled_from([0.0, 0.5, 1.0]),
                st.booleans(),
            ),
            max_size=6,
        ),
        max_size=4,
    ),
    most=st.none() | st.integers(1, 3),
)
def test_every_row_obeys_the_rule(groups: list[list[Sample]], most: int | None) -> None:
    table = SamplesTable(most=most)
    prompts = [f"q{place}" for place in range(len(groups))]
    pairs = select(prompts, groups, "pairs", table)
    labels = select(prompts, groups, "labels", table)
    accepted = select(prompts, groups, "completions", table)
    for prompt, group in zip(prompts, groups, strict=True):
        first: dict[str, float] = {}
        for sample in group:
            if sample.has_ended:
                first.setdefault(sample.completion, sample.reward)
        good = {text for text, reward in first.items() if reward >= 1}
        bad = first.keys() - good
        limit = len(group) if most is None else most
        of_prompt = [
            [row for row in rows if row["prompt"] == prompt] for rows in (accepted, pairs, labels)
        ]
        assert {row["completion"] for row in of_prompt[0]} <= good
        assert len(of_prompt[0]) == min(len(good), limit)
        assert all(row["chosen"] in good and row["rejected"] in bad for row in of_prompt[1])
        assert len(of_prompt[1]) == min(len(good), len(bad), limit)
        for label, texts in ((True, good), (False, bad)):
            found = [row["completion"] for row in of_prompt[2] if row["label"] is label]
            assert len(found) == len(set(found)) == min(len(texts), limit)
            assert set(found) <= texts
