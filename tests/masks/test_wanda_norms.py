"""A file of input norms is kept exactly, and refused unless every number can be a norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.checkpoints.building import entry, file_bytes, tensors_bytes
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError, MaskMismatchError, OutputExistsError
from trimtab.masks.pruning import matrices_of
from trimtab.masks.wanda import InputNorms

NAMES = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(2)]
VECTORS = {
    name: (np.arange(layer, layer + 5) / 3).astype(np.float32) for layer, name in enumerate(NAMES)
}


def test_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "norms.safetensors"
    InputNorms(VECTORS, {"read": {"num_tokens": 3}}).save(path)
    found = InputNorms.load(path)
    assert found.provenance == {"read": {"num_tokens": 3}}
    assert list(found.vectors) == NAMES
    for name, vector in load_file(path).items():  # another reader sees the same
        assert np.array_equal(vector, VECTORS[name])
        assert np.array_equal(found.vectors[name], VECTORS[name])
    with pytest.raises(OutputExistsError):
        InputNorms(VECTORS).save(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_files_of_other_programs(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "norms.safetensors"
    save_file({name: vector.astype(dtype) for name, vector in VECTORS.items()}, path)
    found = InputNorms.load(path)
    assert found.provenance == {}
    for name, vector in VECTORS.items():
        assert found.vectors[name].dtype == np.float32
        assert np.array_equal(found.vectors[name], vector.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "has NaN or infinity"),
        (np.inf, "has NaN or infinity"),
        (-1.0, "has negative ones"),
        (1e300, "has some beyond the range of fp32"),
    ],
)
def test_numbers_that_are_no_norms(tmp_path: Path, value: float, words: str) -> None:
    path = tmp_path / "norms.safetensors"
    vectors = {name: vector.astype(np.float64) for name, vector in VECTORS.items()}
    vectors[NAMES[0]][2] = vectors[NAMES[1]][0] = value
    save_file(vectors, path)
    with pytest.raises(MaskError) as error:
        InputNorms.load(path)
    assert str(error.value) == (
        f"{path}: input norms are finite and at least 0: {NAMES[0]} {words}, {NAMES[1]} {words}"
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it has 0 bytes"),
        (file_bytes({"w": entry("F32", [2], 0, 8)}, b"\0" * 4), "truncated"),
        (file_bytes({"w": entry("I32", [2], 0, 8)}, b"\0" * 8), "w is I32, expected F32 or F64"),
        (file_bytes({"w": entry("F32", [2, 1], 0, 8)}, b"\0" * 8), r"w has shape \(2, 1\), expec"),
        (
            file_bytes({"__metadata__": {"format": "trimtab.mask"}}),
            "expected input norms, of the format 'trimtab.input_norms'; found 'trimtab.mask'",
        ),
        (
            file_bytes({"__metadata__": {"format_version": "2"}}),
            "input norms of format version '2'",
        ),
        (file_bytes({"__metadata__": {"provenance": "{"}}), "its provenance is not JSON"),
        (file_bytes({"__metadata__": {"provenance": "[]"}}), "its provenance is no JSON object"),
    ],
)
def test_hostile_files(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "norms.safetensors"
    path.write_bytes(content)
    with pytest.raises(MaskError, match=words) as error:
        InputNorms.load(path)
    assert str(path) in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no such file"):
        InputNorms.load(tmp_path / "none.safetensors")


def test_norms_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    shapes = {NAMES[0]: (4, 5), NAMES[1]: (4, 6), "model.layers.0.mlp.down_proj.weight": (5, 4)}
    path.write_bytes(
        tensors_bytes({name: np.zeros(shape, np.uint16) for name, shape in shapes.items()})
    )
    with open_checkpoint(path) as base:
        matrices = matrices_of(base)
        fitting = {name: np.ones(shape[1], np.float32) for name, shape in shapes.items()}
        InputNorms(fitting).check(base, matrices)
        with pytest.raises(MaskMismatchError) as error:
            InputNorms({**VECTORS, "stranger": np.ones(3, np.float32)}).check(base, matrices)
    assert str(error.value) == (
        f"the input norms are not those of {path}: stranger is not in it; {NAMES[1]} has shape "
        "(4, 6), and norms of 5 inputs; model.layers.0.mlp.down_proj.weight has none. Measure them "
        "on this model"
    )
