"""One pass over several checkpoints, without what a comparison does with it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints import stream
from trimtab.checkpoints.align import Aligned, align, alone
from trimtab.checkpoints.checkpoint import open_checkpoint, opened
from trimtab.checkpoints.stream import Reader
from trimtab.checkpoints.tensors import StoredTensor

SHAPES = {"wide": (3, 50), "small": (7,), "tall": (90, 2), "empty": (0, 4), "number": ()}


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of the tensors `SHAPES`; only the second has `more`."""
    for seed, name in enumerate(("first", "second")):
        arrays = {key: random_bits(shape, seed) for key, shape in SHAPES.items()}
        if seed:
            arrays["more"] = random_bits((5,), seed)
        (tmp_path / f"{name}.safetensors").write_bytes(tensors_bytes(arrays))
    return tmp_path / "first.safetensors", tmp_path / "second.safetensors"


def digest(tensor: StoredTensor) -> str:
    return xxhash.xxh3_128_hexdigest(tensor.read().tobytes())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("chunk", [4, 64, 1 << 19])
def test_all_is_read_once_whatever_the_chunks(
    paths: tuple[Path, Path], threads: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk)
    data: list[int] = []
    totals: set[int] = set()

    def progress(num_bytes: int, total: int) -> None:
        data.append(num_bytes)
        totals.add(total)

    with opened(*paths) as (first, second):
        alignment = align(first, second)
        assert alignment.apart == ((1, second.tensors["more"]),)

        def count_equal(item: Aligned, reader: Reader) -> int:
            return sum(int(np.sum(np.equal(*reader.read(at)))) for at in reader.chunks())

        done = stream.stream(alignment, count_equal, threads=threads, progress=progress)
        assert tuple(done.results) == alignment.items
        assert [item.name for item in done.items] == list(first.tensors)
        for item in alignment.items:
            one, other = (tensor.read() for tensor in item.stored)
            assert done.results[item] == np.sum(one == other)
        assert done.hashes == tuple(
            {name: digest(tensor) for name, tensor in checkpoint.tensors.items()}
            for checkpoint in (first, second)
        )
        everything = [tensor for each in (first, second) for tensor in each.tensors.values()]
    assert totals == {sum(tensor.num_bytes for tensor in everything)}
    assert {sum(data)} == totals


def test_an_error_ends_the_other_tasks_at_their_next_chunk(
    paths: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 1)
    failed, went_on = threading.Event(), threading.Event()
    with open_checkpoint(paths[0]) as first:
        num_chunks = 0

        def task(item: Aligned, reader: Reader) -> None:
            nonlocal num_chunks
            if item.name == "wide":
                failed.set()
                raise ZeroDivisionError
            failed.wait(10)
            for _ in reader.chunks():
                num_chunks += 1
                went_on.wait(0.2)  # ample for the first task's error to arrive
            raise AssertionError("read to the end")

        with pytest.raises(ZeroDivisionError):
            stream.stream(alone(first, ("wide", "tall", "small")), task, threads=2)
    assert num_chunks < 20


def test_what_was_open_stays_open(paths: tuple[Path, Path]) -> None:
    with open_checkpoint(paths[0]) as first:
        with opened(first, paths[1]) as (same, second):
            assert same is first
            assert second.tensors["more"].shape == (5,)
        first.tensors["wide"].read()
        with pytest.raises(ValueError, match="closed"):
            second.tensors["more"].read()
