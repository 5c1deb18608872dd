"""What masks agree on, against adding bool arrays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.masks.masks import SHAPES, arrays, example_mask
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import BaseTensor
from trimtab.masks.makers import counts as module
from trimtab.masks.makers.counts import CountScores, consensus
from trimtab.masks.mask import Mask


@pytest.mark.parametrize("at_least", [1, 2, 3, 4])
def test_at_least_so_many(at_least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 64)
    masks = [example_mask(0.5, seed) for seed in range(4)]
    mask = consensus(masks, at_least)
    for name, shape in SHAPES.items():
        counts = sum(arrays(0.5, seed)[name].astype(int) for seed in range(4))
        assert np.array_equal(mask.array(name), np.asarray(counts >= at_least).reshape(shape))
        found = list(CountScores(masks).chunks(name))
        assert np.array_equal(np.concatenate([*found, []]), np.ravel(counts))
    assert mask.base == masks[0].base
    (step,) = mask.provenance["steps"]
    assert step == {"step": "consensus", "at_least": at_least, "of": [m.digest for m in masks]}
    assert mask.provenance["made_from"] == {m.digest: dict(m.provenance) for m in masks}


def test_a_tensor_that_a_mask_lacks_has_nothing_selected() -> None:
    first = Mask.from_arrays({"w": np.array([True, True]), "v": np.array([True])})
    second = Mask.from_arrays({"w": np.array([True, False])})
    both = consensus([first, second], 2)
    assert both.array("w").tolist() == [True, False]
    assert both.array("v").tolist() == [False]


def test_other_models_and_other_bases_are_refused() -> None:
    w = np.array([True, False])
    one, two = (Mask.from_arrays({"w": w}, base={"w": BaseTensor("F32", d * 32)}) for d in "01")
    with pytest.raises(MaskMismatchError, match="different bases: w had other bytes"):
        consensus([one, two], 1)
    with pytest.raises(MaskMismatchError, match=r"w is \(2,\), and \(1, 2\) in mask 2"):
        consensus([one, Mask.from_arrays({"w": w[None]})], 1)
    with pytest.raises(MaskError, match="expected 1 to 1"):
        consensus([one], 2)
    with pytest.raises(MaskError, match="no masks to count"):
        consensus([], 1)
