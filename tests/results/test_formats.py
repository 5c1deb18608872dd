"""All formats through the one reader: committed files, and files that were tampered with."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trimtab
from tests.measure.checkpoints import llama_tensors, moved, save
from tests.report import factory
from tests.report.identity_factory import make_identity
from tests.report.overlap_factory import make_overlap
from tests.report.split_factory import make_split
from tests.report.structure_factory import make_structure
from tests.report.trajectory_factory import make_trajectory
from tests.training.evaluation.results import make_evaluation
from tests.training.robustness.results import make_probe
from trimtab.errors import ResultFormatError, TrimtabError
from trimtab.masks.prediction import PredictionScore, Ranking
from trimtab.report import REPORTS, read_result, text_of

ROOT = Path(__file__).parents[2]

COMMITTED = sorted([*ROOT.glob("papers/*/results/*.json"), *ROOT.glob("benchmarks/results/*.json")])

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, 10**15, 2**62, 10**30),
    *("", "a", "0", "bits", "\x00", "\ud800", "[/]", "a" * 500, "1..2"),
    *([], {}, [1], [[]], {"a": 1}, [None]),
)
"""What a value is replaced with."""


def results_in(data: Any) -> Iterator[dict[str, Any]]:
    """The results in a file, which may hold several."""
    if isinstance(data, dict) and data.get("format") in REPORTS:
        yield data
    elif isinstance(data, dict | list):
        for inner in data.values() if isinstance(data, dict) else data:
            yield from results_in(inner)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_committed_results_are_read_and_written_the_same(path: Path) -> None:
    for data in results_in(json.loads(path.read_text("utf-8"))):
        again = read_result(data).to_dict()
        json.dumps(again, allow_nan=False)
        _assert_holds(json.loads(json.dumps(again)), data)


def _assert_holds(again: Any, data: Any) -> None:
    """Everything is there as it was, beside what newer versions derive, too."""
    if isinstance(data, dict):
        for key, value in data.items():
            _assert_holds(again[key], value)
    elif isinstance(data, list):
        assert len(again) == len(data)
        for one, other in zip(again, data, strict=True):
            _assert_holds(one, other)
    else:
        assert again == data


@pytest.fixture(scope="module")
def one_of_each(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """A result of every format, as plain data."""
    folder, base = tmp_path_factory.mktemp("pair"), llama_tensors()
    pair = save(folder / "base", base), save(folder / "tuned", moved(base))
    comparison = trimtab.compare(*pair, lr=1e-5, steps=3, rank=True, geometry=True, profiles=True)
    overlap = make_overlap()
    low = {tensor.name: 1.0 for tensor in overlap.tensors} if overlap.base else {}
    ranking = Ranking("s", True, 0.5, {None: 0.5, 0: None}, {"norm": 0.25}, {"seed": 1})
    made: list[Any] = [
        *(comparison, make_trajectory(), make_identity(), overlap, make_split()),
        PredictionScore(overlap, low, ranking, {"command": None}),
        make_structure(tmp_path_factory.mktemp("structure"), 2, has_base=True),
        make_evaluation(levels=(1, 1, 2, 2, 2, 3), suites=True),
        make_probe(),
        trimtab.make_delta(*pair, folder / "run.delta"),
    ]
    found = [result.to_dict() for result in made]
    for stored in ("papers/balashov-2025/results/small.json", "tests/golden/inputs/sync.json"):
        found.append(json.loads((ROOT / stored).read_text("utf-8")))
    by_format = {data["format"]: json.loads(json.dumps(data)) for data in found}
    assert by_format.keys() == REPORTS.keys()
    return by_format


def test_every_format_is_read_and_written_the_same(
    one_of_each: dict[str, dict[str, Any]],
) -> None:
    for data in one_of_each.values():
        again = json.loads(json.dumps(read_result(data).to_dict()))
        _assert_holds(again, data)
        assert json.dumps(read_result(again).to_dict()) == json.dumps(again)


@pytest.mark.parametrize("format", REPORTS)
def test_what_was_tampered_with_is_refused_or_drawn(
    format: str, one_of_each: dict[str, dict[str, Any]]
) -> None:
    draws = random.Random(format)
    refused = 0
    for _ in range(25):
        data = copy.deepcopy(one_of_each[format])
        path = _tamper(data, draws)
        try:
            result = read_result(data)
        except ResultFormatError as error:
            refused += 1
            assert str(error).isprintable(), path
            assert len(str(error)) < 2000, path
            continue
        try:
            text_of(result)
            json.dumps(result.to_dict(), allow_nan=False)
        except TrimtabError:
            raise
        except Exception as error:
            raise AssertionError(f"{path}: {error!r}") from error
    assert refused >= 6


def _tamper(data: Any, draws: random.Random) -> tuple[Any, ...]:
    """Replace, remove or add one value somewhere, and say where."""
    path: list[Any] = []
    inner = data
    while True:
        keys = list(inner) if isinstance(inner, dict) else list(range(min(len(inner), 6)))
        path.append(draws.choice(keys))
        deeper = inner[path[-1]]
        if not (isinstance(deeper, dict | list) and deeper and draws.random() < 0.8):
            break
        inner = deeper
    what = draws.random()
    if what < 0.75 and inner[path[-1]] != (value := draws.choice(VALUES)):
        inner[path[-1]] = copy.deepcopy(value)
    elif what < 0.9 or not isinstance(inner, dict):
        del inner[path[-1]]
    else:
        inner["another"] = draws.choice(VALUES)
    return tuple(path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"num_changed": {"bits": 10**9}}, r"tensors\[0\]: num_changed.bits is 1000000000 of"),
        ({"num_elements": "a"}, r"tensors\[0\].num_elements is 'a', expected a whole number"),
        ({"num_increased": -5}, r"tensors\[0\]: -5 elements increased"),
        ({"shape": [1, 1]}, r"tensors\[0\]: shape is \[1, 1\], and num_elements"),
        ({"ulp_histogram": {"a lot": 1}}, "has the key 'a lot', which is no distance"),
    ],
)
def test_counts_of_a_comparison_are_counts(change: dict[str, Any], expected: str) -> None:
    data = factory.make_comparison(1).to_dict()
    data["tensors"][0].update(change)
    with pytest.raises(ResultFormatError, match=expected):
        read_result(json.loads(json.dumps(data)))


def test_the_sum_of_tensors_is_what_was_compared() -> None:
    data = factory.make_comparison(1).to_dict()
    data["coverage"]["num_compared"] -= 1
    with pytest.raises(ResultFormatError, match=r"coverage.num_compared is \d+, and its tensors"):
        read_result(data)


def test_all_problems_are_told_at_once() -> None:
    data = factory.make_comparison(1).to_dict()
    data["tensors"][0]["num_nan"] = data["tensors"][1]["layer"] = "x"
    del data["criterion"]
    with pytest.raises(ResultFormatError) as caught:
        read_result(data)
    for path in ("criterion", "tensors[0].num_nan", "tensors[1].layer"):
        assert path in str(caught.value)
