"""Masks that are made on the spot, from the weights of a model in memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import architectures
from tests.training.tiny_trainers import (
    Base,
    assert_same_bits,
    build,
    model,
    moved,
    reward_model,
    train,
    weights,
)
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError, MaskMismatchError, SettingsError
from trimtab.masks.makers.kinds import KINDS, make_mask
from trimtab.masks.mask import Mask
from trimtab.training import mask_from_model, suggested_learning_rate, train_only
from trimtab.training.folders import WEIGHTS
from trimtab.training.masked_checkpoint import MASK_FILE, RECORD_FILE
from trimtab.training.model_masks import RATE_RATIOS, stored_dtypes

pytestmark = pytest.mark.train

DENSITY = 0.13

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def from_files(folder: Path, kind: str, density: float = DENSITY, seed: int = 5) -> Mask:
    with open_checkpoint(folder) as checkpoint:
        return make_mask(checkpoint, kind, density=density, seed=seed)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mask_that_the_files_give(kind: str, dtype: str, base: Base) -> None:
    made = mask_from_model(model(base[0], dtype), kind, density=DENSITY, seed=5)
    expected = from_files(base[0], kind)
    assert made == expected and made.digest == expected.digest
    assert made.base == expected.base and list(made) == list(expected)
    (step,), (other,) = made.provenance["steps"], expected.provenance["steps"]
    assert step == other
    assert (step["step"], step["density"], step["seed"]) == (kind, DENSITY, 5)
    for name in made:
        assert made.num_selected(name) == int(DENSITY * made.num_elements(name) + 0.5)


def test_the_smallest_and_largest_weights_by_brute_force(base: Base) -> None:
    net = model(base[0], "float32")
    for sign, kind in ((1, "low-magnitude"), (-1, "high-magnitude")):
        mask = mask_from_model(net, kind, density=DENSITY)
        for name in mask:
            sizes = sign * dict(net.named_parameters())[name].detach().abs().numpy().reshape(-1)
            selected = mask.array(name).reshape(-1)
            cut = np.sort(sizes)[max(mask.num_selected(name) - 1, 0)]
            assert selected[sizes < cut].all() and not selected[sizes > cut].any(), name


def test_seeds_break_ties_and_draw(base: Base) -> None:
    net = model(base[0])
    for kind, least in (("random", 0.5), ("low-magnitude", 0.0)):
        one, two = (mask_from_model(net, kind, density=0.1, seed=seed) for seed in (0, 1))
        assert one != two and one.num_selected() == two.num_selected()
        share = (one ^ two).num_selected() / (2 * one.num_selected())
        assert share > least


def test_weights_in_fp16_and_fp32_have_the_digests_of_their_files(
    base: Base, tmp_path: Path
) -> None:
    for dtype in (torch.float16, torch.float32):
        folder = tmp_path / str(dtype)
        net = model(base[0], "float32")
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(1 + 2**-9 * torch.rand_like(parameter))
        net.to(dtype).save_pretrained(folder)
        loaded = model(folder, "float32")
        assert (
            mask_from_model(loaded, "random", density=0.5).base
            == from_files(folder, "random", 0.5).base
        )


def test_most_elements_decide_between_narrow_dtypes() -> None:
    half = (torch.rand(100) + 1).half()  # 10 bits of a fraction, where bf16 has 7
    ones = torch.ones(4)
    assert stored_dtypes({"w": half.float(), "norm": ones}) == {"w": "F16", "norm": "F16"}
    assert stored_dtypes({"w": half.bfloat16().float(), "norm": ones}) == {
        "w": "BF16",
        "norm": "BF16",
    }
    assert stored_dtypes({"w": torch.rand(100), "norm": ones}) == {"w": "F32", "norm": "F32"}


@pytest.mark.parametrize("name", ["Mixtral", "GPTNeoX"])
def test_names_and_shapes_are_those_of_the_files(name: str, tmp_path: Path) -> None:
    net = architectures.build(name)
    net.save_pretrained(tmp_path / "files")
    made = mask_from_model(net, "low-magnitude", density=0.2, seed=5)
    assert made == from_files(tmp_path / "files", "low-magnitude", 0.2)


def test_training_moves_that_mask_and_saves_it(base: Base, tmp_path: Path) -> None:
    net = model(base[0])
    before = weights(net)
    trainer = build("sft", net, base[0], tmp_path)
    training = train_only(trainer, "high-magnitude", density=0.1, seed=3)
    assert training.mask == from_files(base[0], "high-magnitude", 0.1, 3)
    train(trainer)
    changed = moved(before, weights(net))
    for name, elements in changed.items():
        inside = training.mask.array(name)
        assert not elements[~inside].any() and elements[inside].mean() > 0.5, name
    trainer.save_model(str(tmp_path / "saved"))
    saved = Mask.load(tmp_path / "saved" / MASK_FILE)
    assert saved == training.mask and saved.base == training.mask.base
    record = json.loads((tmp_path / "saved" / RECORD_FILE).read_text())
    (step,) = record["mask"]["provenance"]["steps"]
    assert step == {
        "step": "high-magnitude",
        "base": {"id": str(base[0]), "revision": None},
        "match": "tensor",
        "density": 0.1,
        "seed": 3,
    }


@pytest.mark.parametrize("kind", ["low-magnitude", "random"])
@pytest.mark.parametrize("source", ["base", "checkpoint"])
def test_a_resumed_run_has_the_same_mask(
    kind: str, source: str, base: Base, tmp_path: Path
) -> None:
    def run(folder: Path, start: Path, resume: Path | None) -> tuple[Mask, Any]:
        net = model(start)
        trainer = build("sft", net, base[0], folder, **SAVING, learning_rate=0.1)
        training = train_only(trainer, kind, density=0.2, seed=1)
        train(trainer, resume)
        return training.mask, weights(net)

    mask, expected = run(tmp_path / "whole", base[0], None)
    checkpoint = tmp_path / "whole" / "checkpoint-1"
    start = base[0] if source == "base" else checkpoint
    # After a step of 0.1 the smallest weights are others.
    remade = mask_from_model(model(checkpoint), "low-magnitude", density=0.2, seed=1)
    assert kind == "random" or remade != mask
    resumed, result = run(tmp_path / "resumed", start, checkpoint)
    assert resumed == mask and resumed.base == mask.base
    assert_same_bits(result, expected)
    assert Mask.load(tmp_path / "resumed" / "checkpoint-3" / MASK_FILE) == mask
    assert (checkpoint / WEIGHTS).exists()


@pytest.mark.parametrize("change", [{"density": 0.1}, {"seed": 2}, {"mask": "high-magnitude"}])
def test_a_mask_made_otherwise_does_not_resume(
    change: dict[str, Any], base: Base, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"mask": "low-magnitude", "density": 0.2, "seed": 1}
    trainer = build("sft", model(base[0]), base[0], tmp_path, **SAVING)
    train_only(trainer, **asked)
    train(trainer)
    again = build("sft", model(base[0]), base[0], tmp_path / "again", **SAVING)
    train_only(again, **{**asked, **change})
    with pytest.raises(MaskMismatchError, match=r"was trained with the mask .* resume with"):
        train(again, tmp_path / "checkpoint-1")


def test_frozen_and_new_parameters_are_left_out(base: Base) -> None:
    net = model(base[0])
    net.model.embed_tokens.weight.requires_grad_(False)
    assert set(from_files(base[0], "random")) - set(
        mask_from_model(net, "random", density=0.1)
    ) == {"model.embed_tokens.weight"}
    head = reward_model(base[0])
    mask = mask_from_model(head, "low-magnitude", density=0.1)
    assert "score.weight" not in mask and "model.embed_tokens.weight" in mask


def test_the_head_is_trained_beside_it(
    base: Base, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net = reward_model(base[0])
    before = weights(net)
    trainer = build("reward", net, base[0], tmp_path)
    with caplog.at_level(logging.INFO, "trimtab"):
        train_only(trainer, "random", density=0.1, also=["score"])
    assert "; mask made from the weights: random, 10.00 % of every tensor, seed 0" in caplog.text
    train(trainer)
    assert moved(before, weights(net))["score.weight"].all()


def test_without_a_mask_it_takes_the_measured_default(base: Base, tmp_path: Path) -> None:
    every: list[dict[str, Any]] = [{}, {"mask": "random"}, {"density": 0.05}]
    for number, asked in enumerate(every):
        trainer = build("plain", model(base[0]), base[0], tmp_path / str(number))
        assert train_only(trainer, **asked, seed=2).mask == from_files(base[0], "random", 0.05, 2)


def test_the_suggested_rate_grows_as_the_mask_shrinks() -> None:
    rates = [suggested_learning_rate(1e-5, density) for density in RATE_RATIOS]
    assert rates == pytest.approx([1e-5 * ratio for ratio in RATE_RATIOS.values()])
    between = suggested_learning_rate(1e-5, (0.05 * 0.01) ** 0.5)
    assert between == pytest.approx(1e-5 * (RATE_RATIOS[0.05] * RATE_RATIOS[0.01]) ** 0.5)
    assert suggested_learning_rate(1.0, 1e-6) == pytest.approx(RATE_RATIOS[0.005])
    for rate, density in ((0, 0.1), (float("nan"), 0.1), (1, 0), (1, 1.1), (1, float("nan"))):
        with pytest.raises(SettingsError, match="expected a rate above 0, and a density above 0"):
            suggested_learning_rate(rate, density)


def test_what_is_no_mask(base: Base, tmp_path: Path) -> None:
    trainer = build("plain", model(base[0]), base[0], tmp_path)
    for arguments, error, words in (
        ({"mask": "low-magnitud"}, MaskError, "no file, and no kind.*did you mean low-magnitude?"),
        ({"mask": "m.safetensors"}, MaskError, "no kind of mask: expected one of random, low-"),
        ({"mask": Path("random")}, MaskError, "no file"),
        ({"mask": "random", "density": 1.5}, MaskError, "density 1.5: expected a number above 0"),
        ({"mask": "random", "density": float("nan")}, MaskError, "density nan"),
        ({"mask": "random", "density": 1.0}, MaskError, "selects every element"),
        ({"mask": "random", "density": 1e-9}, MaskError, "selects no element"),
        (
            {"mask": from_files(base[0], "random"), "density": 0.1},
            SettingsError,
            "density=0.1 is for a mask that is made here: expected mask= one of random",
        ),
    ):
        with pytest.raises(error, match=words):
            train_only(trainer, **arguments)


def test_sharded_weights_are_refused(base: Base) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = model(base[0])
    store = torch._C._distributed_c10d.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        fully_shard(net.model.layers[0], mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(MaskError, match=r"layers\.0.* sharded over processes.* make it before"):
            mask_from_model(net, "random", density=0.1)
    finally:
        dist.destroy_process_group()


def test_weights_that_are_not_there_are_refused(base: Base) -> None:
    net = model(base[0]).to("meta")
    with pytest.raises(MaskError, match=r"not loaded .on the meta device.: load the weights first"):
        mask_from_model(net, "random", density=0.1)
    broken = model(base[0])
    with torch.no_grad():
        broken.model.norm.weight[2] = float("nan")
    with pytest.raises(MaskError, match=r"NaN .*model.norm.weight has 1"):
        mask_from_model(broken, "low-magnitude", density=0.1)
