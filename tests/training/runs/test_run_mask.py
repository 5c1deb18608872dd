"""The masks of runs: drawn at a density, or from a file made against this very base."""

from __future__ import annotations

import re
import shutil
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.training.runs.run_files import content, train, write
from tests.training.runs.test_base_model import stored_as
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.makers.kinds import KINDS, make_mask
from trimtab.masks.mask import Mask
from trimtab.training.folders import read_json
from trimtab.training.masked_checkpoint import MASK_FILE
from trimtab.training.runs.base_model import open_base
from trimtab.training.runs.execute import MODEL, RESOLVED
from trimtab.training.runs.prepare import made_mask, prepare
from trimtab.training.runs.settings import Settings

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


@pytest.mark.parametrize("density", [0.001, 0.1, 1 / 3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_same_density_in_every_tensor(base: Base, kind: str, density: float) -> None:
    found = open_base(str(base[0]), Path())
    mask = made_mask(found, kind, density, 3)
    assert mask.names == tuple(found.shapes)
    for name, shape in found.shapes.items():
        assert mask.shape(name) == shape
        assert mask.num_selected(name) == int(density * prod(shape) + 0.5)
    assert made_mask(found, kind, density, 3) == mask
    assert kind != "random" or made_mask(found, kind, density, 4) != mask or density == 1.0
    assert dict(mask.base) == dict(found.tensors)
    with open_checkpoint(base[0]) as checkpoint:
        made = make_mask(checkpoint, kind, density=density, seed=3)
    assert made == mask and made.provenance["steps"] == mask.provenance["steps"]


def test_a_run_trains_the_kind_that_it_names(base: Base, tmp_path: Path) -> None:
    path = write(tmp_path, content("sft", base[0], mask="low-magnitude:0.05", output="out"))
    result = train(path)
    assert result["update"]["num_changed_outside_mask"] == 0
    saved = Mask.load(tmp_path / "out" / MODEL / MASK_FILE)
    assert saved == made_mask(open_base(str(base[0]), Path()), "low-magnitude", 0.05, 0)
    assert saved.provenance["steps"][0]["step"] == "low-magnitude"
    resolved = read_json(tmp_path / "out" / RESOLVED)
    assert resolved["mask"]["source"] == "low-magnitude:0.05"
    assert resolved["settings"]["mask"] == saved.digest


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("low-magnitud:0.1", "no such file, and no kind of mask: did you mean low-magnitude?"),
        ("x.safetensors", "no such file, and no kind of mask: expected one of random, low-mag"),
    ],
)
def test_neither_a_file_nor_a_kind(base: Base, tmp_path: Path, mask: str, words: str) -> None:
    path = write(tmp_path, content("sft", base[0], mask=mask, output="out"))
    with pytest.raises(MaskError, match=re.escape(words)):
        prepare(Settings.read(path))


def test_file(base: Base, tmp_path: Path) -> None:
    found = open_base(str(base[0]), Path())
    mask = made_mask(found, "random", 0.1, 0)
    mask.save(tmp_path / "m.safetensors")
    assert found.fitted(Mask.load(tmp_path / "m.safetensors")) == mask


def test_masks_of_other_weights_and_models_are_refused(base: Base, tmp_path: Path) -> None:
    found = open_base(str(base[0]), Path())
    other = open_base(str(stored_as(base[0], tmp_path / "fp32", "float32")), Path())
    made_mask(found, "random", 0.1, 0).save(tmp_path / "m.safetensors")
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
    mask = made_mask(found, "random", 0.5, 0)
    return {name: mask.array(name) for name in mask}
