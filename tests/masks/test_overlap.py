"""`overlap` on masks and real files, against NumPy on bool arrays."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.masks.masks import SHAPES, arrays, example_mask
from tests.measure.checkpoints import Tensors, llama_tensors, moved, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import DTYPES, exponent_bins
from trimtab.errors import (
    AnalysisError,
    CheckpointError,
    MaskError,
    MaskMismatchError,
    ResultFormatError,
)
from trimtab.masks import overlap as overlap_module
from trimtab.masks.extract import extract_mask
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import StoredMask
from trimtab.masks.overlap import overlap
from trimtab.masks.overlap_result import Overlap
from trimtab.masks.packed import PackedTensor

Bools = dict[str, NDArray[np.bool_]]

DTYPE_OF = {
    torch.bfloat16: ("BF16", torch.int16),
    torch.float32: ("F32", torch.int32),
    torch.int64: ("I64", torch.int64),
}


def drawn_like(tensors: Tensors, density: float, seed: int) -> Bools:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.random(tuple(t.shape)) < density) for name, t in tensors.items()}


def bins_of(tensor: torch.Tensor) -> NDArray[np.uint16]:
    name, view = DTYPE_OF[tensor.dtype]
    dtype = DTYPES[name]
    return exponent_bins(tensor.view(view).numpy().view(dtype.bits).ravel(), dtype)


def flat(one: Bools, names: list[str]) -> NDArray[np.bool_]:
    return np.concatenate([one[name].ravel() for name in names])


@given(
    st.lists(hnp.arrays(np.bool_, (5, 13)), min_size=2, max_size=5),
    st.lists(hnp.arrays(np.bool_, (3,)), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_counts_of_any_masks(first: list[Any], second: list[Any]) -> None:
    masks = [
        Mask.from_arrays({"w": one, "v": other}) for one, other in zip(first, second, strict=False)
    ]
    result = overlap(*masks)
    assert [tensor.name for tensor in result.tensors] == ["w", "v"]
    for tensor, of_masks in zip(result.tensors, (first, second[: len(first)]), strict=True):
        assert tensor.num_selected == tuple(int(one.sum()) for one in of_masks)
        assert tensor.num_shared == tuple(
            int((one & other).sum()) for one, other in combinations(of_masks, 2)
        )
        times = np.sum(of_masks, axis=0).ravel()
        assert tensor.num_by_count == tuple(np.bincount(times, minlength=len(masks) + 1))


@pytest.mark.parametrize("num_masks", [2, 3, 9, 26])
def test_the_size_of_a_chunk_does_not_matter(
    num_masks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = [example_mask(0.3, seed) for seed in range(num_masks)]
    whole = overlap(*masks)
    monkeypatch.setattr(overlap_module, "CHUNK_WORDS", 1)
    assert overlap(*masks, threads=1).tensors == whole.tensors


def test_groups_are_sums_of_tensors() -> None:
    result = overlap(example_mask(seed=0), example_mask(seed=1))
    one, other = arrays(seed=0), arrays(seed=1)
    names = list(SHAPES)
    total = result.total()
    assert total.num_elements == sum(array.size for array in one.values())
    assert total.intersection == int((flat(one, names) & flat(other, names)).sum())
    for groups in (result.by_layer(), result.by_kind()):
        for part in ("num_elements", "num_first", "num_second", "intersection"):
            assert sum(getattr(shared, part) for shared in groups.values()) == getattr(total, part)
    assert list(result.by_layer()) == [0, None]
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    shared = result.by_layer_kind()[0, "q_proj"]
    assert shared.intersection == int((one[q_proj] & other[q_proj]).sum())


def test_per_tensor_null_keeps_the_counts_of_tensors() -> None:
    a, b = example_mask(seed=0), example_mask(seed=1)
    against = overlap(a, b).total().nulls["per-tensor"]
    rows = [(a.num_elements(n), a.num_selected(n), b.num_selected(n)) for n in SHAPES]
    rows = [row for row in rows if row[0]]
    assert against.expected == pytest.approx(sum(x * y / n for n, x, y in rows))
    assert against.deviation**2 == pytest.approx(
        sum(x * y * (n - x) * (n - y) / (n * n * (n - 1)) for n, x, y in rows if n > 1)
    )
    assert against.most == sum(min(x, y) for _, x, y in rows)


def test_pairs_and_consensus_of_several_masks() -> None:
    masks = [example_mask(seed=seed) for seed in range(4)]
    of_each = [flat(arrays(seed=seed), list(SHAPES)) for seed in range(4)]
    result = overlap(*masks)
    for i, j in combinations(range(4), 2):
        assert result.total(i, j).intersection == int((of_each[i] & of_each[j]).sum())
        assert result.total(j, i).o1 == result.total(i, j).o2
        assert result.total(i, j).to_dict() == overlap(masks[i], masks[j]).total().to_dict()
    consensus = result.consensus()
    times = np.sum(of_each, axis=0)
    assert consensus.num_by_count == tuple(np.bincount(times, minlength=5))
    for null in ("independent", "per-tensor"):
        assert sum(consensus.expected_by_count(null)) == pytest.approx(len(times))
    by_kind = result.consensus_by_kind()
    assert sum(group.num_common for group in by_kind.values()) == consensus.num_common


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_magnitudes_of_a_real_base(dtype: torch.dtype, tmp_path: Path) -> None:
    base = llama_tensors(dtype=dtype)
    base["model.norm.weight"][:5] = torch.tensor([0.0, -0.0, torch.inf, torch.nan, 1e-39])
    base |= {"scalar": torch.tensor(0.5, dtype=dtype), "nothing": torch.zeros(0, 5, dtype=dtype)}
    base["positions"] = torch.arange(70)
    folder = save(tmp_path / "base", base)
    one, other = drawn_like(base, 0.3, 0), drawn_like(base, 0.2, 1)
    masks = [Mask.from_arrays(item) for item in (one, other)]
    result = overlap(*masks, base=folder)
    expected = variance = 0.0
    most = 0
    for tensor in result.tensors:
        bins, name = bins_of(base[tensor.name]), tensor.name
        assert tensor.bins is not None
        assert tensor.bins.bins == tuple(np.unique(bins))
        for place, bin in enumerate(tensor.bins.bins):
            here = bins == bin
            n, a, b = (
                int(item.sum())
                for item in (here, here & one[name].ravel(), here & other[name].ravel())
            )
            assert tensor.bins.num_elements[place] == n
            assert [counts[place] for counts in tensor.bins.num_selected] == [a, b]
            expected += a * b / n
            variance += a * b * (n - a) * (n - b) / (n * n * max(n - 1, 1))
            most += min(a, b)
    against = result.total().nulls["magnitude-matched"]
    assert against.expected == pytest.approx(expected)
    assert against.deviation**2 == pytest.approx(variance)
    assert against.most == most
    assert list(result.total().nulls) == list(result.nulls)
    assert overlap(*masks).tensors == tuple(replace(t, bins=None) for t in result.tensors)


def test_the_base_is_recorded_and_checked(tmp_path: Path) -> None:
    base = llama_tensors()
    folders = save(tmp_path / "base", base), save(tmp_path / "tuned", moved(base))
    mask = extract_mask(*folders)
    result = overlap(mask, mask.random_like(0), base=folders[0])
    assert result.base is not None
    assert result.base.id == str(folders[0])
    assert [each.num_checked for each in result.masks] == [len(base)] * 2
    other = save(tmp_path / "other", llama_tensors(seed=3))
    with pytest.raises(MaskMismatchError, match=r"other weights than .*other: model.* mask 1 was"):
        overlap(mask, mask.random_like(0), base=other)
    unknown = Mask.from_arrays({name: mask.array(name) for name in mask})
    assert overlap(unknown, unknown, base=other).masks[0].num_checked == 0


def test_a_base_of_another_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", llama_tensors(vocab=48))
    mask = Mask.from_arrays({"model.embed_tokens.weight": np.ones((40, 32), np.bool_)})
    with pytest.raises(MaskMismatchError, match=r"has shape \[48, 32\], not \[40, 32\]"):
        overlap(mask, mask, base=folder)
    mask = Mask.from_arrays({"w": np.ones(3, np.bool_)})
    with pytest.raises(MaskMismatchError, match="w is not in it"):
        overlap(mask, mask, base=folder)


def test_tensors_of_the_base_that_no_mask_has_count_for_its_hash(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", llama_tensors())
    every = Mask.from_arrays(drawn_like(llama_tensors(), 0.1, 0))
    name = "model.norm.weight"
    few = Mask.from_arrays({name: every.array(name)})
    hashes = {
        one.base.content_hash
        for one in (overlap(every, every, base=folder), overlap(few, few, base=folder))
        if one.base is not None
    }
    assert len(hashes) == 1


def test_what_only_one_mask_has_is_listed() -> None:
    one = Mask.from_arrays({"w": np.ones(4, np.bool_), "v": np.ones((2, 3), np.bool_)})
    other = Mask.from_arrays({"w": np.ones(4, np.bool_), "u": np.zeros(5, np.bool_)})
    result = overlap(one, other)
    assert [tensor.name for tensor in result.tensors] == ["w"]
    assert result.coverage.num_compared == 4
    assert not result.coverage.is_complete
    assert result.coverage.not_compared == (
        {"name": "v", "shape": [2, 3], "num_selected": [6, None]},
        {"name": "u", "shape": [5], "num_selected": [None, 0]},
    )


def test_different_bases_are_told() -> None:
    def against(digit: str) -> Mask:
        base = {"w": BaseTensor("BF16", digit * 32)}
        return Mask.from_arrays({"w": np.ones(4, np.bool_)}, base=base)

    assert overlap(against("0"), against("0")).coverage.other_base == ()
    unknown = Mask.from_arrays({"w": np.ones(4, np.bool_)})
    assert overlap(against("0"), unknown).coverage.other_base == ()
    (row,) = overlap(against("0"), unknown, against("1")).coverage.other_base
    assert row["name"] == "w"
    assert [one and one["digest"][0] for one in row["base"]] == ["0", None, "1"]


def test_masks_that_cannot_be_compared() -> None:
    wide = Mask.from_arrays({"w": np.ones((2, 6), np.bool_), "v": np.ones(1, np.bool_)})
    tall = Mask.from_arrays({"w": np.ones((6, 2), np.bool_), "v": np.ones(1, np.bool_)})
    with pytest.raises(MaskMismatchError, match=r"w is \(2, 6\), and \(6, 2\) in mask 2"):
        overlap(wide, tall)
    with pytest.raises(MaskMismatchError, match="no tensor is in all 2 masks"):
        overlap(wide, Mask.from_arrays({"u": np.ones(3, np.bool_)}))
    for masks in ((wide,), (), (wide,) * 27):
        with pytest.raises(AnalysisError, match="an overlap is of 2 to 26 masks"):
            overlap(*masks)


def test_files_are_masks_too(tmp_path: Path) -> None:
    masks = [example_mask(seed=seed) for seed in range(3)]
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for mask, path in zip(masks, paths, strict=True):
        mask.save(path)
    result = overlap(*paths)
    assert result.tensors == overlap(*masks).tensors
    assert [each.id for each in result.masks] == list(map(str, paths))
    assert [each.digest for each in result.masks] == [mask.digest for mask in masks]


@pytest.mark.parametrize("bit", [0x01, 0x02, 0x80])  # of the count, and two after the last element
def test_damaged_bits_are_refused_with_the_name_of_the_file(bit: int, tmp_path: Path) -> None:
    base = save(tmp_path / "base", llama_tensors())
    sound, damaged = tmp_path / "sound.safetensors", tmp_path / "damaged.safetensors"
    name = "model.norm.weight"
    mask = Mask.from_arrays({name: np.arange(32) < 3, "z": np.array(True)})
    for path in (sound, damaged):
        mask.save(path)
    data = bytearray(damaged.read_bytes())
    data[-1] ^= bit
    damaged.write_bytes(data)
    for masks in ((sound, damaged), (damaged, damaged, sound)):
        with pytest.raises(MaskError, match=f"{damaged}: damaged"):
            overlap(*masks)
    only = Mask.from_arrays({name: np.arange(32) < 5})
    for given_base in (None, base):  # also where the damage is in a tensor that is not compared
        with pytest.raises(MaskError, match=f"{damaged}: damaged"):
            overlap(damaged, only, base=given_base)


@pytest.mark.parametrize("threads", [1, 3])
def test_with_a_base_too_the_files_are_read_once_and_not_far_ahead(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = llama_tensors()
    folder = save(tmp_path / "base", base)
    paths = [tmp_path / "a", tmp_path / "b"]
    for seed, path in enumerate(paths):
        Mask.from_arrays(drawn_like(base, 0.3, seed)).save(path)
    num_read: Counter[str] = Counter()
    num_ahead: list[float] = []
    num_counted = 0
    too_far = Event()
    whole_tensor, whole_count = StoredMask._tensor, overlap_module._count

    def tensor(self: StoredMask, name: str) -> PackedTensor:
        num_read[name] += 1
        num_ahead.append(num_read.total() / 2 - num_counted)
        if num_ahead[-1] > threads + 3:
            too_far.set()
        return whole_tensor(self, name)

    def count(*tensor: Any) -> Any:
        nonlocal num_counted
        too_far.wait(0 if num_counted else 0.2)  # reading may run ahead as far as it will
        num_counted += 1
        return whole_count(*tensor)

    monkeypatch.setattr(StoredMask, "_tensor", tensor)
    monkeypatch.setattr(overlap_module, "_count", count)
    overlap(*paths, base=folder, threads=threads)
    assert num_read == dict.fromkeys(base, 2)
    # In work, waiting, under way to a thread that is done with its last one, and being read.
    assert max(num_ahead) <= threads + 3 < len(base)


def test_a_base_that_is_cut_short_ends_the_reading(tmp_path: Path) -> None:
    base = llama_tensors()
    folder = save(tmp_path / "base", base)
    mask = Mask.from_arrays(drawn_like(base, 0.3, 0))
    with open_checkpoint(folder) as opened:
        for file in folder.glob("*.safetensors"):
            with file.open("r+b") as handle:
                handle.truncate(file.stat().st_size // 2)
        with pytest.raises(CheckpointError, match=r"cut short|changed while"):
            overlap(mask, mask, base=opened, threads=1)


class Steps:
    """Keeps what it is told of the progress."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, num_bytes: int, total: int) -> None:
        self.told.append((num_bytes, total))


