"""Steps of provenance in words, whoever wrote them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trimtab.masks.mask import Mask
from trimtab.report.mask import carried_text, steps_lines


def mask(seed: int) -> Mask:
    """A mask with a step of its own."""
    array = np.random.default_rng(seed).random((4, 4)) < 0.5
    step = {"step": "random", "of": f"mask {seed}", "seed": seed}
    return Mask.from_arrays({"model.layers.0.q_proj.weight": array}, provenance={"steps": [step]})


def test_masks_of_masks() -> None:
    first, second, third = mask(1), mask(2), mask(3)
    both = first & second
    made = (both - third).restrict(kinds=["q_proj"], layers=[0])
    assert steps_lines(made.provenance) == [
        "- minus: what the first of these selects and the second does not",
        f"  mask 1: {both.digest}",
        "  - and: what both of these select",
        f"    mask 1: {first.digest}",
        "    - random: the same number in each tensor as mask 1, seed 1",
        f"    mask 2: {second.digest}",
        "    - random: the same number in each tensor as mask 2, seed 2",
        f"  mask 2: {third.digest}",
        "  - random: the same number in each tensor as mask 3, seed 3",
        f"- restrict: the tensors of {(both - third).digest} with kinds q_proj, layers 0",
    ]


def test_far_back_is_left_out() -> None:
    made = Mask.from_arrays({})
    for index in range(100):
        made = made | Mask.from_arrays({"w": np.arange(100) == index})
    lines = steps_lines(made.provenance)
    assert [line.strip() for line in lines].count("- …") == 1
    assert len(lines) < 20


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"step": "core", "of": []}, "core: what all of these select"),
        (
            {"step": "survivors", "checkpoint": {"id": "pruned", "revision": None}, "tied": []},
            "survivors: what is not 0 in pruned",
        ),
        (
            {"step": "random", "match": "magnitude", "seed": 1, "of": "d"},
            "random: the same number in each tensor × exponent of the base weight as d, seed 1",
        ),
        (
            {"step": "safe", "share": 0.1, "base": {"id": "b"}, "match": "total", "density": 0.74},
            "safe: small weights and what does not carry the principal directions of b, share 0.1: "
            "a share of 0.74 in all, ties by seed None",
        ),
        (
            {"step": "low-magnitude", "base": 7, "match": [], "like": "d", "seed": 2},
            "low-magnitude: the smallest weights of 7: the same number … as d, ties by seed 2",
        ),
        (
            {"step": "absorption", "lr": 1e-6, "steps": 2, "base": {"id": "b"}, "distance": 1},
            "absorption: what the smallest steps change of b, lr 1e-06, steps 2",
        ),
        (
            {"step": "consensus", "at_least": 2, "of": []},
            "consensus: what at least 2 of these select",
        ),
        (
            {"step": "consensus", "match": "tensor", "like": "d", "seed": 0},
            "consensus: what most of these select: the same number in each tensor as d, ties by "
            "seed 0",
        ),
        ({"step": "own", "mask": 1}, "own: what mask 2 selects and no other of these does"),
        ({"step": "xor"}, "xor: what exactly one of these selects"),
        ({"step": "or"}, "or: what one of these selects, or both"),
        (
            {"step": "restrict", "of": "d", "layers": list(range(20)), "tensors": ["*.norm.*"]},
            "restrict: the tensors of d with layers 0 1 2 3 4 5 6 7 8 9 10 11 …, tensors *.norm.*",
        ),
        (
            {"step": "transfer", "of": "d", "to": {"id": "org/other", "revision": "abc"}},
            "transfer: d on the tensors of org/other@abc",
        ),
        (
            {
                "step": "transfer",
                "of": "d",
                "to": {"id": "other"},
                "layers": {"0": 0, "1": 2},
                "by_density": ["a", "b"],
                "seed": 3,
                "common_rows": [{}],
                "not_in_mask": ["c"],
                "left_out": ["d", "e"],
            },
            "transfer: d on the tensors of other; layers interpolated to 2; the densities of rows, "
            "at random places, in 2 tensors (seed 3); the common rows of 1 vocabulary; 1 tensor "
            "not in the mask; 2 tensors only in the mask",
        ),
    ],
)
def test_each_step_in_words(step: dict[str, Any], words: str) -> None:
    assert steps_lines({"steps": [step]}) == [f"- {words}"]


def test_an_exact_transfer_has_nothing_to_tell() -> None:
    assert carried_text({"layers": None, "by_density": [], "common_rows": []}) == ""


def test_the_steps_of_a_mask_are_told_once() -> None:
    first, second = mask(1), mask(2)
    made = (first & second) - first
    lines = steps_lines(made.provenance)
    assert lines[-1] == f"  mask 2: {first.digest}"
    assert sum("as mask 1, seed 1" in line for line in lines) == 1


def test_a_circle_of_a_stranger_ends() -> None:
    step = {"step": "or", "of": ["a", "b"] * 3}
    circle = {"steps": [step], "made_from": {"a": {"steps": [step]}, "b": {"steps": [step] * 2}}}
    assert len(steps_lines(circle)) < 40


@pytest.mark.parametrize(
    "provenance",
    [
        {"steps": [{"step": "and", "of": [3, "\x1b[2J", {}]}], "made_from": {"\x1b[2J": 3}},
        {"steps": [{"step": "and", "of": ["\x1b[2J"]}], "made_from": 3},
        {"steps": [{"step": "or", "of": ["\x1b[2J"]}], "made_from": {"\x1b[2J": {"steps": 3}}},
        {"steps": [{"step": "or", "of": ["\x1b[2J"]}], "made_from": {"\x1b[2J": {"steps": [3]}}},
        {"steps": [{"step": "own", "mask": "\x1b[2J"}]},
        {"steps": [{"step": "restrict", "of": "\x1b[2J", "kinds": 3, "layers": {}}]},
        {"steps": [{"step": "transfer", "to": 3, "of": "\x1b[2J", "layers": 3, "by_density": {}}]},
        {"steps": [{"step": ["\x1b[2J"], "\x1b[2J": 3}]},
    ],
)
def test_strangers_cannot_move_the_cursor(provenance: dict[str, Any]) -> None:
    text = "\n".join(steps_lines(provenance))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text
