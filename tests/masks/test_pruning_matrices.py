"""Which tensors are pruned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.checkpoints.building import entry, file_bytes
from tests.checkpoints.models import SETTINGS, build_model
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import CheckpointError
from trimtab.masks.pruning import matrices_of


def write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "BF16") -> Path:
    header, end = {}, 0
    width = {"BF16": 2, "F8_E4M3": 1, "F32": 4}[dtype]
    for name, shape in shapes.items():
        begin, end = end, end + width * int(np.prod(shape))
        header[name] = entry(dtype, list(shape), begin, end)
    path.write_bytes(file_bytes(header, b"\0" * end))
    return path


LLAMA = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.layers.0.self_attn.q_proj.bias": (4,),
    "model.layers.0.mlp.gate.weight": (3, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 6),
    "model.layers.0.input_layernorm.weight": (4,),
    "lm_head.weight": (8, 4),
}


def test_the_matrices_of_the_layers(tmp_path: Path) -> None:
    with open_checkpoint(write(tmp_path / "model.safetensors", LLAMA)) as base:
        names = [tensor.name.rpartition(".layers.0.")[2] for tensor in matrices_of(base)]
        assert names == ["self_attn.q_proj.weight", "mlp.down_proj.weight"]
        asked = matrices_of(base, ["embed", "down_proj"])
        assert [tensor.name for tensor in asked] == list(LLAMA)[:1] + list(LLAMA)[4:5]
        with pytest.raises(CheckpointError) as error:
            matrices_of(base, ["embed", "up_proj", "norm"])
    assert str(error.value) == (
        f"{base.id} has no matrices of kind norm, up_proj: it has down_proj, embed, lm_head, "
        "q_proj, router"
    )


LEFT_ALONE = (
    *("norm", "bias", "embed", "lm_head", "gate.", "router.", "conv1d."),
    *("ln_", "wte", "wpe", "_A_log"),
)
"""In the names of what is not pruned."""


@pytest.mark.train
@pytest.mark.parametrize("model_type", SETTINGS)
def test_the_matrices_of_every_architecture(model_type: str, tmp_path: Path) -> None:
    model = build_model(model_type)
    model.save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as base:
        pruned = {tensor.name for tensor in matrices_of(base)}
        others = base.tensors.keys() - pruned
        assert all(".layers." in name or ".h." in name for name in pruned)
        for name in others:
            is_other = any(word in name for word in LEFT_ALONE)
            assert is_other or len(base.tensors[name].shape) < 2, name


def test_nothing_to_prune(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"model.embed_tokens.weight": (8, 4)})
    with open_checkpoint(path) as base, pytest.raises(CheckpointError, match="no matrices of laye"):
        matrices_of(base)


def test_fp8_is_not_pruned(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", LLAMA, "F8_E4M3")
    with open_checkpoint(path) as base, pytest.raises(CheckpointError) as error:
        matrices_of(base)
    assert str(error.value) == (
        f"{path} cannot be pruned: model.layers.0.self_attn.q_proj.weight is F8_E4M3, "
        "model.layers.0.mlp.down_proj.weight is F8_E4M3; expected BF16, F16, F32, F64. Save the "
        "model in one of them first"
    )
