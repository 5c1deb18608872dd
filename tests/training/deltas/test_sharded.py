"""A model that is sharded over two processes is written as the delta of the whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

import trimtab
from tests.deltas.building import content_of
from tests.training.deltas import sharded_worker as worker
from trimtab.sync.chain import read_chain
from trimtab.sync.places import open_place

pytestmark = pytest.mark.train

WORLD = 2


def test_a_sharded_model(tmp_path: Path) -> None:
    spawn(worker.run, (WORLD, tmp_path), nprocs=WORLD)  # type: ignore[no-untyped-call]
    said = [torch.load(tmp_path / f"said-{rank}.pt", weights_only=True) for rank in range(WORLD)]
    assert said[0] == said[1]
    for name, (content_hash, version, exists, refused) in said[0].items():
        base, tuned = tmp_path / name / "base", tmp_path / name / "tuned"
        trimtab.apply_delta(base, tmp_path / name / "x.delta", tmp_path / name / "again")
        assert content_of(tmp_path / name / "again") == content_of(tuned)
        with trimtab.DeltaFile(tmp_path / name / "x.delta") as delta:
            assert delta.manifest.result.content_hash == content_hash
            assert "FSDP" not in delta.manifest.result.id
        assert version == "version 1"
        for place in ("run", "ddp"):
            chain = read_chain(open_place(tmp_path / name / place))
            assert chain is not None and chain.newest.content_hash == content_hash
        assert "x.delta exists" in exists
        assert "is sharded over processes" in refused
