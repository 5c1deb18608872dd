"""Zeros of a pruned model stay zeros, bit for bit, whatever is trained around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import tiny_trainers as trainers
from tests.training.runs import run_files
from tests.training.tiny_trainers import Base
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskMismatchError
from trimtab.masks.mask import Mask
from trimtab.masks.pruning import is_zero, prune, survivors
from trimtab.training import train_only

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def pruned(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with half of each matrix zero, and a few zeros of the other sign."""
    folder = tmp_path_factory.mktemp("pruned") / "model"
    prune(base[0], folder, sparsity=0.5)
    weights = folder / "model.safetensors"
    with open_checkpoint(folder) as checkpoint:
        tensor = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
        bits = tensor.read()
        places = np.flatnonzero(bits == 0)[:5]
        bits.reshape(-1)[places] = 0x8000
    content = bytearray(weights.read_bytes())
    content[tensor.offset : tensor.offset + tensor.num_bytes] = bits.tobytes()
    weights.write_bytes(content)
    return folder


def changed_mask(net: Any, base: Base) -> Mask:
    """A mask of the unpruned model, which knows its bytes."""
    alive = survivors(base[0])
    arrays = {n: a for n, a in trainers.arrays(net, density=0.6).items() if n in alive}
    return Mask.from_arrays(arrays, base={name: alive.base[name] for name in arrays})


def parts(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> bits, and which are zero."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: (bits := tensor.read(), is_zero(bits, tensor.dtype))
            for name, tensor in checkpoint.tensors.items()
        }


def check(before: Path, after: Path, mask: Mask) -> None:
    """Zeros have their very bits, and so has what is not in the mask; what is in it moved."""
    num_moved = num_zero = 0
    new = parts(after)
    for name, (bits, zero) in parts(before).items():
        moved = new[name][0] != bits
        assert not (moved & zero).any()
        assert not (moved & ~mask.array(name)).any()
        assert not (mask.array(name) & zero).any()
        num_moved += int(moved.sum())
        num_zero += int(zero.sum())
    assert num_zero > 1000
    assert num_moved > 0.4 * mask.num_selected()  # by SGD half of the steps are absorbed in bf16


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.3},
        {"optim": "sgd"},
        {"bf16": True, "max_grad_norm": 0.1},
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_zeros_stay_and_survivors_move(
    pruned: Path, base: Base, tmp_path: Path, settings: dict[str, Any], dtype: str
) -> None:
    model = trainers.model(pruned, dtype)
    mask = changed_mask(model, base) & survivors(pruned)
    trainer = trainers.build(
        "plain", model, pruned, tmp_path / "out", **{"learning_rate": 0.1, **settings}
    )
    train_only(trainer, mask)
    trainers.train(trainer)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "trained")
    check(pruned, tmp_path / "trained", mask)


def test_a_run_file_on_what_survived(pruned: Path, tmp_path: Path) -> None:
    survivors(pruned).save(tmp_path / "alive.safetensors")
    values = run_files.content(
        "sft", pruned, mask="alive.safetensors", trainer={"weight_decay": 0.1}
    )
    result = run_files.train(run_files.write(tmp_path, values))
    assert result["update"]["num_changed_outside_mask"] == 0
    check(pruned, tmp_path / "out" / "model", Mask.load(tmp_path / "alive.safetensors"))


def test_a_run_that_was_stopped_keeps_the_zeros(pruned: Path, tmp_path: Path) -> None:
    survivors(pruned).save(tmp_path / "alive.safetensors")
    values = run_files.content(
        "sft", pruned, mask="alive.safetensors", trainer={"max_steps": 4, "save_steps": 1}
    )
    path = run_files.write(tmp_path, values)
    with pytest.raises(KeyboardInterrupt):
        run_files.train(path, stop=run_files.after(2))
    run_files.train(path)
    check(pruned, tmp_path / "out" / "model", Mask.load(tmp_path / "alive.safetensors"))


def test_a_mask_of_the_unpruned_model_alone_is_refused(
    pruned: Path, base: Base, tmp_path: Path
) -> None:
    model = trainers.model(pruned)
    trainer = trainers.build("plain", model, pruned, tmp_path / "out")
    with pytest.raises(MaskMismatchError, match="when the mask was made"):
        train_only(trainer, changed_mask(model, base))
