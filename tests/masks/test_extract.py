"""`extract_mask` on real files, against torch on the same tensors."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import trimtab
from tests.measure.checkpoints import LLAMA, Tensors, llama_tensors, moved, save, save_sharded
from trimtab.checkpoints import stream
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.criteria import changed, parse_criterion
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import CheckpointError, CriterionError, TensorMismatchError
from trimtab.masks import extract
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask

EMBED = "model.embed_tokens.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def extracted(folder: Path, base: Tensors, tuned: Tensors, **options: Any) -> Mask:
    """The mask between two checkpoints that are written first."""
    return extract_mask(save(folder / "base", base), save(folder / "tuned", tuned), **options)


def step_of(mask: Mask) -> dict[str, Any]:
    """The one step of an extracted mask."""
    (step,) = mask.provenance["steps"]
    return dict(step)


def assert_marks(mask: Mask, base: Tensors, tuned: Tensors) -> None:
    """The mask is `base != tuned` in bits, for all tensors of base."""
    assert set(mask) == set(base)
    for name, before in base.items():
        width = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[before.element_size()]
        expected = before.view(width) != tuned[name].view(width)
        np.testing.assert_array_equal(mask.array(name), expected.numpy())


@pytest.mark.parametrize("chunk_elements", [1 << 19, 64, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_selects_what_torch_says_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_elements: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    base = llama_tensors()
    base["odd"] = torch.randn(5, 7)  # chunks end between its rows, and its last byte is not full
    base["scalar"] = torch.tensor(1.0)
    base["nothing"] = torch.zeros(0, 3)
    tuned = {name: tensor.to(dtype) for name, tensor in moved(base).items()}
    base = {name: tensor.to(dtype) for name, tensor in base.items()}
    mask = extracted(tmp_path, base, tuned)
    assert_marks(mask, base, tuned)
    assert 0 < mask.num_selected() < mask.num_elements()


@pytest.mark.parametrize(
    "criterion", ["bits", "value", "atol=1e-3", "strict_atol=1e-3", "rel=0.01"]
)
def test_agrees_with_the_comparison(tmp_path: Path, criterion: str) -> None:
    base, tuned = llama_tensors(), moved(llama_tensors())
    base[EMBED][0, :3] = torch.tensor([float("nan"), 0.0, float("inf")])
    tuned[EMBED][0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
    mask = extracted(tmp_path, base, tuned, changed=criterion)
    result = trimtab.compare(tmp_path / "base", tmp_path / "tuned", changed=criterion)
    for tensor in result.tensors:
        assert mask.num_selected(tensor.name) == tensor.counts.num_changed[result.criterion]
    assert step_of(mask)["criterion"] == result.criterion


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F8_E4M3", "I32", "BOOL", "F8_E8M0"])
@pytest.mark.parametrize("criterion", ["bits", "value", "atol=0", "atol=1e-3", "rel=0.01"])
@given(data=st.data())
def test_the_short_cut_is_the_definition(dtype: str, criterion: str, data: st.DataObject) -> None:
    kind = DTYPES[dtype]
    raw = st.binary(min_size=12 * kind.num_bytes, max_size=12 * kind.num_bytes)
    base, other = (np.frombuffer(data.draw(raw), kind.bits) for _ in range(2))
    if dtype == "BOOL":
        base, other = base & 1, other & 1
    moved = data.draw(st.integers(0, 2**12 - 1))
    tuned = np.where(moved >> np.arange(12) & 1, other, base)
    rule = parse_criterion(criterion)
    np.testing.assert_array_equal(
        extract._changed(base, tuned, kind, rule), changed(base, tuned, kind, rule)
    )


def test_knows_what_it_was_made_against(tmp_path: Path) -> None:
    base, tuned = llama_tensors(), moved(llama_tensors())
    mask = extracted(tmp_path, base, tuned)
    for name, tensor in base.items():
        raw = tensor.view(torch.int16).numpy().tobytes()
        assert mask.base[name] == ("BF16", xxhash.xxh3_128_hexdigest(raw))
    result = trimtab.compare(tmp_path / "base", tmp_path / "tuned")
    assert step_of(mask) == {
        "step": "extract",
        "criterion": "bits",
        "conversion": None,
        "base": result.base.to_dict(),
        "tuned": result.tuned.to_dict(),
        **{gap: [] for gap in ("tied", "missing", "extra", "shape_mismatch", "renamed")},
    }
    assert mask.provenance["trimtab_version"] == trimtab.__version__
    mask.check(
        {name: tuple(tensor.shape) for name, tensor in base.items()},
        {name: item.digest for name, item in mask.base.items()},
    )


def test_threads_and_shards_do_not_matter(tmp_path: Path) -> None:
    base, tuned = llama_tensors(), moved(llama_tensors())
    mask = extracted(tmp_path, base, tuned, threads=1)
    assert extract_mask(tmp_path / "base", tmp_path / "tuned", threads=4) == mask
    sharded = save_sharded(tmp_path / "sharded", tuned, 3)
    with open_checkpoint(tmp_path / "base") as opened:
        assert extract_mask(opened, sharded) == mask
        opened.tensors[EMBED].read()  # what was open stays open


def test_equal_checkpoints_give_an_empty_mask(tmp_path: Path) -> None:
    base = llama_tensors()
    mask = extracted(tmp_path, base, base)
    assert set(mask) == set(base)
    assert mask.num_selected() == 0
    mask.save(tmp_path / "m.safetensors")
    assert Mask.load(tmp_path / "m.safetensors") == mask


def test_tensors_on_one_side_only_are_listed(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    base["only.base"], tuned["only.tuned"] = torch.zeros(3), torch.zeros(4)
    base["other.shape"], tuned["other.shape"] = torch.zeros(3), torch.zeros(4)
    mask = extracted(tmp_path, base, tuned)
    assert set(mask) == set(llama_tensors())
    step = step_of(mask)
    assert step["missing"] == [{"name": "only.base", "shape": [3], "dtype": "F32"}]
    assert step["extra"] == [{"name": "only.tuned", "shape": [4], "dtype": "F32"}]
    assert step["shape_mismatch"] == [
        {"name": "other.shape", "base_shape": [3], "tuned_shape": [4], "num_compared": 0}
    ]
    result = trimtab.compare(tmp_path / "base", tmp_path / "tuned")
    assert step["base"]["content_hash"] == result.base.content_hash


@pytest.mark.parametrize(("rows", "num_common"), [(44, 40), (37, 37)])
def test_a_resized_vocabulary(tmp_path: Path, rows: int, num_common: int) -> None:
    base, tuned = llama_tensors(), moved(llama_tensors(vocab=rows))
    tuned[EMBED][:num_common] = moved(base)[EMBED][:num_common]
    mask = extracted(tmp_path, base, tuned)
    expected = np.zeros((40, 32), dtype=np.bool_)
    expected[:num_common] = (base[EMBED][:num_common] != tuned[EMBED][:num_common]).numpy()
    np.testing.assert_array_equal(mask.array(EMBED), expected)
    assert step_of(mask)["shape_mismatch"] == [
        {
            "name": EMBED,
            "base_shape": [40, 32],
            "tuned_shape": [rows, 32],
            "num_compared": num_common * 32,
        }
    ]
    raw = base[EMBED].view(torch.int16).numpy().tobytes()
    assert mask.base[EMBED].digest == xxhash.xxh3_128_hexdigest(raw)  # of the whole tensor


@pytest.mark.parametrize("stored_in", [("base",), ("tuned",), ("base", "tuned")])
def test_a_tied_copy_is_in_the_mask_once(tmp_path: Path, stored_in: tuple[str, ...]) -> None:
    sides = {"base": llama_tensors(), "tuned": moved(llama_tensors())}
    for side in stored_in:
        sides[side]["lm_head.weight"] = sides[side][EMBED].clone()
    mask = extracted(tmp_path, **sides)
    assert "lm_head.weight" not in mask
    assert step_of(mask)["tied"] == [{"name": "lm_head.weight", "tied_to": EMBED}]
    assert mask.num_selected(EMBED) == (sides["base"][EMBED] != sides["tuned"][EMBED]).sum()


def test_a_head_that_came_apart_is_a_tensor(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = moved(base)
    tuned["lm_head.weight"] = moved(base, seed=5)[EMBED]
    mask = extracted(tmp_path, base, tuned)
    expected = (base[EMBED] != tuned["lm_head.weight"]).numpy()
    np.testing.assert_array_equal(mask.array("lm_head.weight"), expected)
    assert step_of(mask)["tied"] == []


def test_renamed_tensors_have_the_name_of_base(tmp_path: Path) -> None:
    base = llama_tensors()
    tuned = {f"module.{name}": tensor for name, tensor in moved(base).items()}
    mask = extracted(tmp_path, base, tuned)
    assert_marks(mask, base, moved(base))
    assert {"base": Q_PROJ, "tuned": f"module.{Q_PROJ}"} in step_of(mask)["renamed"]


def test_block_scales_are_told_of(tmp_path: Path) -> None:
    base = {
        Q_PROJ: torch.randn(8, 8).to(torch.float8_e4m3fn),
        f"{Q_PROJ}_scale_inv": torch.ones(2, 2),
    }
    tuned = {**base, f"{Q_PROJ}_scale_inv": torch.full((2, 2), 2.0)}
    mask = extracted(tmp_path, base, tuned)
    assert mask.num_selected(Q_PROJ) == 0  # as stored
    assert mask.num_selected(f"{Q_PROJ}_scale_inv") == 4
    assert "as stored, apart from their scales" in step_of(mask)["conversion"]
    assert "1 of 1 scales differ" in step_of(mask)["conversion"]


@pytest.mark.parametrize("chunk_elements", [1 << 19, 21, 4])
def test_scaled_weights_are_compared_by_what_they_are_worth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_elements: int
) -> None:
    """Rows of 7 and chunks of 4, 21 or all elements: none of them ends at a byte of the mask."""
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk_elements)
    weight = torch.randn(5, 7).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0], [2.0], [0.5], [1.0], [4.0]])
    exact = (weight.float() * scale).to(torch.bfloat16)
    base = exact.clone()
    base[1, 3] = base[4, 6] = 77.0
    mask = extracted(
        tmp_path,
        {Q_PROJ: base},
        {Q_PROJ: weight, f"{Q_PROJ}_scale": scale},
        cast="bf16",
        dequantize=True,
    )
    np.testing.assert_array_equal(mask.array(Q_PROJ), (base != exact).numpy())
    assert mask.num_selected() == 2


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    base = save(tmp_path / "base", llama_tensors())
    wide = save(tmp_path / "wide", llama_tensors(dtype=torch.float32))
    with pytest.raises(TensorMismatchError, match="different dtypes"):
        extract_mask(base, wide)
    with pytest.raises(CriterionError, match="unknown criterion 'exact'"):
        extract_mask(base, base, changed="exact")
    with pytest.raises(CheckpointError):
        extract_mask(base, tmp_path / "none")


def test_a_file_cut_short_ends_the_run(tmp_path: Path) -> None:
    base = save(tmp_path / "base", llama_tensors(), LLAMA)
    tuned = save(tmp_path / "tuned", moved(llama_tensors()), LLAMA)
    weights = tuned / "model.safetensors"
    with open_checkpoint(tuned) as opened:
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match=r"changed while|was cut short"):
            extract_mask(base, opened)
    assert not [t for t in threading.enumerate() if t.name.startswith("trimtab-mask")]


def test_progress_adds_up(tmp_path: Path) -> None:
    base, tuned = llama_tensors(), moved(llama_tensors())
    base["only.base"] = torch.zeros(3)
    calls: list[tuple[int, int]] = []
    extracted(tmp_path, base, tuned, progress=lambda *result: calls.append(result))
    total = 2 * (2 * sum(tensor.numel() for tensor in tuned.values())) + 12
    assert {one for _, one in calls} == {total}
    assert sum(done for done, _ in calls) == total
