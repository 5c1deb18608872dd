"""What all scores of weights share: which tensors, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from tests.measure.checkpoints import llama_tensors, save
from trimtab.checkpoints.checkpoint import Checkpoint, open_checkpoint
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError, MaskError
from trimtab.masks.header import BaseTensor
from trimtab.masks.makers.principal import PrincipalScores
from trimtab.masks.makers.weight_scores import Lookup, low_magnitude_scores


@pytest.fixture
def opened_mixed(tmp_path: Path) -> Iterator[Checkpoint]:
    tensors = {"w": torch.ones(4, 3, dtype=torch.bfloat16), "steps": torch.arange(3)}
    with open_checkpoint(save(tmp_path / "base", tensors, None)) as base:
        yield base


def test_float_tensors_are_scored_and_hashed(opened_mixed: Checkpoint) -> None:
    scores = low_magnitude_scores(opened_mixed)
    assert scores.shapes == {"w": (4, 3)}
    raw = torch.ones(12, dtype=torch.bfloat16).view(torch.int16).numpy().tobytes()
    assert scores.base == {"w": BaseTensor("BF16", xxhash.xxh3_128_hexdigest(raw))}


def test_only_the_named_tensors_are_read(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.norm.weight"][3] = float("nan")
    name = "model.layers.0.mlp.up_proj.weight"
    with open_checkpoint(save(tmp_path / "base", tensors)) as base:
        assert list(low_magnitude_scores(base, [name]).shapes) == [name]


def test_every_nan_is_told_at_once(tmp_path: Path) -> None:
    tensors = llama_tensors()
    tensors["model.norm.weight"][3] = float("nan")
    tensors["model.layers.0.mlp.up_proj.weight"][:2, 5] = float("nan")
    with (
        open_checkpoint(save(tmp_path / "base", tensors)) as base,
        pytest.raises(MaskError) as refused,
    ):
        low_magnitude_scores(base)
    assert "model.norm.weight has 1" in str(refused.value)
    assert "up_proj.weight has 2" in str(refused.value)


def test_infinity_has_a_place_by_magnitude_and_none_in_a_spectrum(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, float("inf")], [0.5, 2.0]])
    with open_checkpoint(save(tmp_path / "base", {"w": weight}, None)) as base:
        (scores,) = low_magnitude_scores(base).chunks("w")
        assert scores.tolist() == [-1.0, -np.inf, -0.5, -2.0]
        with pytest.raises(MaskError, match="NaN or infinite have no place in an order: w has 1"):
            PrincipalScores(base)


def test_fp8_with_block_scales_is_refused(tmp_path: Path) -> None:
    weight = torch.ones(4, 4).to(torch.float8_e4m3fn)
    tensors = {"w": weight, "w_scale_inv": torch.ones(1, 1)}
    with (
        open_checkpoint(save(tmp_path / "base", tensors, None)) as base,
        pytest.raises(
            CheckpointError, match=r"is quantised: w \(F8_E4M3 with scales in w_scale_inv"
        ),
    ):
        low_magnitude_scores(base)


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F32"])
def test_looking_up_is_computing(name: str) -> None:
    dtype = DTYPES[name]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 8 * dtype.num_bytes, 1000, dtype=np.uint64).astype(dtype.bits)

    def three_times(bits: np.ndarray, dtype: object) -> np.ndarray:
        return bits.astype(np.float64) * 3

    assert np.array_equal(Lookup(three_times)(bits, dtype), three_times(bits, dtype))
