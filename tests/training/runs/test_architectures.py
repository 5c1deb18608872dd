"""Runs from bases whose files name or cut tensors otherwise than the model does: to the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.training import tiny
from tests.training.architectures import build
from tests.training.runs.run_files import after, content, train, write
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.mask import Mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.masks.structure import structure
from trimtab.measure.tracked import TrackedPoints
from trimtab.training.folders import WEIGHTS
from trimtab.training.perturbation.noise import fingerprint, perturbed

pytestmark = pytest.mark.train


BASES = ["Qwen3Moe", "Mixtral", "Gemma3", "Llava", "Qwen2VL", "Llama headless", "GPT2 headless"]


def headless(name: str) -> Any:
    """The model without its head, as many bases are on the hub."""
    model = build(name)
    model.config.tie_word_embeddings = True
    inner = model.base_model
    inner.config.architectures = [type(model).__name__]
    return inner


@pytest.fixture(scope="module", params=BASES)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a tokenizer."""
    name, _, how = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("bases") / "base"
    model = headless(name) if how else build(name)
    model.to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def values(base: Path, **changes: Any) -> dict[str, Any]:
    trainer = {"learning_rate": 1e-2, "use_cpu": True}
    return content("sft", base, dtype="bf16", trainer=trainer, **changes)


def moved(base: Path, tuned: Path) -> int:
    """Elements whose bits differ, counted without trimtab; names without `model.` and the like."""

    def plain(folder: Path) -> dict[str, Any]:
        tensors = load_file(folder / WEIGHTS)
        short = (n.removeprefix("model.").removeprefix("transformer.") for n in tensors)
        return dict(zip(short, tensors.values(), strict=True))

    old, new = plain(base), plain(tuned)
    return sum(int((old[n].view(torch.int16) != new[n].view(torch.int16)).sum()) for n in old)


def test_a_run_from_a_mask_and_all_that_can_be_asked_of_it(base: Path, tmp_path: Path) -> None:
    result = train(write(tmp_path / "one", values(base, track=1)))
    out = tmp_path / "one" / "out"
    update = result["update"]
    assert update["num_changed"] == moved(base, out / "model") > 0
    assert update["num_changed_outside_mask"] == 0
    # The mask beside the weights is one of their file, and knows the base.
    mask_file = out / "model" / "trimtab_mask.safetensors"
    mask = Mask.load(mask_file)
    with open_checkpoint(out / "model") as saved:
        assert {*mask} <= saved.tensors.keys()
    assert mask.base
    found = identity(base, out / "model", out / "model", mask_file)
    assert found.sub_stayed_outside
    assert structure(mask_file, base=base).masks
    control = random_matched(mask, base, seed=0)
    assert control.num_selected() == mask.num_selected()
    # What the tracker saw is what a comparison of files finds.
    changed = extract_mask(base, out / "model")
    if "c_attn" not in "".join(changed):  # GPT-2's q, k and v are tracked apart, without places
        with open_checkpoint(base) as opened:
            points = TrackedPoints(out / "updates.trimtab", opened)
            points.check({name: item.digest for name, item in changed.base.items()})
            ever = {n: points.times_changed(n) > 0 for n in opened.tensors}
        for name in changed:
            assert not (changed.array(name).reshape(-1) & ~ever[name]).any(), name
    # A mask of the files trains the base, and stops and resumes to the same bits.
    changed.save(tmp_path / "changed.safetensors")
    again = values(base, mask="../changed.safetensors", output="out")
    whole, halves = (write(tmp_path / name, again) for name in ("whole", "halves"))
    result = train(whole)
    assert result["update"]["num_changed_outside_mask"] == 0
    assert result["optimizer"]["num_selected"] == changed.num_selected()
    with pytest.raises(KeyboardInterrupt):
        train(halves, stop=after(1))
    train(halves)
    paths = [run.parent / "out" / "model" / WEIGHTS for run in (whole, halves)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("base", ["Qwen3Moe", "GPT2 headless"], indirect=True)
@pytest.mark.parametrize("probe", ["adamw", "gradients"])
def test_a_mask_that_the_run_finds_itself(base: Path, tmp_path: Path, probe: str) -> None:
    auto = {"probe": probe, "steps": 1, "every": 1}
    if probe == "gradients":
        auto["density"] = 0.3
    result = train(write(tmp_path, values(base, mask="auto", auto=auto)))
    mask = Mask.load(tmp_path / "out" / "mask.safetensors")
    with open_checkpoint(base) as opened:
        assert {*mask} <= opened.tensors.keys()
    assert mask.base.keys() == {*mask}
    assert result["update"]["num_changed_outside_mask"] == 0
    assert result["update"]["num_changed"] == moved(base, tmp_path / "out" / "model") > 0


def test_noise_hits_single_experts() -> None:
    model = build("Qwen3Moe")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    name = "model.layers.1.mlp.experts.2.down_proj.weight"
    mask = Mask.from_arrays({name: np.ones((16, 8), dtype=np.bool_)})
    bits = fingerprint(model)
    with perturbed(model, mask, "sign", 1.0, seed=0):
        fused = "model.layers.1.mlp.experts.down_proj"
        differ = {n: p != before[n] for n, p in model.named_parameters()}
        assert {n for n, d in differ.items() if d.any()} == {fused}
        assert [bool(one.any()) for one in differ[fused]] == [False, False, True, False]
    assert fingerprint(model) == bits


def test_a_head_that_differs_is_trained_though_the_config_ties_it(tmp_path: Path) -> None:
    """transformers does not tie two tensors that are stored and differ."""
    from safetensors.torch import save_file

    folder = tmp_path / "base"
    tiny.model().to(torch.bfloat16).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for mask in ("all", "random:0.5"):
        run = write(tmp_path / mask.partition(":")[0], values(folder, mask=mask))
        train(run)
        changed = extract_mask(folder, run.parent / "out" / "model")
        assert changed.num_selected("lm_head.weight") > 0, mask
        assert changed.num_selected("model.embed_tokens.weight") > 0, mask
