"""What is known of a model before it is loaded."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from trimtab.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointWarning,
    SettingsError,
)
from trimtab.training.folders import WEIGHTS
from trimtab.training.runs.base_model import open_base

pytestmark = pytest.mark.train

Base = tuple[Path, dict[str, Any]]


def stored_as(base: Path, folder: Path, *dtypes: str) -> Path:
    """A copy of the base with its tensors stored in these dtypes by turns."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = load_file(folder / WEIGHTS)
    for place, name in enumerate(sorted(tensors)):
        tensors[name] = tensors[name].to(getattr(torch, dtypes[place % len(dtypes)]))
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def test_shapes_and_hashes_are_those_of_the_model(base: Base) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from trimtab.masks.extract import extract_mask
    from trimtab.training import runtime

    found = open_base(str(base[0]), Path())
    with runtime.quiet():
        model = AutoModelForCausalLM.from_pretrained(base[0], dtype=torch.bfloat16)
    assert found.folder == base[0]
    assert dict(found.shapes) == {n: tuple(p.shape) for n, p in model.named_parameters()}
    mask = extract_mask(base[0], base[0])
    assert dict(found.tensors) == dict(mask.base)
    assert found.record.to_dict() == mask.provenance["steps"][0]["base"]


def test_an_adapter_beside_the_weights_is_refused(base: Base, tmp_path: Path) -> None:
    """transformers would put it on top of them, under the hash of the weights alone."""
    folder = stored_as(base[0], tmp_path / "m", "bfloat16")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with (
        pytest.warns(CheckpointWarning, match=r"LoRA adapter next to it \(adapter_config.json\)"),
        pytest.raises(CheckpointError, match=r"^model: .* would be loaded on top of them"),
    ):
        open_base(str(folder), Path())


def test_quantised_weights_are_refused(base: Base, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = stored_as(base[0], tmp_path / "m", "bfloat16")
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors | {f"{name}_scale": torch.tensor(2.0)}, folder / WEIGHTS)
    with pytest.raises(
        CheckpointError, match=r"^model: .* is quantised: .*with scales in weight_sc"
    ):
        open_base(str(folder), Path())


def test_weights_that_change_before_they_are_loaded_are_refused(base: Base, tmp_path: Path) -> None:
    """The record has the hash of others by then."""
    from trimtab.training import runtime

    folder = stored_as(base[0], tmp_path / "m", "bfloat16")
    found = open_base(str(folder), Path())
    with runtime.quiet():
        assert found.load("bf16").config.model_type == "llama"
        path = folder / WEIGHTS
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        with pytest.raises(CheckpointError, match="changed while it was being read"):
            found.load("bf16")


def test_relative_to_the_run_file(base: Base) -> None:
    assert open_base(base[0].name, base[0].parent).folder == base[0]


@pytest.mark.parametrize(
    ("stored", "asked", "dtype"),
    [
        (("bfloat16",), None, "bf16"),
        (("bfloat16",), "fp32", "fp32"),
        (("float32",), None, "fp32"),
        (("float16",), None, "fp32"),
        (("bfloat16", "float32"), None, "fp32"),
    ],
)
def test_training_dtype(
    base: Base, tmp_path: Path, stored: tuple[str, ...], asked: str | None, dtype: str
) -> None:
    found = open_base(str(stored_as(base[0], tmp_path / "m", *stored)), Path())
    assert found.training_dtype(asked) == dtype


@pytest.mark.parametrize("stored", [("float32",), ("float16",), ("bfloat16", "float32")])
def test_a_dtype_that_rounds_weights_is_refused(
    base: Base, tmp_path: Path, stored: tuple[str, ...]
) -> None:
    found = open_base(str(stored_as(base[0], tmp_path / "m", *stored)), Path())
    with pytest.raises(SettingsError, match=r'dtype is "bf16".*round every weight'):
        found.training_dtype("bf16")


def test_models_that_cannot_be_used(base: Base, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        open_base("no/such-model", tmp_path)
    with pytest.raises(CheckpointError, match="expected the folder of a model"):
        open_base(str(base[0] / WEIGHTS), tmp_path)
    folder = stored_as(base[0], tmp_path / "fp8", "float8_e4m3fn")
    with pytest.raises(CheckpointError, match="F8_E4M3: weights are trained in bf16 or fp32"):
        open_base(str(folder), tmp_path)
    folder = stored_as(base[0], tmp_path / "other", "bfloat16")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(CheckpointError, match="transformers knows no language model"):
        open_base(str(folder), tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="transformers knows no language model"):
        open_base(str(folder), tmp_path)


def test_model_without_a_tokenizer(base: Base, tmp_path: Path) -> None:
    folder = stored_as(base[0], tmp_path / "m", "bfloat16")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        open_base(str(folder), tmp_path)
