"""The magnitude-matched control: exact counts, every choice alike, the same everywhere."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import Tensors, llama_tensors, moved, save
from trimtab.checkpoints import stream
from trimtab.elements.dtypes import DTYPES, exponent_bins
from trimtab.errors import MaskMismatchError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import random_matched

BF16 = DTYPES["BF16"]


def bins_of(tensor: torch.Tensor) -> np.ndarray:
    """Exponents of a bf16 tensor, by the bits."""
    return exponent_bins(tensor.view(torch.int16).numpy().view(np.uint16), BF16)


@pytest.fixture
def base(tmp_path: Path) -> tuple[Path, Tensors]:
    tensors = llama_tensors()
    return save(tmp_path / "base", tensors), tensors


def test_every_bin_of_every_tensor_has_as_many(
    base: tuple[Path, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", 64)
    folder, tensors = base
    mask = extract_mask(folder, save(tmp_path / "tuned", moved(tensors)))
    control = random_matched(mask, folder, seed=3)
    assert control != mask
    assert control.names == mask.names
    for name, tensor in tensors.items():
        bins = bins_of(tensor)
        counts = [np.bincount(bins[m.array(name)], minlength=256) for m in (mask, control)]
        assert counts[0].tolist() == counts[1].tolist()
    assert control.base == mask.base
    step = control.provenance["steps"][-1]
    assert step == {"step": "random", "match": "magnitude", "seed": 3, "of": mask.digest}


@pytest.mark.slow
def test_every_choice_is_as_likely(tmp_path: Path) -> None:
    """Two of four small weights and one of three large ones: 6 × 3 choices."""
    weight = torch.tensor([1.0, 0.1, 1.5, 0.11, 0.12, 1.2, 0.1], dtype=torch.bfloat16)
    folder = save(tmp_path / "base", {"w": weight}, None)
    small, large = [1, 3, 4, 6], [0, 2, 5]
    mask = Mask.from_arrays({"w": np.isin(np.arange(7), [1, 3, 5])})
    num_draws = 900
    counts = Counter(
        tuple(random_matched(mask, folder, seed).indices("w").tolist()) for seed in range(num_draws)
    )
    choices = {tuple(sorted((*pair, one))) for pair, one in product(combinations(small, 2), large)}
    assert set(counts) == choices
    expected = num_draws / len(choices)
    freedom = len(choices) - 1
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


def test_a_seed_means_the_same_mask_for_ever(tmp_path: Path) -> None:
    """Results in papers name a seed: these change only together with the format."""
    weight = (torch.arange(1, 61) / 16).to(torch.bfloat16).reshape(6, 10)
    folder = save(tmp_path / "base", {"w": weight}, None)
    mask = Mask.from_arrays({"w": np.arange(60).reshape(6, 10) % 7 == 0})
    control = random_matched(mask, folder, 0)
    assert control.indices("w").tolist() == [0, 8, 13, 23, 26, 33, 34, 42, 58]


def test_a_tensor_draws_alike_whatever_else_there_is(tmp_path: Path) -> None:
    tensors = llama_tensors()
    name = "model.layers.1.mlp.up_proj.weight"
    alone = {name: tensors[name]}
    arrays = {key: np.random.default_rng(0).random(t.shape) < 0.1 for key, t in tensors.items()}
    whole = random_matched(Mask.from_arrays(arrays), save(tmp_path / "all", tensors), 5)
    one = random_matched(Mask.from_arrays({name: arrays[name]}), save(tmp_path / "one", alone), 5)
    assert np.array_equal(whole.array(name), one.array(name))


def test_another_base_is_refused(base: tuple[Path, Tensors], tmp_path: Path) -> None:
    folder, tensors = base
    tuned = save(tmp_path / "tuned", moved(tensors))
    mask = extract_mask(folder, tuned)
    with pytest.raises(MaskMismatchError, match="has the digest"):
        random_matched(mask, tuned, 0)
    other = save(tmp_path / "other", llama_tensors(vocab=44))
    with pytest.raises(MaskMismatchError, match=r"embed_tokens.weight has shape \(44, 32\)"):
        random_matched(mask, other, 0)


def test_what_base_lacks_stays_empty(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", {"w": torch.ones(3, 3)}, None)
    arrays = {"w": np.eye(3, dtype=np.bool_), "buffer": np.zeros(5, dtype=np.bool_)}
    control = random_matched(Mask.from_arrays(arrays), folder, 0)
    assert control.names == ("w", "buffer")
    assert (control.num_selected("w"), control.num_selected("buffer")) == (3, 0)


def test_integers_and_nan_are_strata_like_others(tmp_path: Path) -> None:
    weight = torch.tensor([float("nan")] * 5 + [float("inf")] * 5 + [0.0] * 10)
    tensors = {"w": weight, "steps": torch.arange(20)}
    folder = save(tmp_path / "base", tensors, None)
    arrays = {name: np.arange(20) % 3 == 0 for name in tensors}
    control = random_matched(Mask.from_arrays(arrays), folder, 1)
    # NaN and infinity share their exponent.
    assert control.array("w")[:10].sum() == arrays["w"][:10].sum()
    assert control.num_selected("w") == control.num_selected("steps") == 7
