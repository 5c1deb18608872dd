"""Layouts against what `save_pretrained` writes and `from_pretrained` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.training.architectures import FUSED, MODELS, build
from trimtab.errors import MaskMismatchError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.training import SparseAdamW
from trimtab.training.layout import Layout
from trimtab.training.pieces import Piece, find_pieces

pytestmark = pytest.mark.train


@pytest.fixture(autouse=True)
def _quiet() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def moved(model: Any, density: float = 0.3) -> None:
    """Move some elements of every parameter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand(parameter.shape, generator=generator) < density] += 0.5


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_loaded", [False, True], ids=["built", "loaded"])
def test_stored_tensors_are_those_of_the_file(name: str, is_loaded: bool, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path)
    if is_loaded:
        model = type(model).from_pretrained(tmp_path)
    layout = Layout.of(model)
    stored = dict(layout.tensors(dict(model.named_parameters())))
    file = load_file(tmp_path / "model.safetensors")
    buffers = {name.rpartition(".")[2] for name, _ in model.named_buffers()}
    assert {name for name in file if name.rpartition(".")[2] not in buffers} == stored.keys()
    assert not layout.computed
    for tensor_name, tensor in stored.items():
        assert torch.equal(tensor, file[tensor_name]), tensor_name
    assert (len(stored) > len(layout.parameters)) == (name in FUSED)
    # Elements are counted once, and seen in place rather than copied.
    assert sum(one.numel() for one in stored.values()) == sum(p.numel() for p in model.parameters())
    assert all(piece.is_view for piece in layout.stored.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_mask_of_files_trains_the_model(name: str, tmp_path: Path) -> None:
    model = build(name)
    model.save_pretrained(tmp_path / "base")
    moved(model)
    model.save_pretrained(tmp_path / "tuned")
    mask = extract_mask(tmp_path / "base", tmp_path / "tuned")
    assert mask.num_selected() and mask.base.keys() == {*mask}
    with pytest.raises(MaskMismatchError, match="digest"):
        SparseAdamW(model.named_parameters(), mask, lr=0.1)  # these are the tuned weights
    model = type(model).from_pretrained(tmp_path / "base")
    optimizer = SparseAdamW(model.named_parameters(), mask, lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    assert extract_mask(tmp_path / "base", tmp_path / "trained") == mask
    assert optimizer.describe()["mask"] == mask.digest
    assert optimizer.describe()["num_selected"] == mask.num_selected()


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "GPTNeoX"])
def test_there_and_back(name: str) -> None:
    model = build(name)
    layout = Layout.of(model)
    rng = np.random.default_rng(0)
    arrays = {n: rng.random(piece.shape) < 0.4 for n, piece in layout.stored.items()}
    in_files = Mask.from_arrays(arrays)
    in_memory = layout.in_memory(in_files)
    assert {n: in_memory.shape(n) for n in in_memory} == layout.parameters
    assert in_memory.num_selected() == in_files.num_selected()
    assert in_memory.digest == in_files.digest
    # A mask that was made under the names of the model is brought under those of files.
    of_model = Mask.from_arrays({n: in_memory.array(n) for n in in_memory})
    assert layout.in_files(of_model) == in_files
    assert layout.in_files(in_files) is in_files
    assert layout.in_memory(of_model) == in_memory


def test_a_compiled_model_is_named_like_its_checkpoint() -> None:
    model = build("Qwen3Moe")
    compiled: Any = torch.compile(model, backend="eager")
    layout = Layout.of(compiled)
    assert layout.shapes == Layout.of(model).shapes
    name = next(n for n in layout.stored if ".experts.0." in n)
    mask = Mask.from_arrays({name: np.eye(*layout.stored[name].shape, dtype=np.bool_)})
    optimizer = SparseAdamW(compiled, mask, lr=0.1)
    assert optimizer.describe()["num_selected"] == mask.num_selected()


def test_pairs_alone_do_not_say_how_experts_are_stored() -> None:
    model = build("Qwen3Moe")
    name = next(n for n in Layout.of(model).stored if ".experts.0." in n)
    mask = Mask.from_arrays({name: np.ones(Layout.of(model).stored[name].shape, dtype=np.bool_)})
    with pytest.raises(MaskMismatchError, match="pass the model itself"):
        SparseAdamW(list(model.named_parameters()), mask, lr=0.1)
    for given in (model, model.named_parameters()):
        SparseAdamW(given, mask, lr=0.1).close()


def test_a_name_twice_is_refused() -> None:
    model = build("Qwen3Moe")
    layout = Layout.of(model)
    stored = next(n for n in layout.stored if ".experts.0.gate" in n)
    fused = layout.stored[stored].sources[0]
    arrays = {
        stored: np.ones(layout.stored[stored].shape, dtype=np.bool_),
        fused: np.ones(layout.parameters[fused], dtype=np.bool_),
    }
    with pytest.raises(MaskMismatchError, match="both as in the model and as in files"):
        layout.in_memory(Mask.from_arrays(arrays))


