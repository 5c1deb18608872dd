"""What adapters do beyond naming a trainer."""

from __future__ import annotations

from trimtab.training.runs.algorithms import ALGORITHMS

PAIRS = [
    {"prompt": f"{number}?", "chosen": f"{number}!", "rejected": f"not {number}"}
    for number in range(50)
]

SINGLES = [
    {"prompt": pair["prompt"], "completion": pair[column], "label": column == "chosen"}
    for pair in PAIRS
    for column in ("chosen", "rejected")
]


def test_kto_makes_two_rows_of_a_pair_and_shuffles_them_by_the_seed() -> None:
    dataset = ALGORITHMS["kto"].dataset
    rows = list(dataset(PAIRS, None, 0))
    assert sorted(map(str, rows)) == sorted(map(str, SINGLES))
    assert rows == list(dataset(PAIRS, None, 0)) == list(dataset(SINGLES, None, 0))
    assert rows != list(dataset(PAIRS, None, 1))
    # TRL would put the chosen ones first, and its batches would have one label each.
    batches = [[row["label"] for row in rows[start : start + 10]] for start in range(0, 100, 10)]
    assert all(len(set(batch)) == 2 for batch in batches)


def test_others_leave_the_order_to_their_trainer() -> None:
    assert list(ALGORITHMS["dpo"].dataset(PAIRS, None, 0)) == PAIRS
