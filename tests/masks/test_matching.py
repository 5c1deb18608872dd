"""Masks and checkpoints of one model that name its tensors differently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.measure.checkpoints import llama_tensors, moved, save
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.makers.counts import consensus
from trimtab.masks.mask import Mask
from trimtab.masks.matching import named_like
from trimtab.masks.on_disk import open_mask
from trimtab.masks.overlap import overlap
from trimtab.masks.prediction import score_prediction
from trimtab.masks.selection.quotas import Quotas, random_matched
from trimtab.masks.split import share
from trimtab.masks.structure import structure
from trimtab.masks.transfer import transfer


def headless(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same model, saved without its head."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


class Model:
    """A base and a tuned checkpoint under the names of a whole model, and of a headless one."""

    def __init__(self, root: Path) -> None:
        base = llama_tensors()
        tuned = moved(base)
        self.base = save(root / "base", base)
        self.tuned = save(root / "tuned", tuned)
        self.base2 = save(root / "base2", headless(base))
        self.tuned2 = save(root / "tuned2", headless(tuned))
        self.mask = extract_mask(self.base, self.tuned)
        self.mask2 = extract_mask(self.base2, self.tuned2)
        self.file, self.file2 = root / "one.safetensors", root / "two.safetensors"
        self.mask.save(self.file)
        self.mask2.save(self.file2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(tmp_path_factory.mktemp("model"))


def test_the_two_name_every_tensor_of_the_layers_differently(model: Model) -> None:
    assert model.mask != model.mask2
    assert model.mask.num_selected() == model.mask2.num_selected() > 0
    assert not set(model.mask) & set(model.mask2)
    alike = named_like(model.mask2, list(model.mask))
    assert alike == model.mask
    assert alike.digest == model.mask2.digest != model.mask.digest
    assert hash(alike) == hash(model.mask)


def test_set_algebra(model: Model) -> None:
    one, two = model.mask, model.mask2
    assert one & two == one == one | two
    assert (one ^ two).num_selected() == (one - two).num_selected() == 0
    with open_mask(model.file) as first, open_mask(model.file2) as second:
        assert consensus([first, second], at_least=2) == one


def test_the_common_core(model: Model, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.safetensors" for n in range(3)]
    with open_mask(model.file) as first, open_mask(model.file2) as second:
        split = share([first, second], files, base=model.base)
    selected = model.mask.num_selected()
    assert [part.num_selected for part in split.parts] == [selected, 0, 0]


@pytest.mark.parametrize("base", [None, "base", "base2"])
def test_overlap(model: Model, base: str | None) -> None:
    found = overlap(model.file, model.file2, base=base and getattr(model, base))
    assert found.coverage.is_complete
    selected = model.mask.num_selected()
    assert sum(t.num_shared[0] for t in found.tensors) == selected
    assert [record.digest for record in found.masks] == [model.mask.digest, model.mask2.digest]


def test_score(model: Model) -> None:
    found = score_prediction(model.file, model.file2, base=model.base2)
    assert sum(t.num_shared[0] for t in found.overlap.tensors) == model.mask.num_selected()


def test_identity_and_structure(model: Model) -> None:
    found = identity(model.base, model.tuned, model.tuned, model.file2)
    assert found.total.inside.num_elements == model.mask.num_selected()
    assert found.sub_stayed_outside
    one, two = structure(model.file, model.file2, base=model.base).masks
    assert one.tensors[0].num_selected > 0
    assert [t.num_selected for t in one.tensors] == [t.num_selected for t in two.tensors]


def test_controls_and_quotas(model: Model) -> None:
    control = random_matched(model.mask2, model.base, seed=0)
    assert control.num_selected() == model.mask.num_selected()
    assert set(control) == set(model.mask)
    shapes = {name: model.mask.shape(name) for name in model.mask}
    quotas = Quotas.like(model.mask2, shapes)
    assert quotas.num_selected == model.mask.num_selected()


def test_transfer(model: Model) -> None:
    assert Mask.of(transfer(model.mask2, model.base)) == model.mask


def test_a_mask_of_a_head_for_a_checkpoint_that_stores_the_embedding(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    tensors = {"model.embed_tokens.weight": torch.ones(6, 4), "model.layers.0.w": torch.ones(3)}
    base = save(tmp_path / "base", tensors, config)
    selected = np.zeros((6, 4), dtype=np.bool_)
    selected[1:3] = True
    mask = Mask.from_arrays({"lm_head.weight": selected})
    control = random_matched(mask, base, seed=1)
    assert control.num_selected("model.embed_tokens.weight") == 8
