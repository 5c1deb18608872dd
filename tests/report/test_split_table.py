"""The table of the parts of several masks."""

from __future__ import annotations

from pathlib import Path

from trimtab.masks.common_core import Part, Split
from trimtab.report.split_table import render_split


def test_the_whole_table() -> None:
    split = Split(
        num_elements=10_000,
        num_selected=(2000, 4000),
        parts=(
            Part(Path("p/core"), None, 1500, 800.4),
            Part(Path("p/1"), 0, 500, 1200.0),
            Part(Path("p/2"), 1, 2500, 0.0),
        ),
        base_differs=(),
    )
    assert render_split(split, ["math", "co\x1bde"], console_width=70).splitlines() == [
        "2 masks of 10,000 elements: math (20.00 %), co\\x1bde (40.00 %)",
        "",
        "part             selected  of the mask  by chance   lift",
        "core                1,500      75.00 %        800   1.87",
        "own of math           500      25.00 %      1,200  0.417",
        "own of co\\x1bde     2,500      62.50 %          0      –",
        "",
        "The share of the core is that of the smallest mask. By chance: the",
        "mean for random, independent masks with as many elements in each",
        "tensor.",
    ]


def test_matched_chance_beside_it() -> None:
    parts = (Part(Path("core"), None, 1500, 800.4, 1450.0), Part(Path("1"), 0, 0, 3.0, 0.0))
    split = Split(10_000, (2000, 4000), parts, ())
    lines = render_split(split, ["a", "b"], console_width=200).splitlines()
    assert lines[2:5] == [
        "part      selected  of the mask  by chance  lift  matched  matched lift",
        "core         1,500      75.00 %        800  1.87    1,450          1.03",
        "own of a         0          0 %          3     0        0             –",
    ]
    assert " ".join(lines).endswith("as many of each tensor × exponent of the base's weights.")