def test_threads_and_progress(tmp_path: Path) -> None:
    base = llama_tensors()
    folder = save(tmp_path / "base", base)
    masks = [Mask.from_arrays(drawn_like(base, 0.3, seed)) for seed in (0, 1)]
    for given_base in (None, folder):
        steps = Steps()
        one = overlap(*masks, base=given_base, threads=1)
        more = overlap(*masks, base=given_base, threads=3, progress=steps)
        assert one.tensors == more.tensors
        assert sum(num for num, _ in steps.told) == steps.told[0][1]
        assert more.provenance["threads"] == 3


def test_a_saved_result_is_the_same(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", llama_tensors())
    for num_masks, base in ((2, folder), (3, None)):
        one = [Mask.from_arrays(drawn_like(llama_tensors(), 0.3, s)) for s in range(num_masks)]
        result = overlap(*one, base=base, series=num_masks == 3)
        data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        again = Overlap.from_dict(data)
        assert again.to_dict() == result.to_dict()
        assert (again.tensors, again.coverage) == (result.tensors, result.coverage)
        assert again.is_series == (num_masks == 3)


def test_the_json_of_two_masks_and_of_more() -> None:
    two = overlap(example_mask(seed=0), example_mask(seed=1)).to_dict()
    assert {"o1", "o2", "intersection", "jaccard", "chance", "lift", "ceiling", "z"} <= two[
        "total"
    ].keys()
    assert two["by_layer"].keys() == {"0", "outside"}
    first = {"layer": 0, "kind": "q_proj", **two["by_kind"]["q_proj"]}
    assert two["by_layer_kind"][0] == first
    three = overlap(*(example_mask(seed=seed) for seed in range(3))).to_dict()
    assert [(pair["first"], pair["second"]) for pair in three["pairs"]] == [(0, 1), (0, 2), (1, 2)]
    assert three["pairs"][0]["total"] == two["total"]
    assert three["consensus"].keys() == {"total", "by_kind"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data["tensors"][0]["num_selected"].append(0),
        lambda data: data["tensors"][0]["num_shared"].__setitem__(0, 10**6),
        lambda data: data["tensors"][0]["num_by_count"].__setitem__(0, -1),
        lambda data: data["tensors"][0].update(shape=[3]),
        lambda data: data["tensors"][0].update(bins=[]),
        lambda data: data["tensors"][0]["num_selected"].__setitem__(0, True),
        lambda data: data["provenance"]["masks"].pop(),
        lambda data: data["provenance"].pop("base"),
        lambda data: data.pop("coverage"),
    ],
)
def test_a_damaged_result_is_refused(damage: Any) -> None:
    data = overlap(example_mask(seed=0), example_mask(seed=1)).to_dict()
    data = json.loads(json.dumps(data))
    damage(data)
    with pytest.raises(ResultFormatError, match="damaged overlap"):
        Overlap.from_dict(data)


