"""Tensors of several checkpoints are aligned by name, and nothing that is stored is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints.align import Alignment, align, alone
from trimtab.checkpoints.checkpoint import open_checkpoint, opened
from trimtab.checkpoints.safetensors import file_start
from trimtab.errors import TensorMismatchError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
TIED = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}


def save(path: Path, shapes: dict[str, tuple[int, ...]], bits: str = "u2") -> Path:
    path.mkdir()
    arrays: dict[str, Any] = {name: random_bits(s).astype(bits) for name, s in shapes.items()}
    (path / "model.safetensors").write_bytes(tensors_bytes(arrays))
    (path / "config.json").write_text(json.dumps(TIED))
    return path


def everything(alignment: Alignment) -> list[tuple[int, str]]:
    """Place and name of each stored tensor, wherever the alignment has it."""
    used = {
        (place, tensor.name) for item in alignment.items for place, tensor in enumerate(item.stored)
    }
    return sorted([*used, *((place, tensor.name) for place, tensor in alignment.apart)])


def test_three_checkpoints(tmp_path: Path) -> None:
    paths = (
        save(tmp_path / "base", {EMBED: (8, 4), UP: (6, 4), DOWN: (4, 6), "only": (2,)}),
        save(tmp_path / "one", {EMBED: (10, 4), UP: (6, 4), DOWN: (4, 6), "more": (3,)}),
        save(tmp_path / "two", {HEAD: (9, 4), "layers.0.mlp.up_proj.weight": (6, 4), DOWN: (4, 7)}),
    )
    with opened(*paths) as checkpoints:
        alignment = align(*checkpoints)
        assert [(item.name, item.shape) for item in alignment.items] == [
            (EMBED, (8, 4)),
            (UP, (6, 4)),
            (HEAD, (8, 4)),  # which only repeats the embedding; its hashes will tell
        ]
        embed, up, head = alignment.items
        assert [tensor.name for tensor in embed.stored] == [EMBED, EMBED, HEAD]
        assert (embed.is_resized, embed.is_tied, up.is_resized, up.is_tied) == (
            *(True, True, False),
            False,
        )
        assert alignment.doubtful == {embed, head}
        one, two = alignment.sides
        assert set(one.missing) == {"only"}
        assert [tensor.name for tensor in one.extra] == ["more"]
        assert two.renamed[UP] == "layers.0.mlp.up_proj.weight"
        assert [(a.shape, b.shape) for a, b in two.mismatched] == [((4, 6), (4, 7))]
        stored = [
            (place, name) for place, entry in enumerate(checkpoints) for name in entry.tensors
        ]
        assert everything(alignment) == sorted(stored)
        exact = align(*checkpoints, exact=True)
        assert [item.name for item in exact.items] == [UP]
        assert everything(exact) == sorted(stored)


def test_some_tensors_of_one(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "base", {UP: (6, 4), DOWN: (4, 6)})) as base:
        assert [item.name for item in alone(base, [DOWN]).items] == [DOWN]
        assert alone(base, [DOWN]).apart == ()
        assert everything(alone(base, [DOWN], is_all_hashed=True)) == [(0, DOWN), (0, UP)]


def test_other_dtypes_are_named_with_their_places(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {UP: (6, 4), DOWN: (4, 6)}
    paths = [save(tmp_path / f"c{n}", shapes, bits) for n, bits in enumerate(("u2", "u2", "u4"))]
    with opened(*paths) as checkpoints:
        with pytest.raises(TensorMismatchError) as error:
            align(*checkpoints, labels=("A", "B", "C"))
        assert f"2 tensors are stored in different dtypes: {UP} is BF16 in A and F32 in C; " in str(
            error.value
        )
        assert "--cast" in str(error.value)
        with pytest.raises(TensorMismatchError, match="save all in one dtype"):
            align(*checkpoints, exact=True)
        assert align(*checkpoints, cast="fp32").conversion == (
            "elements stored as BF16, F32 rounded to F32"
        )


def test_a_file_that_was_started_here_is_read_by_the_library() -> None:
    values: dict[str, Any] = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.zeros(0, np.uint8),
    }
    shapes = {"a": ("F32", (2, 3)), "b": ("U8", (0,))}
    start = file_start(shapes, {"made by": "x" * 9})
    assert len(start) % 8 == 0
    later = file_start(shapes, {"made by": "y"}, num_bytes=len(start))
    assert len(later) == len(start)
    for beginning in (start, later):
        read = load(beginning + b"".join(array.tobytes() for array in values.values()))
        for name, array in values.items():
            np.testing.assert_array_equal(read[name], array)
