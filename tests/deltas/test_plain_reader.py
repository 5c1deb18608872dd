"""A reader that was written from the page "Formats" reads what trimtab writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import trimtab
from tests.deltas import plain_reader
from tests.deltas.building import content_of, moved, random_bits, write_folder
from trimtab.elements.dtypes import DTYPES


def test_the_tables_are_those_of_the_dtypes() -> None:
    for dtype in DTYPES.values():
        assert plain_reader.WIDTH.get(dtype.name, 8) == 8 * dtype.num_bytes
        assert (dtype.name in plain_reader.MANTISSA) == dtype.is_float
        if dtype.is_float:
            assert plain_reader.MANTISSA[dtype.name] == dtype.num_mantissa_bits


def test_every_dtype_any_bits(tmp_path: Path) -> None:
    base = {name: (name, random_bits(name, (9, 31), i)) for i, name in enumerate(DTYPES)}
    tuned = {name: (dtype, moved(bits, 0.2, 4)) for name, (dtype, bits) in base.items()}
    weight = np.random.default_rng(0).normal(0, 0.02, (70, 64)).astype(np.float32)
    for share, name in ((0.01, "cold"), (0.5, "all over")):
        base[name] = ("F32", weight.view(np.uint32))
        tuned[name] = ("F32", moved(weight.view(np.uint32), share, 5))
    base["rows"], tuned["rows"] = (
        ("I16", np.arange(num * 6, dtype=np.uint16).reshape(num, 2, 3)) for num in (5, 7)
    )
    tuned["rows"][1][0] += 3
    folders = [write_folder(tmp_path / "base", base), write_folder(tmp_path / "tuned", tuned)]
    trimtab.make_delta(folders[0], folders[1], tmp_path / "x.delta")
    read = plain_reader.read((tmp_path / "x.delta").read_bytes(), content_of(folders[0]))
    assert read == content_of(folders[1])


def test_with_a_predictor(tmp_path: Path) -> None:
    """Updates of few directions, rounded to bf16; signs and places are predicted."""
    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.02, (160, 192)).astype(np.float32)
    update = 3e-5 * sum(np.outer(rng.normal(size=160), rng.normal(size=192)) for _ in range(2))
    bits = [
        (w.view(np.uint32) >> 16).astype(np.uint16) for w in (weight, weight + np.float32(update))
    ]
    folders = [
        write_folder(tmp_path / name, {"w": ("BF16", part)})
        for name, part in zip(("base", "tuned"), bits, strict=True)
    ]
    (entry,) = trimtab.make_delta(folders[0], folders[1], tmp_path / "x.delta").tensors
    assert entry.frames[0] > 2 * (160 + 192) / 8
    read = plain_reader.read((tmp_path / "x.delta").read_bytes(), content_of(folders[0]))
    assert read == content_of(folders[1])