def test_bins_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "base", llama_tensors())
    one = [Mask.from_arrays(drawn_like(llama_tensors(), 0.3, seed)) for seed in (0, 1)]
    data = overlap(*one, base=folder).to_dict()
    for part in ("num_elements", "bins"):
        wrong = json.loads(json.dumps(data))
        wrong["tensors"][0]["bins"][part][0] += 1 if part == "num_elements" else 10**30
        with pytest.raises(ResultFormatError, match="damaged overlap"):
            Overlap.from_dict(wrong)
    wrong = json.loads(json.dumps(data))
    wrong["tensors"][0]["bins"] = None
    with pytest.raises(ResultFormatError, match="do not agree on magnitudes"):
        Overlap.from_dict(wrong)


def magnitude_masks(
    folder: Path, base: Tensors, seed: int
) -> tuple[float | None, float | None, float | None]:
    """Two masks that are independent given tensor and exponent: small weights are likelier."""
    rng = np.random.default_rng(seed)
    drawn: list[Bools] = []
    for _ in range(2):
        of_mask = {}
        for name, tensor in base.items():
            bins = bins_of(tensor).astype(np.int64)
            density = np.clip(0.5 ** (bins - 115.0), 0.002, 0.95)
            of_mask[name] = (rng.random(len(bins)) < density).reshape(tuple(tensor.shape))
        drawn.append(of_mask)
    result = overlap(*(Mask.from_arrays(one) for one in drawn), base=folder, threads=1)
    nulls = result.total().nulls
    matched = nulls["magnitude-matched"]
    return nulls["independent"].z, matched.z, matched.lift


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_magnitude_matched_null_is_calibrated(dtype: torch.dtype, tmp_path: Path) -> None:
    """Lift 1 and a standard normal z, where the coarser null is far off."""
    base = llama_tensors(dtype=dtype)
    folder = save(tmp_path / "base", base)
    num = 400
    found = [magnitude_masks(folder, base, seed) for seed in range(num)]
    coarse, z, lift = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    # Four standard errors: of the mean 1/√num, of the variance √(2/num) for a normal.
    assert abs(z.mean()) < 4 / num**0.5
    assert abs(z.var(ddof=1) - 1) < 4 * (2 / num) ** 0.5
    assert abs(np.mean(np.abs(z) < 1.96) - 0.95) < 4 * (0.95 * 0.05 / num) ** 0.5
    assert abs(lift.mean() - 1) < 4 * lift.std() / num**0.5
    assert coarse.mean() > 5


def test_a_shared_preference_beyond_magnitude_is_found(tmp_path: Path) -> None:
    """Masks that also prefer one half of each tensor share more than their magnitudes say."""
    base = llama_tensors()
    folder = save(tmp_path / "base", base)
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(2):
        of_mask = {}
        for name, tensor in base.items():
            likely = np.zeros(tensor.numel())
            likely[: tensor.numel() // 2] = 0.4
            of_mask[name] = (rng.random(tensor.numel()) < likely).reshape(tuple(tensor.shape))
        masks.append(Mask.from_arrays(of_mask))
    matched = overlap(*masks, base=folder).total().nulls["magnitude-matched"]
    assert matched.lift == pytest.approx(2, abs=0.1)
    assert matched.z is not None
    assert matched.z > 20
