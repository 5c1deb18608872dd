from __future__ import annotations

from typing import Any

import numpy as np

from tests.masks.masks import example_mask
from trimtab.masks.mask import Mask
from trimtab.report.mask import gaps_text, mask_document, share_text
from trimtab.report.terminal import render_text


def text_of_mask(mask: Mask, **how: Any) -> str:
    return render_text(mask_document(mask), **how)


def test_the_whole_table() -> None:
    arrays = {
        "model.norm.weight": np.ones(3, dtype=np.bool_),
        "model.layers.0.self_attn.q_proj.weight": np.eye(200, dtype=np.bool_),
    }
    mask = Mask.from_arrays(arrays, provenance={"steps": [{"step": "by hand", "author": "me"}]})
    made = mask.random_like(7).complement()
    assert text_of_mask(made, console_width=80).splitlines() == [
        "39,800 of 40,003 elements (99.49 %) in 2 tensors",
        f"digest {made.digest}",
        "",
        "kind    tensors  elements  selected  density",
        "q_proj        1    40,000    39,800  99.50 %",
        "norm          1         3         0      0 %",
        "all           2    40,003    39,800  99.49 %",
        "",
        "How it was made:",
        "- step by hand, author me",
        f"- random: the same number in each tensor as {mask.digest}, seed 7",
        f"- complement: what {mask.random_like(7).digest} does not select",
    ]


def test_an_extraction_in_words() -> None:
    step = {
        "step": "extract",
        "criterion": "atol=1e-05",
        "base": {"id": "org/base", "revision": "abc"},
        "tuned": {"id": "tuned", "revision": None},
        "missing": [{}],
        "extra": [{}, {}],
        "shape_mismatch": [],
    }
    mask = Mask.from_arrays({}, provenance={"steps": [step]})
    assert text_of_mask(mask).splitlines()[-1] == (
        "- extract: changed from org/base@abc to tuned (criterion: atol=1e-05); not compared in "
        "full: 1 tensor only in base, 2 tensors only in tuned"
    )
    assert gaps_text({"missing": []}) == ""


def test_masks_that_runs_found_in_words() -> None:
    moved = {
        "step": "moved",
        "criterion": "bits",
        "base": "org/base",
        "algorithm": "grpo",
        "after_steps": 20,
        "looks": [
            {"after_steps": 10, "num_moved": 1234, "share_new": None},
            {"after_steps": 20, "num_moved": 1500, "share_new": 0.25},
        ],
        "peak_memory": {"num_bytes": 3_210_999_999, "of": "resident memory"},
    }
    gradients = {
        "step": "largest gradients",
        "base": "org/base",
        "algorithm": "sft",
        "after_steps": 4,
        "density": 0.1,
        "peak_memory": None,
    }
    unknown = {"step": "new", "of": {"a": 1}, "share": 0.5}
    mask = Mask.from_arrays({}, provenance={"steps": [moved, gradients, unknown]})
    assert text_of_mask(mask).splitlines()[-3:] == [
        "- moved: what 20 steps of grpo from org/base changed (criterion: bits); after step 10: "
        "1,234 elements; after step 20: 1,500 elements, 25.00 % of them new; peak 3,210 MB of "
        "resident memory",
        "- largest gradients: where those of 4 steps of sft from org/base sum up to most, in "
        "magnitude",
        "- step new, of …, share 0.5",
    ]


def test_a_mask_without_provenance_or_tensors() -> None:
    text = text_of_mask(Mask.from_arrays({}))
    assert "How it was made" not in text
    assert text.startswith("0 of 0 elements in 0 tensors\n")


def test_strangers_cannot_move_the_cursor() -> None:
    steps: tuple[dict[str, object], ...] = (
        {"step": "extract", "base": "\x1b[2J", "tuned": None, "missing": 3, "criterion": []},
        {"step": "random", "of": "\x1b[2J", "seed": "\n"},
        {
            "step": "moved",
            "base": "\x1b[2J",
            "looks": [{"num_moved": "\udc80", "share_new": 1e300}, 3],
            "algorithm": {},
        },
        {"step": "moved", "base": "\x1b[2J", "looks": 3, "peak_memory": {"num_bytes": []}},
        {"\x1b[2J": "\udc80"},
    )
    for step in steps:
        text = text_of_mask(Mask.from_arrays({}, provenance={"steps": [step]}))
        assert "\x1b" not in text
        assert "\\x1b[2J" in text
        assert "\udc80" not in text


def test_style_adds_no_characters_that_show() -> None:
    plain = text_of_mask(example_mask())
    styled = text_of_mask(example_mask(), styled=True)
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m"):
        styled = styled.replace(code, "")
    assert styled == plain


def test_how_much_in_words() -> None:
    assert share_text(3, 3) == "3 of 3 elements (100 %)"
