"""Scales of every format against torch, and everything else beside a weight refused by its name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from tests.measure.checkpoints import LLAMA, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.checkpoints.quantized import quantized_weights
from trimtab.errors import CheckpointError, TrimtabError
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import identity
from trimtab.masks.makers.weight_scores import low_magnitude_scores
from trimtab.masks.overlap import overlap
from trimtab.masks.pruning import survivors
from trimtab.masks.selection.quotas import random_matched
from trimtab.masks.structure import structure

W = "model.layers.0.self_attn.q_proj.weight"
M = W.removesuffix(".weight")
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
BLOCKS = {"quant_method": "fp8", "weight_block_size": [4, 8]}
CHANNEL = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"num_bits": 8, "strategy": "channel"}}},
}


def grouped(**weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": weights}},
    }


def with_config(quantization: Mapping[str, Any] | None) -> dict[str, Any]:
    return LLAMA if quantization is None else {**LLAMA, "quantization_config": quantization}


def powers(*shape: int) -> torch.Tensor:
    """Scales whose products with fp8 are exact in bf16."""
    generator = torch.Generator().manual_seed(1)
    return 2.0 ** torch.randint(-6, 3, shape, generator=generator).float()


def blocks(scale: torch.Tensor, rows: int, columns: int, shape: tuple[int, ...]) -> torch.Tensor:
    spread = scale.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return spread[..., : shape[-2], : shape[-1]]


SQUARE, WIDE, STACK = (8, 8), (10, 24), (3, 6, 16)
FORMATS: dict[str, tuple[tuple[int, ...], Any, torch.Tensor, str, Any]] = {
    "scalar": (WIDE, None, powers(), f"{W}_scale", lambda s: s),
    "one in a vector": (WIDE, None, powers(1), f"{W}_scale", lambda s: s),
    "per row": (WIDE, None, powers(10, 1), f"{W}_scale", lambda s: s),
    "per row, square": (SQUARE, CHANNEL, powers(8, 1), f"{W}_scale", lambda s: s),
    "per row, a vector": (WIDE, None, powers(10), f"{W}_scale", lambda s: s[:, None]),
    "per row of ModelOpt, square": (
        SQUARE,
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        powers(8),
        f"{W}_scale",
        lambda s: s[:, None],
    ),
    "fbgemm": (WIDE, {"quant_method": "fbgemm_fp8"}, powers(10, 1), f"{W}_scale", lambda s: s),
    "fine-grained": (
        WIDE,
        BLOCKS,
        powers(3, 3),
        f"{W}_scale_inv",
        lambda s: blocks(s, 4, 8, WIDE),
    ),
    "DeepSeek's own": (WIDE, BLOCKS, powers(3, 3), f"{M}.scale", lambda s: blocks(s, 4, 8, WIDE)),
    "exponents": (
        WIDE,
        BLOCKS,
        powers(3, 3).to(torch.float8_e8m0fnu),
        f"{W}_scale_inv",
        lambda s: blocks(s.float(), 4, 8, WIDE),
    ),
    "blocks of compressed-tensors": (
        WIDE,
        grouped(strategy="block", block_structure=[4, 8]),
        powers(3, 3).to(torch.bfloat16),
        f"{W}_scale",
        lambda s: blocks(s.float(), 4, 8, WIDE),
    ),
    "groups": (
        WIDE,
        grouped(strategy="group", group_size=8),
        powers(10, 3),
        f"{W}_scale",
        lambda s: blocks(s, 1, 8, WIDE),
    ),
    "blocks of ModelOpt": (
        (130, 8),
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        powers(2, 1, 1, 1),
        f"{W}_scale",
        lambda s: blocks(s[:, 0, :, 0], 128, 128, (130, 8)),
    ),
    "ComfyUI": (WIDE, None, powers(), f"{M}.scale_weight", lambda s: s),
    "Mistral": (WIDE, None, powers(), f"{M}.qscale_weight", lambda s: s),
    "stacked experts in blocks": (
        STACK,
        BLOCKS,
        powers(3, 2, 2),
        f"{EXPERTS}_scale_inv",
        lambda s: blocks(s, 4, 8, STACK),
    ),
    "stacked experts of fbgemm": (STACK, None, powers(3, 1, 16), f"{EXPERTS}_scale", lambda s: s),
    "one scale for all experts": (STACK, None, powers(1), f"{EXPERTS}_scale", lambda s: s),
}


@pytest.mark.filterwarnings("ignore:.*it is quantised:trimtab.errors.CheckpointWarning")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8])
@pytest.mark.parametrize("format", FORMATS)
def test_scales_are_multiplied_as_their_format_says(
    tmp_path: Path, format: str, dtype: torch.dtype
) -> None:
    shape, quantization, scale, scale_name, spread = FORMATS[format]
    name = EXPERTS if shape == STACK else W
    stored = torch.randint(-7, 8, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    worth = stored.float() * spread(scale)
    exact = worth.to(torch.bfloat16)
    assert torch.equal(exact.float(), worth)
    tensors = {name: stored, scale_name: scale, f"{M}.input_scale": torch.tensor(3.0)}
    quantized = save(tmp_path / "q", tensors, with_config(quantization))
    base = save(tmp_path / "base", {name: exact, f"{M}.input_scale": torch.tensor(3.0)})
    result = trimtab.compare(base, quantized, dequantize=True, cast="fp32")
    assert result.total.num_changed["value"] == 0
    assert result.coverage.is_complete
    assert [row["into"] for row in result.coverage.folded] == [name]
    # Every element that is not 0 is another one under another scale.
    tensors[scale_name] = (scale.float() * 2).to(scale.dtype)
    twice = save(tmp_path / "twice", tensors, with_config(quantization))
    result = trimtab.compare(quantized, twice, dequantize=True)
    assert result.total.num_changed["bits"] == int((worth != 0).sum())
    # As stored nothing differs, and that is said.
    result = trimtab.compare(quantized, twice)
    assert {t.name for t in result.tensors if t.counts.num_changed["bits"]} == {scale_name}
    assert result.conversion is not None
    assert "compared as stored, apart from their scales" in result.conversion
    assert "; 1 of 1 scales differ, so weights differ" in result.conversion
    for one, other in ((base, quantized), (quantized, base), (quantized, twice)):
        with pytest.raises(CheckpointError, match="mean nothing without their scales"):
            trimtab.compare(one, other, cast="bf16")


@pytest.mark.parametrize(
    ("shape", "quantization", "scale", "expected"),
    [
        (SQUARE, None, powers(8), "is neither one scale, nor one for each row or column"),
        (WIDE, None, powers(24), "is neither"),  # torch would spread it; no format does
        (WIDE, None, powers(3, 3), "is neither .* under quantization_config: none"),
        (WIDE, {"weight_block_size": [5, 8]}, powers(3, 3), "quantization_config: 5 × 8"),
        (WIDE, {"weight_block_size": "4x8"}, powers(3, 3), "quantization_config: none"),
        (WIDE, {"weight_block_size": [4, True]}, powers(3, 3), "quantization_config: none"),
        (
            WIDE,
            {
                "config_groups": {
                    "a": {"weights": {"group_size": 8}},
                    "b": {"weights": {"group_size": 10}},
                }
            },
            powers(10, 3),
            "can be read as blocks of 1 × 8 or 1 × 10",
        ),
        (WIDE, None, powers(10, 1).to(torch.int32), "stored as I32, expected scales in one of F32"),
    ],
)
def test_scales_that_could_mean_anything_else_are_refused(
    tmp_path: Path,
    shape: tuple[int, ...],
    quantization: Any,
    scale: torch.Tensor,
    expected: str,
) -> None:
    tensors = {W: torch.ones(shape).to(torch.float8_e4m3fn), f"{W}_scale": scale}
    folder = save(tmp_path / "q", tensors, with_config(quantization))
    with pytest.raises(CheckpointError, match=f"cannot dequantise {W}: .*{expected}"):
        trimtab.compare(folder, folder, dequantize=True)


FP8 = torch.ones(8, 16).to(torch.float8_e4m3fn)
STRANGE: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "zero points": (
        {W: FP8, f"{W}_scale": powers(8, 1), f"{W}_zero_point": torch.zeros(8, 1)},
        "weight_zero_point next to it changes what it is",
    ),
    "a second scale": (
        {W: FP8, f"{W}_scale": powers(8, 1), f"{W}_scale_2": powers()},
        "weight_scale_2 next to it",
    ),
    "a scale of another name": ({W: FP8, f"{M}.wscale": powers()}, "wscale next to it"),
    "group indices": (
        {W: FP8, f"{W}_scale": powers(8, 1), f"{W}_g_idx": torch.zeros(16)},
        "weight_g_idx next to it",
    ),
    "a scale of 16 bits": ({W: torch.ones(8, 16), f"{W}_scale": powers()}, "stored as F32 with"),
    "GPTQ": (
        {
            f"{M}.qweight": torch.ones(2, 16, dtype=torch.int32),
            f"{M}.qzeros": torch.ones(1, 2, dtype=torch.int32),
            f"{M}.scales": torch.ones(1, 16, dtype=torch.float16),
            f"{M}.g_idx": torch.zeros(16, dtype=torch.int32),
        },
        "packed into integers|changes what it is|stored as I32",
    ),
    "bitsandbytes, 4 bits": (
        {
            W: torch.ones(64, 1, dtype=torch.uint8),
            f"{W}.absmax": torch.ones(2, dtype=torch.uint8),
            f"{W}.quant_map": torch.ones(16),
        },
        "absmax",
    ),
    "bitsandbytes, 8 bits": (
        {W: torch.ones(8, 16, dtype=torch.int8), f"{M}.SCB": torch.ones(8)},
        "SCB",
    ),
    "NVFP4 of ModelOpt": (
        {
            W: torch.ones(8, 8, dtype=torch.uint8),
            f"{W}_scale": torch.ones(8, 1).to(torch.float8_e4m3fn),
            f"{W}_scale_2": powers(),
        },
        "weight_scale_2",
    ),
    "compressed-tensors, packed": (
        {
            f"{W}_packed": torch.ones(8, 2, dtype=torch.int32),
            f"{W}_scale": torch.ones(8, 1),
            f"{W}_shape": torch.tensor([8, 16]),
        },
        "stored as I32|weight_scale",
    ),
    "MXFP4": (
        {
            f"{EXPERTS}_blocks": torch.ones(2, 4, 1, 16, dtype=torch.uint8),
            f"{EXPERTS}_scales": torch.ones(2, 4, 1, dtype=torch.uint8),
        },
        "stored as U8",
    ),
    "quanto": (
        {f"{W}._data": torch.ones(8, 16, dtype=torch.int8), f"{W}._scale": torch.ones(8, 1)},
        "_scale",
    ),
    "EETQ": ({W: torch.ones(8, 16, dtype=torch.int8), f"{M}.weight_scales": torch.ones(8)}, ""),
}


@pytest.mark.filterwarnings("ignore:.*it is quantised:trimtab.errors.CheckpointWarning")
@pytest.mark.parametrize("format", STRANGE)
def test_what_is_not_understood_is_refused_by_name(tmp_path: Path, format: str) -> None:
    tensors, expected = STRANGE[format]
    folder = save(tmp_path / "q", tensors | {"model.norm.weight": torch.ones(8)})
    with pytest.raises(CheckpointError, match=f"cannot dequantise (.|\n)*({expected})"):
        trimtab.compare(folder, folder, dequantize=True)
    with pytest.raises(CheckpointError, match="mean nothing without their scales"):
        trimtab.compare(folder, folder, cast="fp32")
    stored = trimtab.compare(folder, folder)
    assert stored.conversion is not None
    assert "compared as stored" in stored.conversion
    mask = extract_mask(folder, folder)
    assert "compared as stored" in str(mask.provenance["steps"][0]["conversion"])
    with open_checkpoint(folder) as checkpoint:
        assert quantized_weights(checkpoint.tensors, checkpoint.config)
        for make in (
            lambda: low_magnitude_scores(checkpoint),
            lambda: overlap(mask, mask, base=checkpoint),
            lambda: structure(mask, base=checkpoint),
            lambda: survivors(checkpoint),
            lambda: random_matched(mask, checkpoint, seed=0),
        ):
            with pytest.raises(TrimtabError, match=r"is quantised|cannot dequantise"):
                make()


def test_plain_fp8_and_buffers_of_integers_are_what_they_are(tmp_path: Path) -> None:
    tensors = {
        W: FP8,
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "embeddings.position_ids": torch.arange(9),
        "model.logit_scale": torch.tensor(1.0),
    }
    folder = save(tmp_path / "plain", tensors)
    assert trimtab.compare(folder, folder).conversion is None
    assert trimtab.compare(folder, folder, cast="bf16", dequantize=True).coverage.is_complete
    message = save(tmp_path / "said", tensors, with_config({"quant_method": "fp8"}))
    with pytest.raises(CheckpointError, match="without scales that are known"):
        trimtab.compare(message, message, cast="bf16")


def test_the_config_of_modelopt_may_be_in_its_own_file(tmp_path: Path) -> None:
    tensors = {W: torch.ones(SQUARE).to(torch.float8_e4m3fn), f"{W}_scale": powers(8)}
    folder = save(tmp_path / "q", tensors)
    with pytest.raises(CheckpointError, match="is neither"):
        trimtab.compare(folder, folder, dequantize=True)
    result = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8_PER_CHANNEL_…"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(result))
    assert trimtab.compare(folder, folder, dequantize=True).coverage.is_complete


def test_every_verb_says_that_scales_differ(tmp_path: Path) -> None:
    tensors = {W: FP8, f"{W}_scale": powers(8, 1)}
    base = save(tmp_path / "0", tensors)
    same = save(tmp_path / "checkpoint-1", tensors)
    twice = save(tmp_path / "checkpoint-2", tensors | {f"{W}_scale": powers(8, 1) * 2})
    text = "1 of 1 scales differ, so weights differ whose elements are the same"
    mask = extract_mask(base, twice)
    assert text in mask.provenance["steps"][0]["conversion"]
    assert text in str(trimtab.trajectory(base, [same, twice]).conversion)
    assert text not in str(trimtab.trajectory(base, [same]).conversion)
    assert text in str(identity(base, same, twice, mask).conversion)
    assert text in str(identity(base, twice, twice, mask).conversion)
    assert text not in str(identity(base, same, same, mask).conversion)
    real = trimtab.trajectory(base, [same, twice], dequantize=True)
    assert real.points[1].total.changed == FP8.numel()