SHAPES = {"q": (4, 6), "k": (2, 6), "fused": (3, 4, 5), "norm": (7,), "one": (1, 3)}


def saved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join, cut, turn and interleave, as the operations of transformers do."""
    found: dict[str, Tensor] = {}
    if "q" in tensors or "k" in tensors:
        found["attn.qk"] = torch.cat([tensors[n] for n in ("q", "k") if n in tensors])
    if "fused" in tensors:
        first, second = tensors["fused"].chunk(2, dim=1)
        for expert in range(3):
            found[f"experts.{expert}.gate"] = first[expert].contiguous()
            found[f"experts.{expert}.up"] = second[expert].T.contiguous()
    if "norm" in tensors:
        found["ln"] = tensors["norm"]
    if "one" in tensors:
        found["row"] = tensors["one"].reshape(3, 1)
    return found


def test_operations_that_join_cut_and_turn() -> None:
    pieces, computed = find_pieces(SHAPES, saved)
    assert not computed
    values = {n: torch.randn(shape) for n, shape in SHAPES.items()}
    expected = saved(values)
    assert pieces.keys() == expected.keys()
    arrays = {n: item.numpy() for n, item in values.items()}
    written = {n: np.zeros_like(item) for n, item in arrays.items()}
    assigned = {n: torch.zeros(shape) for n, shape in SHAPES.items()}
    for name, piece in pieces.items():
        assert torch.equal(piece.of(values), expected[name]), name
        assert np.array_equal(piece.take(arrays), expected[name].numpy())
        piece.put(expected[name].numpy(), written)
        piece.assign(expected[name], assigned)
        assert piece.is_view == (name != "attn.qk"), name
    assert all(np.array_equal(written[n], arrays[n]) for n in arrays)
    assert all(torch.equal(assigned[n], values[n]) for n in values)
    assert pieces["ln"].is_all_of((7,))
    assert not pieces["row"].is_all_of((1, 3))
    layout = Layout(SHAPES, pieces, {}, {})
    rng = np.random.default_rng(0)
    mask = Mask.from_arrays({n: rng.random(item.shape) < 0.5 for n, item in expected.items()})
    in_memory = layout.in_memory(mask)
    assert saved({n: torch.from_numpy(in_memory.array(n)) for n in SHAPES}).keys() == {*mask}
    for name, tensor in saved({n: torch.from_numpy(in_memory.array(n)) for n in SHAPES}).items():
        assert np.array_equal(tensor.numpy(), mask.array(name))


def test_what_computes_values_is_refused() -> None:
    def plus_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: tensor + 1 if n == "norm" else tensor for n, tensor in tensors.items()}

    pieces, computed = find_pieces(SHAPES, plus_one)
    assert computed.keys() == {"norm"}
    layout = Layout(SHAPES, pieces, {}, computed)
    ones = Mask.from_arrays({"norm": np.ones(7, dtype=np.bool_)})
    for way in (layout.in_memory, layout.in_files):
        with pytest.raises(MaskMismatchError, match="computes the stored values of this model"):
            way(ones)
    other = Mask.from_arrays({"q": np.ones((4, 6), dtype=np.bool_)})
    assert layout.in_memory(other) == other


def test_a_piece_of_a_view_reads_what_the_view_holds() -> None:
    whole = torch.arange(24.0).reshape(2, 12)
    piece = Piece.whole("p", (2, 5))
    assert torch.equal(piece.of({"p": whole[:, 3:8]}), whole[:, 3:8])


@pytest.mark.parametrize("name", MODELS)
def test_a_trainer_stops_and_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    from trimtab.masks.identity import identity
    from trimtab.training import train_only

    build(name).save_pretrained(tmp_path / "base")
    ids = torch.randint(3, 20, (8, 12), generator=torch.Generator().manual_seed(0)).tolist()
    data = Dataset.from_dict({"input_ids": ids, "labels": ids})
    rng = np.random.default_rng(0)
    shapes = Layout.of(build(name)).shapes
    mask = Mask.from_arrays({n: rng.random(shape) < 0.3 for n, shape in shapes.items()})

    def trainer(max_steps: int) -> Any:
        args = TrainingArguments(
            str(tmp_path / "out"),
            max_steps=max_steps,
            save_steps=1,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        model = type(build(name)).from_pretrained(tmp_path / "base")
        made = Trainer(model, args, train_dataset=data)
        train_only(made, mask)
        return made

    whole = trainer(3)
    whole.train()
    trainer(1).train()
    resumed = trainer(3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1"))
    pairs = zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
    saved = tmp_path / "out" / "checkpoint-3"
    found = identity(tmp_path / "base", saved, saved, saved / "trimtab_mask.safetensors")
    assert found.sub_stayed_outside
    assert extract_mask(tmp_path / "base", saved).num_selected() > 0
