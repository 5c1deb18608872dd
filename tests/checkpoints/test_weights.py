"""The weights of a base read for a mask: all of them, in order, and hashed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints import stream, weights
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.tensors import StoredTensor
from trimtab.checkpoints.weights import elements_of, read_weights
from trimtab.elements.dtypes import Bits


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view(torch.int16).numpy().view(np.uint16).ravel()


def test_every_element_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 64)
    tensors = {**llama_tensors(), "scalar": torch.tensor(2.0, dtype=torch.bfloat16)}
    tensors["nothing"] = torch.zeros(0, 3, dtype=torch.bfloat16)
    data: list[tuple[int, int]] = []

    def collect(tensor: StoredTensor, chunks: Iterator[tuple[int, Bits]]) -> np.ndarray:
        found = np.zeros(tensor.num_elements, dtype=np.uint16)
        for start, bits in chunks:
            assert start % 8 == 0
            found[start : start + len(bits)] = bits
        return found

    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        found, digests = read_weights(
            base, tensors, collect, num_passes=2, progress=lambda *now: data.append(now)
        )
        assert read_weights(base, [], collect) == ({}, {})
    for name, tensor in tensors.items():
        assert np.array_equal(found[name], bits_of(tensor))
        assert digests[name] == xxhash.xxh3_128_hexdigest(bits_of(tensor).tobytes())
    num_bytes = 2 * sum(tensor.numel() for tensor in tensors.values())
    assert sum(done for done, _ in data) == num_bytes
    assert {total for _, total in data} == {2 * num_bytes}


def test_what_a_task_leaves_is_hashed_all_the_same(tmp_path: Path) -> None:
    tensors = llama_tensors()
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        _, digests = read_weights(base, tensors, lambda tensor, chunks: None)
    for name, tensor in tensors.items():
        assert digests[name] == xxhash.xxh3_128_hexdigest(bits_of(tensor).tobytes())


def test_elements_in_chunks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", 64)
    tensors = {"w": torch.randn(10, 20).to(torch.bfloat16), "nothing": torch.zeros(0)}
    with open_checkpoint(save(tmp_path / "base", tensors, None)) as base:
        chunks = list(elements_of(base.tensors["w"]))
        assert not list(elements_of(base.tensors["nothing"]))
        part = list(elements_of(base.tensors["w"], 10, 150))
    assert [len(chunk) for chunk in chunks] == [64, 64, 64, 8]
    assert np.array_equal(np.concatenate(chunks), bits_of(tensors["w"]))
    assert [len(chunk) for chunk in part] == [64, 64, 12]
    assert np.array_equal(np.concatenate(part), bits_of(tensors["w"])[10:150])
