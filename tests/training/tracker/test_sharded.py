"""A model in the shards of FSDP2 is counted as a whole one; real processes, which talk by gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.train

import torch  # noqa: E402

from tests.training.tracker import sharded_worker as worker  # noqa: E402
from tests.training.workers import run_workers  # noqa: E402

WORLD = 2

MODEL = "transformers.models.llama.modeling_llama"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("sharded")
    run_workers(worker.run, WORLD, folder, num=WORLD, loads=MODEL)
    paths = [folder / f"results-{rank}.pt" for rank in range(WORLD)]
    return [torch.load(path, weights_only=True) for path in paths]


@pytest.mark.parametrize("scenario", ["sharded_fp32", "resumed"])
def test_counts_are_those_of_the_whole(ranks: list[dict[str, Any]], scenario: str) -> None:
    one = ranks[0][scenario]
    assert one["found"] == one["expected"]
    assert [(step, counts_of(by)) for step, by in one["figures"]] == [
        (step, counts_of(by)) for step, by in one["expected_figures"]
    ]
    for found, expected in zip(one["norms"], one["expected_norms"], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert one["left"] == [Path(one["left"][0]).name]  # no base is left, of either process
    last = one["found"][-2]
    assert sum(counts[4] for counts in last.values()) > 0  # some came back


def counts_of(by_kind: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {kind: values[:5] for kind, values in by_kind.items()}


def test_masked_training(ranks: list[dict[str, Any]]) -> None:
    one = ranks[0]["sharded_masked"]
    assert one["found"] == one["expected"]
    for _, by_kind in one["figures"]:
        totals = [sum(values[at] or 0 for values in by_kind.values()) for at in range(1, 5)]
        seen, nonzero, asked, absorbed = totals
        assert seen == one["selected"]
        assert 0 < nonzero <= asked <= seen  # a mean stays when a gradient is 0
        assert 0 < absorbed < asked


def test_every_process_refuses(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        exists, other_base = rank["refused"]
        assert "exists already" in exists
        assert "refused.base-1: not the base of" in other_base


def test_copies_are_counted_once(ranks: list[dict[str, Any]]) -> None:
    one = ranks[0]["copies"]
    assert one["found"] == one["expected"]
    assert one["left"] == ["copies"]
