"""Deltas that are coded over the elements of a mask give the same checkpoints."""

from __future__ import annotations

import random
import re
import shutil
import tempfile
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import trimtab
from tests.deltas import plain_reader
from tests.deltas.building import Arrays, content_of, moved, random_bits, write_folder
from tests.deltas.test_hostile import MUTATIONS, forged, scratch_on
from trimtab.deltas import make
from trimtab.deltas.masked import Selected, Selection, mask_file_name
from trimtab.elements import update_coding
from trimtab.elements.dtypes import DTYPES
from trimtab.elements.update_fit import InMemory
from trimtab.errors import CheckpointError, DeltaError, MaskMismatchError
from trimtab.masks.packed import PackedTensor
from trimtab.report import html_of

SHAPES = [(), (0,), (1,), (63,), (64,), (65,), (3, 50), (2, 0, 3), (9, 31)]

Selections = Mapping[str, NDArray[np.bool_]]


def trained(arrays: Arrays, selected: Selections, share: float, seed: int) -> Arrays:
    """Tensors of which a share of the selected elements moved, and no others."""
    result = {}
    for name, (dtype, bits) in arrays.items():
        after = moved(bits, share, seed) if share and dtype != "BOOL" else bits
        keep = ~selected.get(name, np.zeros(bits.shape, np.bool_))
        result[name] = (dtype, np.where(keep, bits, after).astype(bits.dtype))
    return result


def chosen(arrays: Arrays, density: float, seed: int) -> dict[str, NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(bits.shape) < density for name, (_, bits) in arrays.items()}


def saved(selected: Selections, path: Path) -> Path:
    trimtab.Mask.from_arrays(selected).save(path)
    return path


@pytest.fixture
def world(tmp_path: Path) -> tuple[list[Path], Path]:
    """Three versions of a checkpoint of which only a mask is trained, and the mask."""
    arrays: Arrays = {
        "w": ("BF16", random_bits("BF16", (60, 40), 0)),
        "e": ("F32", random_bits("F32", (50, 8), 1)),
        "n": ("BF16", random_bits("BF16", (16,), 2)),
    }
    selected = chosen(arrays, 0.2, 3)
    selected["n"][:] = False
    folders = [write_folder(tmp_path / "v0", arrays)]
    for number in (1, 2):
        arrays = trained(arrays, selected, 0.5, number)
        folders.append(write_folder(tmp_path / f"v{number}", arrays))
    return folders, saved(selected, tmp_path / "mask.safetensors")


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 300),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=st.integers(0, 1000),
)
def test_a_selection_is_what_numpy_selects(
    size: int, density: float, dtype: str, seed: int
) -> None:
    bits = random_bits(dtype, (size,), seed)
    selected = np.random.default_rng(seed).random(size) < density
    after = moved(bits, 0.3, seed) if dtype != "BOOL" else ~bits.astype(np.bool_)
    after = after.astype(bits.dtype)
    selection = Selection(PackedTensor.pack(selected))
    assert np.array_equal(selection.gather(bits), bits[selected])
    for start in (0, 64, 128):
        part, here = bits[start:], selected[start:]
        assert np.array_equal(selection.gather(part, start), part[here])
        changed = part != after[start:]
        expected = (int(changed.sum()), int((changed & ~here).sum()))
        assert selection.count_changes(part, after[start:], start) == expected
    given = bits.copy()
    selection.scatter(after[selected], given)
    assert np.array_equal(given, np.where(selected, after, bits))
    if size >= 128:
        part = Selected(InMemory(bits), selection).elements(64, 128)
        assert np.array_equal(part, bits[64:128][selected[64:128]])


