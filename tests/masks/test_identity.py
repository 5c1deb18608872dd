"""`identity` on real files, against NumPy on the same tensors and the same mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.masks.conftest import Three, bits_of, saved, within
from tests.measure.checkpoints import LLAMA, llama_tensors, moved, save, save_sharded
from trimtab.checkpoints import stream
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements import fast
from trimtab.elements.criteria import DEFAULT_CRITERIA, changed
from trimtab.elements.dtypes import DTYPES
from trimtab.elements.three_way import Agreement, SplitAgreement
from trimtab.errors import (
    CheckpointError,
    MaskMismatchError,
    TensorMismatchError,
)
from trimtab.masks.extract import extract_mask
from trimtab.masks.identity import Identity, identity
from trimtab.masks.mask import Mask

BF16 = DTYPES["BF16"]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def assert_counts(
    found: Agreement, base: NDArray[Any], full: NDArray[Any], sub: NDArray[Any]
) -> None:
    """Set an agreement beside what NumPy counts on the elements of its region."""
    before, by_full, by_sub = (BF16.decode(bits) for bits in (base, full, sub))
    assert found.num_elements == base.size
    for criterion in DEFAULT_CRITERIA:
        key = criterion.key
        equal = np.count_nonzero(~changed(full, sub, BF16, criterion))
        assert found.num_sub_equal[key] == equal
        assert found.num_base_equal[key] == np.count_nonzero(~changed(full, base, BF16, criterion))
    assert found.num_sub_moved == np.count_nonzero(base != sub)
    assert found.num_full_moved == np.count_nonzero(base != full)
    distance, size = np.linalg.norm(by_sub - by_full), np.linalg.norm(by_full - before)
    assert found.difference_max_abs == np.abs(by_sub - by_full).max(initial=0)
    assert found.full_update_max_abs == np.abs(by_full - before).max(initial=0)
    if size == 0:
        assert found.relative_l2 is None
    else:
        assert found.relative_l2 == pytest.approx(distance / size, rel=1e-12)
    norms = size * np.linalg.norm(by_sub - before)
    if norms == 0:
        assert found.cosine is None
    else:
        dot = np.vdot(by_sub - before, by_full - before)
        assert found.cosine == pytest.approx(dot / norms, rel=1e-9)


def region(three: Three, names: list[str], side: str) -> list[NDArray[Any]]:
    """The elements of some tensors in one region, in base, full and sub."""
    return [
        np.concatenate(
            [
                bits_of(tensors[name])[
                    three.mask.array(name) == (side == "inside")
                    if name in three.mask and side != "all"
                    else np.full(tensors[name].shape, side != "inside")
                ].ravel()
                for name in names
            ]
        )
        for tensors in (three.base, three.full, three.sub)
    ]


def test_counts_equal_numpy(three: Three, tmp_path: Path) -> None:
    result = identity(*saved(three, tmp_path), three.mask)
    assert {tensor.name for tensor in result.tensors} == set(three.base)
    groups: list[tuple[SplitAgreement, list[str]]] = [
        (tensor.agreement, [tensor.name]) for tensor in result.tensors
    ]
    kinds: dict[str, list[str]] = {}
    layers: dict[int | None, list[str]] = {}
    for tensor in result.tensors:
        kinds.setdefault(tensor.kind, []).append(tensor.name)
        layers.setdefault(tensor.layer, []).append(tensor.name)
    by_kind, by_layer = result.by_kind(), result.by_layer()
    assert list(by_layer) == [0, 1, None]
    groups += [(by_kind[kind], names) for kind, names in kinds.items()]
    groups += [(by_layer[layer], names) for layer, names in layers.items()]
    groups += [(result.total, list(three.base))]
    for split, names in groups:
        assert_counts(split.inside, *region(three, names, "inside"))
        assert_counts(split.outside, *region(three, names, "outside"))
        assert_counts(split.all, *region(three, names, "all"))


def test_the_change_mask_of_full(three: Three, tmp_path: Path) -> None:
    """Outside, the match holds by construction; inside, doing nothing scores nothing."""
    result = identity(*saved(three, tmp_path), three.mask)
    total = result.total
    assert result.sub_stayed_outside
    assert result.full_stayed_outside
    assert total.outside.num_sub_equal["bits"] == total.outside.num_elements
    assert total.inside.num_elements == three.mask.num_selected()
    assert total.inside.num_base_equal["bits"] == 0
    assert 0 < total.inside.num_sub_equal["bits"] < total.inside.num_elements
    assert result.mask.num_checked == len(three.base)
    assert result.coverage.is_complete
    assert (total.outside.relative_l2, total.outside.cosine) == (None, None)
    assert total.inside.relative_l2 == total.all.relative_l2


def test_a_sub_that_moved_outside_is_counted(three: Three, tmp_path: Path) -> None:
    outside = np.argwhere(~three.mask.array(Q_PROJ))[:7]
    for row, column in outside:
        three.sub[Q_PROJ][row, column] += 1
    result = identity(*saved(three, tmp_path), three.mask)
    assert not result.sub_stayed_outside
    assert result.full_stayed_outside
    assert result.total.outside.num_sub_moved == len(outside)
    assert result.by_kind()["q_proj"].outside.num_sub_moved == len(outside)


def test_a_mask_that_lacks_some_of_what_full_changed(three: Three, tmp_path: Path) -> None:
    smaller = three.mask.random_like(seed=0)
    three = Three(three.base, three.full, within(smaller, three.base, three.full), smaller)
    result = identity(*saved(three, tmp_path), smaller)
    outside = result.total.outside
    assert result.sub_stayed_outside
    assert not result.full_stayed_outside
    assert outside.num_full_moved > 0
    assert outside.num_sub_equal == outside.num_base_equal
    assert result.total.inside.num_sub_equal["bits"] == result.total.inside.num_elements


def test_full_against_itself_and_base_against_itself(three: Three, tmp_path: Path) -> None:
    base, full, _ = saved(three, tmp_path)
    same = identity(base, full, full, three.mask).total.inside
    assert (same.relative_l2, same.cosine, same.difference_max_abs) == (0.0, 1.0, 0.0)
    assert same.num_sub_equal["bits"] == same.num_elements
    nothing = identity(base, full, base, three.mask).total.inside
    assert (nothing.relative_l2, nothing.cosine) == (1.0, None)
    assert nothing.num_sub_equal == nothing.num_base_equal
    still = identity(base, base, base, three.mask).total.all
    assert (still.relative_l2, still.cosine, still.num_full_moved) == (None, None, 0)


def test_an_empty_mask_and_a_full_one(three: Three, tmp_path: Path) -> None:
    paths = saved(three, tmp_path)
    nothing = Mask.from_arrays({n: np.zeros(t.shape, bool) for n, t in three.base.items()})
    everything = nothing.complement()
    result = identity(*paths, nothing)
    assert result.total.inside.num_elements == 0
    assert_counts(result.total.outside, *region(three, list(three.base), "all"))
    result = identity(*paths, everything)
    assert result.total.outside.num_elements == 0
    assert_counts(result.total.inside, *region(three, list(three.base), "all"))


def test_a_tensor_that_is_not_in_the_mask_is_outside(three: Three, tmp_path: Path) -> None:
    arrays = {name: three.mask.array(name) for name in three.mask if name != Q_PROJ}
    three = three._replace(mask=Mask.from_arrays(arrays))
    result = identity(*saved(three, tmp_path), three.mask)
    (row,) = result.coverage.not_in_mask
    assert row == {"name": Q_PROJ, "num_elements": 1024}
    (tensor,) = [tensor for tensor in result.tensors if tensor.name == Q_PROJ]
    assert tensor.agreement.inside.num_elements == 0
    assert_counts(tensor.agreement.outside, *region(three, [Q_PROJ], "outside"))
    assert not result.sub_stayed_outside
    assert result.mask.num_checked == 0


def test_the_mask_may_be_a_file_and_checkpoints_open(three: Three, tmp_path: Path) -> None:
    paths = saved(three, tmp_path)
    three.mask.save(tmp_path / "m.safetensors")
    from_file = identity(*paths, tmp_path / "m.safetensors")
    assert from_file.mask.id == str(tmp_path / "m.safetensors")
    assert from_file.mask.digest == three.mask.digest
    with open_checkpoint(paths[0]) as b, open_checkpoint(paths[1]) as f:
        opened = identity(b, f, paths[2], three.mask)
        assert b.tensors[Q_PROJ].read().size == 1024  # what the caller opened stays open
    assert opened.mask.id is None
    assert stable(opened)["tensors"] == stable(from_file)["tensors"]


def test_an_extracted_mask_fits(three: Three, tmp_path: Path) -> None:
    paths = saved(three, tmp_path)
    extracted = extract_mask(paths[0], paths[1])
    assert extracted == three.mask
    result = identity(*paths, extracted)
    assert result.full_stayed_outside
    assert result.mask.num_checked == len(three.base)


def stable(result: Identity) -> dict[str, Any]:
    """Everything but what may differ between two runs on the same tensors."""
    data = result.to_dict()
    for key in ("date", "threads"):
        data["provenance"].pop(key)
    for side in ("base", "full", "sub", "mask"):
        data["provenance"][side].pop("id")
    return data


@pytest.mark.parametrize("chunk", [7, 64, 200])
def test_chunks_threads_and_scanner_do_not_matter(
    three: Three, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Chunks of 7 elements start within a byte of the mask."""
    paths = saved(three, tmp_path)
    whole = identity(*paths, three.mask, threads=1)
    assert stable(identity(*paths, three.mask, threads=3)) == stable(whole)
    monkeypatch.setattr(stream, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(fast, "COMPILED_FROM", 0)
    pieces = identity(*paths, three.mask)
    assert_close(stable(pieces), stable(whole))


def assert_close(left: Any, right: Any) -> None:
    """Equal, but for the last digits of sums that were added in another order."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_close(left[key], right[key])
    elif isinstance(left, list):
        for one, other in zip(left, right, strict=True):
            assert_close(one, other)
    elif isinstance(left, float):
        assert left == pytest.approx(right, rel=1e-12, abs=1e-18)
    else:
        assert left == right


def test_shards_do_not_matter(three: Three, tmp_path: Path) -> None:
    paths = saved(three, tmp_path)
    sharded = save_sharded(tmp_path / "sharded", three.sub, 3)
    left, right = (
        stable(identity(paths[0], paths[1], sub, three.mask)) for sub in (paths[2], sharded)
    )
    assert left == right


def test_progress_ends_at_the_total(three: Three, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    paths = saved(three, tmp_path)
    three.sub["only.sub"] = torch.zeros(3)
    sub = save(tmp_path / "more", three.sub)
    identity(
        paths[0], paths[1], sub, three.mask, progress=lambda done, total: seen.append((done, total))
    )
    assert {sum(done for done, _ in seen)} == {total for _, total in seen}


def test_fused_tensors_are_split(tmp_path: Path) -> None:
    config = {**LLAMA, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn((64, 32), generator=generator).bfloat16()}
    full, sub = moved(base), moved(base, seed=5)
    mask = Mask.from_arrays({name: np.random.default_rng(0).random((64, 32)) < 0.3})
    three = Three(base, full, sub, mask)
    result = identity(*saved(three, tmp_path, config), mask)
    rows = {"q": slice(0, 32), "k": slice(32, 48), "v": slice(48, 64)}
    assert [tensor.name for tensor in result.tensors] == [f"{name}[{part}]" for part in rows]
    for tensor, (part, taken) in zip(result.tensors, rows.items(), strict=True):
        assert (tensor.kind, tensor.layer) == (f"{part}_proj", 0)
        assert tensor.shape == (taken.stop - taken.start, 32)
        inside = mask.array(name)[taken]
        elements = [bits_of(t[name])[taken] for t in three[:3]]
        assert_counts(tensor.agreement.inside, *(bits[inside] for bits in elements))
        assert_counts(tensor.agreement.outside, *(bits[~inside] for bits in elements))


def test_what_is_not_in_all_three_is_listed(three: Three, tmp_path: Path) -> None:
    three.base["only.base"] = torch.zeros(2, 3, dtype=torch.bfloat16)
    for tensors in (three.base, three.full):
        tensors["two.of.three"] = torch.zeros(4, dtype=torch.bfloat16)
    for tensors, width in zip(three[:3], (2, 2, 3), strict=True):
        tensors["reshaped"] = torch.ones(width, dtype=torch.bfloat16)
    arrays = {name: three.mask.array(name) for name in three.mask}
    mask = Mask.from_arrays({**arrays, "reshaped": np.array([True, False])})
    result = identity(*saved(three, tmp_path), mask)
    coverage = result.coverage
    rows = {row["name"]: row for row in coverage.not_compared}
    shapes = ("base_shape", "full_shape", "sub_shape")
    assert {name: [row[shape] for shape in shapes] for name, row in rows.items()} == {
        "only.base": [[2, 3], None, None],
        "two.of.three": [[4], [4], None],
        "reshaped": [[2], [2], [3]],
    }
    assert {name: row["num_selected"] for name, row in rows.items()} == {
        "only.base": 0,
        "two.of.three": 0,
        "reshaped": 1,
    }
    num_compared = sum(tensor.numel() for tensor in llama_tensors().values())
    assert coverage.num_compared == num_compared == result.total.all.num_elements
    assert coverage.num_base == num_compared + 12
    assert coverage.num_full == num_compared + 6
    assert coverage.num_sub == num_compared + 3
    assert not coverage.is_complete


def test_a_stored_copy_of_tied_embeddings_counts_once(three: Three, tmp_path: Path) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    plain = identity(*saved(three, tmp_path / "plain"), three.mask)
    for place, sides in enumerate(((0, 1, 2), (2,), (0, 2), (1,))):
        base, full, sub = (
            {**tensors, head: tensors[embed].clone()} if side in sides else tensors
            for side, tensors in enumerate(three[:3])
        )
        copies = Three(base, full, sub, three.mask)
        result = identity(*saved(copies, tmp_path / str(place)), three.mask)
        assert result.to_dict()["total"] == plain.to_dict()["total"]
        assert result.coverage.tied == ({"name": head, "tied_to": embed, "num_elements": 1280},), (
            sides
        )
        assert result.coverage.is_complete


def test_a_head_that_sub_untied_is_compared(three: Three, tmp_path: Path) -> None:
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    three.sub[head] = three.sub[embed] + 1
    result = identity(*saved(three, tmp_path), three.mask)
    (tensor,) = [tensor for tensor in result.tensors if tensor.name == head]
    assert_counts(
        tensor.agreement.outside,
        *(bits_of(t) for t in (three.base[embed], three.full[embed], three.sub[head])),
    )
    assert not result.coverage.tied


def test_names_with_a_wrapper_are_matched(three: Three, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in three.sub.items()}
    paths = saved(three, tmp_path)
    result = identity(*paths[:2], save(tmp_path / "wrapped", wrapped), three.mask)
    assert result.to_dict()["total"] == identity(*paths, three.mask).to_dict()["total"]
    assert result.coverage.renamed[0]["sub"] == f"module.{result.coverage.renamed[0]['base']}"
    assert result.coverage.renamed[0]["full"] == result.coverage.renamed[0]["base"]
    assert len(result.coverage.renamed) == len(three.base)


def test_a_mask_of_another_model_is_refused(three: Three, tmp_path: Path) -> None:
    mask = Mask.from_arrays(
        {"not.there": np.ones(3, dtype=bool), Q_PROJ: np.ones((32, 31), dtype=bool)}
    )
    with pytest.raises(MaskMismatchError, match=r"not\.there.*q_proj"):
        identity(*saved(three, tmp_path), mask)


def test_a_mask_made_against_another_base_is_refused(three: Three, tmp_path: Path) -> None:
    base, full, sub = saved(three, tmp_path)
    other = dict(three.base)
    changed_names = sorted(other)[:2]
    for name in changed_names:
        other[name] = other[name] * 2
    with pytest.raises(MaskMismatchError, match=f"{changed_names[0]}.*{changed_names[1]}"):
        identity(save(tmp_path / "other", other), full, sub, three.mask)
    assert identity(base, full, sub, three.mask)


def test_mixed_dtypes_are_refused_in_one_sentence(three: Three, tmp_path: Path) -> None:
    for name in ("model.embed_tokens.weight", Q_PROJ):
        three.sub[name] = three.sub[name].float()
    three.base["model.norm.weight"] = three.base["model.norm.weight"].half()
    expected = r"3 tensors .*embed_tokens\.weight is BF16 in BASE and F32 in SUB; "
    with pytest.raises(TensorMismatchError, match=expected):
        identity(*saved(three, tmp_path), Mask.from_arrays({}))


def test_nothing_in_common_is_refused(three: Three, tmp_path: Path) -> None:
    base, full, _ = saved(three, tmp_path)
    other = save(tmp_path / "other", {"something": torch.zeros(3)}, None)
    with pytest.raises(TensorMismatchError, match="no tensor in common"):
        identity(base, full, other, three.mask)
    one, two, last = (
        {name: torch.zeros(3) for name in names} for names in (("a", "b"), ("a",), ("b",))
    )
    apart = Three(one, two, last, Mask.from_arrays({}))
    with pytest.raises(TensorMismatchError, match="no tensor is in all of"):
        identity(*saved(apart, tmp_path / "apart"), apart.mask)


def test_a_truncated_checkpoint_is_refused(three: Three, tmp_path: Path) -> None:
    base, full, sub = saved(three, tmp_path)
    weights = sub / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        identity(base, full, sub, three.mask)


@settings(max_examples=20, deadline=None)
@given(
    shape=st.sampled_from([(), (1,), (0,), (5,), (3, 0), (3, 7), (2, 3, 5), (1, 1000)]),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, ...], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    base, full, sub = (
        {"w": torch.from_numpy(np.asarray(rng.integers(-3, 3, shape))).bfloat16()} for _ in range(3)
    )
    mask = Mask.from_arrays({"w": np.asarray(rng.random(shape) < 0.5)})
    three = Three(base, full, sub, mask)
    result = identity(*saved(three, tmp_path_factory.mktemp("any")), three.mask)
    assert_counts(result.total.inside, *region(three, ["w"], "inside"))
    assert_counts(result.total.outside, *region(three, ["w"], "outside"))
