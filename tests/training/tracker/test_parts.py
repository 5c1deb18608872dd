"""What is counted together, and in which dtype."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.train

import torch  # noqa: E402
from torch import nn  # noqa: E402

from trimtab.errors import OptimizerError, SettingsError  # noqa: E402
from trimtab.training.layout import Layout  # noqa: E402
from trimtab.training.tracker.parts import (  # noqa: E402
    find_parts,
    fitting_dtypes,
    parse_stored_dtype,
    stored_name,
    tracked_parameters,
)

GPT2 = {"model_type": "gpt2", "n_embd": 4, "n_head": 2}
PHI3 = {
    "model_type": "phi3",
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def parts_of(name: str, shape: tuple[int, ...], config: dict[str, Any]) -> dict[str, list[float]]:
    """Kind and name of each part -> its elements, of a tensor that counts from 0."""
    tensor = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)
    parameters = {name: tensor}
    found = find_parts(parameters, Layout.of_pairs(parameters.items(), None), "F32", config)
    return {f"{part.kind} {part.name}": part.of(tensor).tolist() for part in found}


def test_a_tensor_is_one_part() -> None:
    assert parts_of("model.layers.0.self_attn.q_proj.weight", (2, 3), {}) == {
        "q_proj model.layers.0.self_attn.q_proj.weight": [0, 1, 2, 3, 4, 5]
    }


def test_rows_of_a_fused_tensor() -> None:
    name = "model.layers.0.self_attn.qkv_proj.weight"
    found = parts_of(name, (16, 8), PHI3)
    assert found == {
        f"q_proj {name}[q]": list(range(64)),
        f"k_proj {name}[k]": list(range(64, 96)),
        f"v_proj {name}[v]": list(range(96, 128)),
    }


def test_columns_of_a_fused_tensor() -> None:
    name = "transformer.h.0.attn.c_attn.weight"
    tensor = torch.arange(48.0).reshape(4, 12)
    found = parts_of(name, (4, 12), GPT2)
    assert found == {
        f"{kind}_proj {name}[{kind}]": tensor[:, start : start + 4].flatten().tolist()
        for kind, start in (("q", 0), ("k", 4), ("v", 8))
    }


def test_a_fused_bias() -> None:
    name = "transformer.h.0.attn.c_attn.bias"
    found = parts_of(name, (12,), GPT2)
    assert [one.split()[0] for one in found] == ["bias"] * 3
    assert [one for values in found.values() for one in values] == list(range(12))


def test_the_dtype_of_the_base_is_told_by_its_weights() -> None:
    weights = torch.tensor([1.0, 1 + 2**-7])
    assert fitting_dtypes({"a": weights}) == {"BF16", "F16"}
    assert fitting_dtypes({"a": weights, "b": torch.tensor([1 + 2**-10])}) == {"F16"}
    assert fitting_dtypes({"a": weights, "b": torch.tensor([2.0**100])}) == {"BF16"}
    assert fitting_dtypes({"a": torch.tensor([1 / 3])}) == set()
    assert fitting_dtypes({"a": weights, "b": torch.tensor([1 + 2**-7], dtype=torch.float16)}) == {
        "BF16",
        "F16",
    }


def test_only_fp32_weights_are_compared_in_another_dtype() -> None:
    half = torch.ones(2, dtype=torch.float16)
    assert stored_name(half, "BF16") == "F16"
    assert stored_name(torch.ones(2), "BF16") == "BF16"


@pytest.mark.parametrize("text", ["bf16", "BF16", "bfloat16", "BFloat16"])
def test_spellings(text: str) -> None:
    assert parse_stored_dtype(text) == "BF16"
    with pytest.raises(SettingsError, match="not 'f8'"):
        parse_stored_dtype("f8")


def test_names_are_those_of_a_checkpoint() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = nn.Linear(2, 2, bias=False)

    assert list(tracked_parameters(Wrapped())) == ["weight"]
    wrapped = nn.ModuleDict({"module": nn.Linear(2, 2)})
    with pytest.raises(OptimizerError, match="DistributedDataParallel"):
        tracked_parameters(wrapped)
