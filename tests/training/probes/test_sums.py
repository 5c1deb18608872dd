"""Sums on the disk: they keep what is added, read in chunks, and leave nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.checkpoints.weights import CHUNK_ELEMENTS
from trimtab.errors import SettingsError
from trimtab.masks.header import BaseTensor
from trimtab.training.probes.engine import ElementSums

pytestmark = pytest.mark.train

SHAPES = {"a": (3, 5), "none": (0, 4), "scalar": (), "large": (CHUNK_ELEMENTS + 7,)}
BASE = {"a": BaseTensor("BF16", "0" * 32)}


def test_what_is_added_stays(tmp_path: Path) -> None:
    with ElementSums(SHAPES, BASE, tmp_path) as sums:
        assert (sums.shapes, sums.base) == (SHAPES, BASE)
        for _ in range(2):
            for name, shape in SHAPES.items():
                with sums.of(name) as numbers:
                    assert numbers.shape == (int(np.prod(shape)),)
                    numbers += torch.arange(len(numbers))
        for name, shape in SHAPES.items():
            count = int(np.prod(shape))
            found = [*sums.chunks(name)]
            assert [len(chunk) for chunk in found[:-1]] == [CHUNK_ELEMENTS] * (len(found) - 1)
            expected = 2.0 * np.arange(count, dtype=np.float32)
            assert np.array_equal(np.concatenate([*found, np.zeros(0)]), expected)
        assert [*tmp_path.iterdir()] == []  # the file has no name


def test_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    with ElementSums({"a": (2,)}, {}, tmp_path / "not" / "there") as sums, sums.of("a") as numbers:
        assert numbers.tolist() == [0.0, 0.0]
    assert [*tmp_path.iterdir()] == []


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SettingsError, match="no room for 4 MB, 4 bytes for each element"):
        ElementSums({"a": (1_000_000,)}, {}, tmp_path)