@settings(max_examples=30, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4),
    shape=st.sampled_from(SHAPES),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    density=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 1000),
)
def test_every_dtype_any_bits(
    dtypes: list[str], shape: tuple[int, ...], share: float, density: float, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = {f"t{n}": (d, random_bits(d, shape, seed + n)) for n, d in enumerate(dtypes)}
        selected = chosen(before, density, seed)
        after = trained(before, selected, share, seed)
        base = write_folder(folder / "base", before)
        tuned = write_folder(folder / "tuned", after)
        mask = trimtab.Mask.from_arrays(selected)
        delta = folder / "x.delta"
        manifest = trimtab.make_delta(base, tuned, delta, mask=mask)
        assert manifest.mask == mask.digest
        assert trimtab.apply_delta(base, delta, folder / "out", mask=mask) == manifest
        assert content_of(folder / "out") == content_of(tuned)
        packed = {n: mask.packed(n).tobytes() for n in mask}
        assert plain_reader.read(delta.read_bytes(), content_of(base), packed) == content_of(tuned)
        unmasked = trimtab.make_delta(base, tuned, folder / "y.delta")
        for one, other in zip(manifest.tensors, unmasked.tensors, strict=True):
            assert (one.num_changed, one.hash) == (other.num_changed, other.hash)
            assert (one.mask is not None) == (one.num_changed > 0)


def test_tensors_of_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small chunks, of which some have no selected elements, and more threads than chunks."""
    for module in (update_coding, make):
        monkeypatch.setattr(module, "CHUNK", 128)
    monkeypatch.setattr("trimtab.deltas.chain.CHUNK", 128)
    monkeypatch.setattr("trimtab.deltas.source.CHUNK", 128)
    before: Arrays = {"w": ("BF16", random_bits("BF16", (30, 33), 0))}
    selected = chosen(before, 0.1, 1)
    selected["w"].reshape(-1)[200:600] = False
    base = write_folder(tmp_path / "base", before)
    tuned = write_folder(tmp_path / "tuned", trained(before, selected, 0.6, 2))
    mask = saved(selected, tmp_path / "mask.safetensors")
    for threads in (1, 3):
        delta = tmp_path / f"{threads}.delta"
        (entry,) = trimtab.make_delta(base, tuned, delta, mask=mask, threads=threads).tensors
        assert len(entry.frames) == 1 + 8 and not entry.frames[0]
        out = tmp_path / f"out{threads}"
        trimtab.apply_delta(base, delta, out, mask=mask, threads=threads)
        assert content_of(out) == content_of(tuned)


def test_chains_of_some_masked_deltas_and_of_two_masks(
    world: tuple[list[Path], Path], tmp_path: Path
) -> None:
    folders, mask = world
    everything = trimtab.Mask.load(mask)
    everything = everything | everything.complement()
    masks: list[Any] = [mask, None, everything]
    for first in masks:
        for second in masks:
            deltas = [tmp_path / "1.delta", tmp_path / "2.delta"]
            trimtab.make_delta(folders[0], folders[1], deltas[0], mask=first, force=True)
            trimtab.make_delta(
                folders[1], folders[2], deltas[1], mask=second, after=deltas[0], force=True
            )
            given = [each for each in (first, second) if each is not None]
            trimtab.verify_delta(folders[0], deltas, mask=given)
            both = tmp_path / "both.delta"
            manifest = trimtab.compact_deltas(folders[0], deltas, both, mask=given, force=True)
            expected = trimtab.make_delta(folders[0], folders[2], both, mask=first, force=True)
            if first is second:
                assert manifest.mask == expected.mask
                assert manifest.tensors == expected.tensors
            else:
                assert manifest.mask is None
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            trimtab.apply_delta(folders[0], deltas, tmp_path / "out", mask=given)
            assert content_of(tmp_path / "out") == content_of(folders[2])


def test_in_place_and_info(world: tuple[list[Path], Path], tmp_path: Path) -> None:
    folders, mask = world
    delta = tmp_path / "x.delta"
    trimtab.make_delta(folders[0], folders[1], delta, mask=mask)
    unmasked = tmp_path / "y.delta"
    trimtab.make_delta(folders[0], folders[1], unmasked)
    shown = trimtab.delta_info(delta, folders[0], mask=mask)
    for one, other in zip(
        shown.tensors, trimtab.delta_info(unmasked, folders[0]).tensors, strict=True
    ):
        assert one.ulp_histogram == other.ulp_histogram
    target = tmp_path / "target"
    shutil.copytree(folders[0], target)
    trimtab.apply_in_place(target, delta, mask=mask)
    assert content_of(target) == content_of(folders[1])
    trimtab.revert(target)
    assert content_of(target) == content_of(folders[0])


def test_the_mask_is_found_beside_the_delta(world: tuple[list[Path], Path], tmp_path: Path) -> None:
    folders, mask = world
    delta = tmp_path / "x.delta"
    digest = trimtab.make_delta(folders[0], folders[1], delta, mask=mask).mask
    assert digest is not None
    other = trimtab.Mask.load(mask).random_like(0)
    with pytest.raises(DeltaError, match=f"mask {digest}, not given: give its file"):
        trimtab.verify_delta(folders[0], delta)
    with pytest.raises(DeltaError, match=f"mask {digest}, and given was {other.digest}: give"):
        trimtab.verify_delta(folders[0], delta, mask=other)
    trimtab.delta_info(delta)  # which needs none
    beside = tmp_path / mask_file_name(digest)
    other.save(beside)
    with pytest.raises(DeltaError, match=f"mask {digest}, and given was {other.digest}"):
        trimtab.verify_delta(folders[0], delta)
    content = bytearray(mask.read_bytes())
    content[-1] ^= 1
    beside.write_bytes(content)
    with pytest.raises(DeltaError, match="damaged"):
        trimtab.verify_delta(folders[0], delta)
    shutil.copy(mask, beside)
    trimtab.verify_delta(folders[0], delta, mask=other)
    trimtab.verify_delta(folders[0], delta)


def test_what_changed_outside_of_the_mask_is_refused(
    world: tuple[list[Path], Path], tmp_path: Path
) -> None:
    folders, mask = world
    delta = tmp_path / "x.delta"
    less = trimtab.Mask.load(mask).restrict(tensors=["e"])
    w = []
    for folder in folders[:2]:
        with trimtab.open_checkpoint(folder) as checkpoint:
            w.append(checkpoint.tensors["w"].read())
    num = int((w[0] != w[1]).sum())
    message = f"w: {num} elements changed that the mask does not select: give the mask that was"
    with pytest.raises(DeltaError, match=re.escape(message)):
        trimtab.make_delta(folders[0], folders[1], delta, mask=less)
    assert not delta.exists()
    grown = write_folder(tmp_path / "grown", {"w": ("BF16", np.concatenate([w[0], w[0][:1]]))})
    with pytest.raises(DeltaError, match=r"^w: 40 elements changed"):
        trimtab.make_delta(folders[0], grown, delta, mask=mask)
    arrays = {"e": np.zeros((4, 4), np.bool_)}
    with pytest.raises(MaskMismatchError, match="e has shape"):
        trimtab.make_delta(folders[0], folders[1], delta, mask=trimtab.Mask.from_arrays(arrays))


def test_tied_copies_and_other_names(tmp_path: Path) -> None:
    """A head that is stored again, and a mask whose names lack the prefix of the base's."""
    weight = random_bits("BF16", (20, 30), 0)
    selected = np.random.default_rng(0).random(weight.shape) < 0.3
    after = np.where(selected, moved(weight, 1.0, 1), weight).astype(weight.dtype)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    tied = {"tie_word_embeddings": True}
    base = write_folder(tmp_path / "base", {names[0]: ("BF16", weight)}, config=tied)
    tuned = write_folder(tmp_path / "tuned", dict.fromkeys(names, ("BF16", after)), config=tied)
    mask = trimtab.Mask.from_arrays({f"_orig_mod.{names[0]}": selected})
    delta = tmp_path / "x.delta"
    manifest = trimtab.make_delta(base, tuned, delta, mask=mask)
    assert {entry.mask for entry in manifest.tensors if entry.copy_of is None} == {
        f"_orig_mod.{names[0]}"
    }
    trimtab.apply_delta(base, delta, tmp_path / "out", mask=mask)
    assert content_of(tmp_path / "out") == content_of(tuned)


def test_a_forged_manifest_is_refused(world: tuple[list[Path], Path], tmp_path: Path) -> None:
    folders, mask = world
    delta = tmp_path / "x.delta"
    trimtab.make_delta(folders[0], folders[1], delta, mask=mask)

    def entry(manifest: Any, name: str) -> Any:
        return next(entry for entry in manifest["tensors"] if entry["name"] == name)

    changes: dict[str, Any] = {
        "expected 32 hexadecimal digits": lambda m, p: m.update(mask="../" + "0" * 29),
        "no mask is named": lambda m, p: m.pop("mask"),
        "mask 0{32}, and given was": lambda m, p: m.update(mask="0" * 32),
        "has no such tensor": lambda m, p: entry(m, "w").update(mask="x"),
        r"which has shape \[50, 8\]": lambda m, p: entry(m, "w").update(mask="e"),
        "not all of its elements are coded": lambda m, p: entry(m, "n").update(mask="n"),
        "w: a coded update of": lambda m, p: entry(m, "w").pop("mask"),
        "has a predictor": lambda m, p: entry(m, "w").update(
            frames=[1, entry(m, "w")["frames"][1] - 1]
        ),
        "3 frames do not fit": lambda m, p: entry(m, "w").update(
            frames=[0, 1, entry(m, "w")["frames"][1] - 1]
        ),
    }
    for message, change in changes.items():
        with pytest.raises(DeltaError, match=message):
            trimtab.verify_delta(folders[0], forged(delta, change), mask=mask)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutations_are_refused_or_harmless(
    world: tuple[list[Path], Path], tmp_path: Path, kind: str
) -> None:
    """Of a delta, and of a mask that lies beside it: no bytes but those of the tuned checkpoint."""
    folders, mask = world
    dice = random.Random(kind)
    scratch = scratch_on(tmp_path)
    scratch.mkdir()
    delta = scratch / "x.delta"
    digest = trimtab.make_delta(folders[0], folders[1], delta, mask=mask).mask
    beside = scratch / mask_file_name(str(digest))
    contents = {delta: delta.read_bytes(), beside: mask.read_bytes()}
    expected = {*content_of(folders[1]).values()}
    refused = 0
    try:
        for number in range(250):
            for path, content in contents.items():
                path.write_bytes(content)
            if kind in ("bytes", "header") and number % 2:
                beside.write_bytes(MUTATIONS[kind](contents[beside], dice))
            else:
                delta.write_bytes(MUTATIONS[kind](contents[delta], dice))
            if number % 8 == 0:
                tracemalloc.start()
            out = scratch / "out"
            try:
                trimtab.apply_delta(folders[0], delta, out, threads=1)
            except (DeltaError, CheckpointError) as error:
                refused += 1
                assert str(error) and "\n" not in str(error)
                assert not out.exists()
            else:
                assert {*content_of(out).values()} <= expected
                shutil.rmtree(out)
            if tracemalloc.is_tracing():
                assert tracemalloc.get_traced_memory()[1] < 4 << 20
                tracemalloc.stop()
    finally:
        tracemalloc.stop()
        shutil.rmtree(scratch)
    assert refused > 125


def test_one_that_is_coded_over_a_mask_is_not_pushed(
    world: tuple[list[Path], Path], tmp_path: Path
) -> None:
    folders, mask = world
    trimtab.make_delta(folders[0], folders[1], tmp_path / "x.delta", mask=mask)
    with pytest.raises(DeltaError, match="readers on the hub would not have"):
        trimtab.push_delta(tmp_path / "x.delta", "org/name")


def test_info_names_the_mask(world: tuple[list[Path], Path], tmp_path: Path) -> None:
    folders, mask = world
    manifest = trimtab.make_delta(folders[0], folders[1], tmp_path / "x.delta", mask=mask)
    manifest.save(tmp_path / "x.json")
    again = trimtab.load_result(tmp_path / "x.json")
    assert again == manifest
    assert str(manifest.mask) in html_of(manifest)
