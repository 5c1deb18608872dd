"""A model in memory is written as a delta of what `save_pretrained` would have written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import trimtab
from tests.deltas.building import content_of
from tests.training import architectures, tiny
from tests.training.deltas.test_loading import arrays_pair, bits_of, module_of, raw
from trimtab.errors import DeltaError, OutputExistsError
from trimtab.training import applied_delta, load_delta, runtime, save_delta

pytestmark = pytest.mark.train


@pytest.mark.parametrize("name", ["Llama", "Mixtral", "GPT2", "tied"])
def test_the_files_are_those_of_save_pretrained(name: str, tmp_path: Path) -> None:
    model = tiny.model() if name == "tied" else architectures.build(name)
    with runtime.quiet():
        model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
        tiny.tokenizer().save_pretrained(tmp_path / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        made = save_delta(model, tmp_path / "base", tmp_path / "x.delta", threads=1)
        model.save_pretrained(tmp_path / "tuned")
    trimtab.apply_delta(tmp_path / "base", tmp_path / "x.delta", tmp_path / "again")
    expected = content_of(tmp_path / "base") | content_of(tmp_path / "tuned")
    assert content_of(tmp_path / "again") == expected
    again = trimtab.make_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "2.delta")
    assert again.result.content_hash == made.result.content_hash
    assert made.result.num_elements == again.result.num_elements
    assert made.result.id == f"{type(model).__name__} in memory"
    with pytest.raises(OutputExistsError):
        save_delta(model, tmp_path / "base", tmp_path / "x.delta")


def test_any_module_and_any_dtype(tmp_path: Path) -> None:
    base, tuned = arrays_pair()
    from tests.deltas.building import write_folder

    write_folder(tmp_path / "base", base)
    save_delta(module_of(tuned), tmp_path / "base", tmp_path / "x.delta")
    trimtab.apply_delta(tmp_path / "base", tmp_path / "x.delta", tmp_path / "again")
    model = module_of(base)
    with applied_delta(model, tmp_path / "x.delta"):
        assert bits_of(model) == raw(tuned)
    with trimtab.open_checkpoint(tmp_path / "again") as again:
        assert {n: t.read().tobytes() for n, t in again.tensors.items()} == raw(tuned)
    with pytest.raises(DeltaError, match="meta device"):
        save_delta(nn.Linear(2, 2, device="meta"), tmp_path / "base", tmp_path / "y.delta")
    assert not (tmp_path / "y.delta").exists()


def test_a_state_dict(tmp_path: Path) -> None:
    """Tied weights are stored once; the files are those of `save_pretrained`."""
    model = tiny.model()
    with runtime.quiet():
        model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
        weights = {name: t.clone() for name, t in model.state_dict().items()}
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        made = save_delta(weights, tmp_path / "base", tmp_path / "x.delta", sha256=True)
        model.save_pretrained(tmp_path / "tuned")
    trimtab.apply_delta(tmp_path / "base", tmp_path / "x.delta", tmp_path / "again")
    assert content_of(tmp_path / "again") == content_of(tmp_path / "tuned")
    assert made.result.id == "state_dict in memory" and made.files[0].sha256
    with pytest.raises(DeltaError, match=r"_extra_state of the state_dict is no tensor"):
        save_delta({**weights, "_extra_state": None}, tmp_path / "base", tmp_path / "y.delta")  # type: ignore[dict-item]


def test_only_a_mask_was_trained(tmp_path: Path) -> None:
    """A model of tied embeddings, whose mask is in the names of its files."""
    model = tiny.model().to(torch.bfloat16)
    with runtime.quiet():
        model.save_pretrained(tmp_path / "base")
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    selected = {n: torch.rand(p.shape, generator=generator) < 0.1 for n, p in parameters.items()}
    mask = trimtab.Mask.from_arrays({name: bits.numpy() for name, bits in selected.items()})
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter[selected[name]] *= 1.1
    trained = bits_of(model)
    delta = tmp_path / "x.delta"
    made = save_delta(model, tmp_path / "base", delta, mask=mask)
    assert made.mask == mask.digest
    assert all(entry.mask == entry.name for entry in made.tensors if entry.num_changed)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    with pytest.raises(DeltaError, match=f"mask {mask.digest}, not given"):
        load_delta(model, delta)
    with applied_delta(model, delta, mask=mask):
        assert bits_of(model) == trained
    mask.save(tmp_path / f"mask-{mask.digest}.safetensors")
    load_delta(model, delta)
    assert bits_of(model) == trained
    with torch.no_grad():
        name = next(iter(parameters))
        parameters[name][~selected[name]] += 1
    with pytest.raises(DeltaError, match=f"^{name}: .* changed that the mask does not select"):
        save_delta(model, tmp_path / "base", tmp_path / "y.delta", mask=mask)
