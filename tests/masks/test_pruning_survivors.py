"""The mask of what is not zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash

from tests.checkpoints.building import entry, file_bytes, random_bits, tensors_bytes
from trimtab.elements.dtypes import DTYPES
from trimtab.masks.pruning import is_zero, survivors


@pytest.mark.parametrize("name", DTYPES)
def test_zero_is_what_decodes_to_zero(name: str) -> None:
    dtype = DTYPES[name]
    if dtype.num_bytes <= 2:
        bits = np.arange(1 << 8 * dtype.num_bytes).astype(dtype.bits)
        if name == "BOOL":
            bits = bits[:2]
    else:
        top = 1 << (8 * dtype.num_bytes - 1)
        bits = np.array([0, 1, top - 1, top, top + 1, 2 * top - 1], dtype=dtype.bits)
    assert np.array_equal(is_zero(bits, dtype), dtype.decode(bits) == 0)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_of_a_checkpoint(tmp_path: Path, dtype: type) -> None:
    arrays: dict[str, np.ndarray] = {
        "a.weight": random_bits((300, 7)).astype(dtype),
        "b": random_bits((5,), 1).astype(dtype),
    }
    sign = dtype(1) << dtype(8 * np.dtype(dtype).itemsize - 1)
    for array in arrays.values():
        array[array == 0] = 1
        array[array == sign] = 1
    arrays["a.weight"][3, 2:5] = (0, sign, 0)
    arrays["b"][4] = sign
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes(arrays))
    mask = survivors(path)
    expected = {name: np.ones(array.shape, np.bool_) for name, array in arrays.items()}
    expected["a.weight"][3, 2:5] = expected["b"][4] = False
    assert mask.names == tuple(arrays)
    for name, array in arrays.items():
        assert np.array_equal(mask.array(name), expected[name])
        assert mask.base[name].digest == xxhash.xxh3_128_hexdigest(array.tobytes())
    (step,) = mask.provenance["steps"]
    assert (step["step"], step["checkpoint"]["id"]) == ("survivors", str(path))


def test_a_tied_head_that_is_stored_is_in_the_mask_once(tmp_path: Path) -> None:
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    bits = random_bits((4, 3))
    path = tmp_path / "model.safetensors"
    path.write_bytes(tensors_bytes({embedding: bits, head: bits}))
    mask = survivors(path)
    assert mask.names == (embedding,)
    assert mask.provenance["steps"][0]["tied"] == [{"name": head, "tied_to": embedding}]
    path.write_bytes(tensors_bytes({embedding: bits, head: bits ^ 1}))
    assert survivors(path).names == (embedding, head)


def test_nothing_survives_and_nothing_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = {"z": entry("BF16", [3], 0, 6), "none": entry("F32", [0, 4], 6, 6)}
    path.write_bytes(file_bytes(header, b"\0" * 6))
    mask = survivors(path)
    assert (mask.num_selected(), mask.num_elements()) == (0, 3)
