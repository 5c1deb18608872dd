"""Copies are told by their hashes, and only where a config says that there may be some."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trimtab.checkpoints.align import without_tied_copies


def item(name: str, *shape: int) -> Any:
    """A tensor that two checkpoints have under one name."""
    stored = SimpleNamespace(name=name)

    class Item:
        def __init__(self) -> None:
            self.stored, self.shape = (stored, stored), shape

    return Item()


def test_a_copy_is_dropped_for_its_original_whichever_comes_first() -> None:
    head, embedding, norm = item("head", 4, 2), item("embedding", 4, 2), item("norm", 2)
    hashes = [{"head": "a", "embedding": "a", "norm": "b"}] * 2
    items = [head, embedding, norm]
    assert without_tied_copies(items, {head}, hashes) == ([embedding, norm], [(head, embedding)])


def test_two_that_differ_in_one_checkpoint_both_count() -> None:
    head, embedding = item("head", 4, 2), item("embedding", 4, 2)
    hashes = [{"head": "a", "embedding": "a"}, {"head": "a", "embedding": "c"}]
    assert without_tied_copies([head, embedding], {head}, hashes) == ([head, embedding], [])


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 2), st.integers(0, 1), st.booleans())))
def test_against_a_search(rows: list[tuple[int, int, int, bool]]) -> None:
    items = [item(str(place), row[0]) for place, row in enumerate(rows)]
    hashes = [{str(place): str(row[1 + side]) for place, row in enumerate(rows)} for side in (0, 1)]
    doubtful = {entry for entry, row in zip(items, rows, strict=True) if row[3]}
    kept, tied = without_tied_copies(items, doubtful, hashes)

    order = [
        place
        for may_repeat in (False, True)
        for place in range(len(rows))
        if rows[place][3] == may_repeat
    ]
    expected = {}
    for place in order:
        alike = [other for other in order if rows[other][1:3] == rows[place][1:3]]
        if rows[place][3] and alike[0] != place and rows[alike[0]][0] == rows[place][0]:
            expected[items[place]] = items[alike[0]]
    assert dict(tied) == expected
    assert kept == [entry for entry in items if entry not in expected]
