"""The masks of runs: drawn at a density, or from a file made against this very base."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs.test_base_model import stored_as
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.mask import Mask
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.prepare import random_mask

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize("density", [0.001, 0.1, 1 / 3, 1.0])
def test_same_density_in_every_tensor(base: Base, density: float) -> None:
    found = open_base(str(base[0]), Path())
    mask = random_mask(found, density, 3)
    assert mask.names == tuple(found.shapes)
    for name, shape in found.shapes.items():
        assert mask.shape(name) == shape
        assert mask.num_selected(name) == round(density * prod(shape))
    assert random_mask(found, density, 3) == mask
    assert random_mask(found, density, 4) != mask or density == 1.0
    assert dict(mask.base) == dict(found.tensors)


def test_file(base: Base, tmp_path: Path) -> None:
    found = open_base(str(base[0]), Path())
    mask = random_mask(found, 0.1, 0)
    mask.save(tmp_path / "m.safetensors")
    assert found.fitted(Mask.load(tmp_path / "m.safetensors")) == mask


def test_masks_of_other_weights_and_models_are_refused(base: Base, tmp_path: Path) -> None:
    found = open_base(str(base[0]), Path())
    other = open_base(str(stored_as(base[0], tmp_path / "fp32", "float32")), Path())
    random_mask(found, 0.1, 0).save(tmp_path / "m.safetensors")
    with pytest.raises(MaskMismatchError, match="embed_tokens"):
        other.fitted(Mask.load(tmp_path / "m.safetensors"))
    arrays = {name: mask for name, mask in _arrays(found).items() if "norm" in name}
    Mask.from_arrays({f"x.{name}": a for name, a in arrays.items()}).save(
        tmp_path / "x.safetensors"
    )
    with pytest.raises(MaskMismatchError, match="is not in the model"):
        found.fitted(Mask.load(tmp_path / "x.safetensors"))


def test_no_mask(base: Base, tmp_path: Path) -> None:
    found = open_base(str(base[0]), Path())
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(MaskError):
            found.fitted(Mask.load(path))
    shutil.copy2(base[0] / "model.safetensors", tmp_path / "weights.safetensors")
    with pytest.raises(MaskError):
        found.fitted(Mask.load(tmp_path / "weights.safetensors"))


def _arrays(found: Any) -> dict[str, Any]:
    mask = random_mask(found, 0.5, 0)
    return {name: mask.array(name) for name in mask}
