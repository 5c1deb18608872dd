"""What `structure` counts equals a count by hand, and chance looks like chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.masks.structure.models import (
    FFN,
    HEAD,
    HIDDEN,
    LAYERS,
    LLAMA,
    VOCAB,
    config_folder,
    llama_shapes,
    random_arrays,
    random_mask,
)
from tests.measure.checkpoints import save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import exponent_bins
from trimtab.errors import CheckpointNotFoundError, MaskError, MaskMismatchError
from trimtab.masks.extract import extract_mask
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask
from trimtab.masks.selection.quotas import random_matched
from trimtab.masks.structure import structure
from trimtab.masks.structure_result import FALSE_DISCOVERY_RATE, Family, Structure, Unit

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return config_folder(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights whose sizes differ by row and by column, as those of real models do."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in llama_shapes().items():
        sizes = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            sizes = sizes * torch.exp(torch.randn((shape[0], 1), generator=generator))
            sizes = sizes * torch.exp(0.5 * torch.randn((1, shape[1]), generator=generator))
        tensors[name] = (0.02 * sizes).bfloat16()
    return save(tmp_path_factory.mktemp("model") / "base", tensors, LLAMA)


def family(result: Structure, name: str, place: int = 0) -> Family:
    (found,) = [f for f in result.masks[place].families if f.name == name]
    return found


def unit(family: Family, layer: int | None, index: int) -> Unit:
    (found,) = [u for u in family.units if (u.layer, u.index) == (layer, index)]
    return found


def pieces(arrays: Arrays, name: str, layer: int | None, index: int) -> list[tuple[str, Array]]:
    """The parts of tensors that are of a unit of the model of `LLAMA`, by hand."""
    at = f"model.layers.{layer}."
    head = slice(index * HEAD, (index + 1) * HEAD)
    places: dict[str, list[tuple[str, Any]]] = {
        "head": [
            (f"{at}self_attn.q_proj.weight", np.s_[head, :]),
            (f"{at}self_attn.o_proj.weight", np.s_[:, head]),
        ],
        "kv_group": [
            (f"{at}self_attn.k_proj.weight", np.s_[head, :]),
            (f"{at}self_attn.v_proj.weight", np.s_[head, :]),
        ],
        "neuron": [
            (f"{at}mlp.gate_proj.weight", np.s_[index, :]),
            (f"{at}mlp.up_proj.weight", np.s_[index, :]),
            (f"{at}mlp.down_proj.weight", np.s_[:, index]),
        ],
        "token": [("model.embed_tokens.weight", np.s_[index, :])],
        "channel": [
            (tensor, np.s_[index, :] if tensor.endswith(writing) else np.s_[..., index])
            for writing in [("o_proj.weight", "down_proj.weight")]
            for tensor in arrays
        ],
    }
    return [(tensor, arrays[tensor][where]) for tensor, where in places[name]]


def by_hand(
    arrays: Arrays, parts: list[tuple[str, Array]], bins: Arrays, own_bins: list[Array]
) -> tuple[int, int, float, float]:
    """Elements, selected ones, and what chance expects: its mean and variance."""
    num = selected = 0
    mean = variance = 0.0
    for (tensor, part), own in zip(parts, own_bins, strict=True):
        num += part.size
        selected += int(part.sum())
        for value in np.unique(bins[tensor]):
            stratum = bins[tensor] == value
            size, drawn = int(stratum.sum()), int(arrays[tensor][stratum].sum())
            inside = int((own == value).sum())
            mean += inside * drawn / size
            if size > 1:
                share = drawn / size
                variance += inside * share * (1 - share) * (size - inside) / (size - 1)
    return num, selected, mean, variance


EXPECTED_UNITS = {
    "head": LAYERS * 6,
    "kv_group": LAYERS * 2,
    "neuron": LAYERS * FFN,
    "channel": HIDDEN,
    "token": VOCAB,
}


def test_every_unit_equals_a_count_by_hand(base: Path) -> None:
    arrays = random_arrays(llama_shapes(), 0.2, seed=3)
    result = structure(Mask.from_arrays(arrays), base=base)
    with open_checkpoint(base) as checkpoint:
        stored = [(name, checkpoint.tensors[name]) for name in arrays]
        bins = {name: exponent_bins(tensor.read(), tensor.dtype) for name, tensor in stored}
    alike = {name: np.zeros_like(item) for name, item in bins.items()}
    assert {f.name: f.num_units for f in result.masks[0].families} == EXPECTED_UNITS
    for name in EXPECTED_UNITS:
        of_family = family(result, name)
        assert of_family.has_all_units
        rng = np.random.default_rng(0)
        for found in rng.choice(np.array(of_family.units, dtype=object), 4, replace=False):
            for null in ("tensor", "magnitude"):
                strata = alike if null == "tensor" else bins
                where = (name, found.layer, found.index)
                own = [part for _, part in pieces(strata, *where)]
                num, selected, mean, variance = by_hand(arrays, pieces(arrays, *where), strata, own)
                assert (found.num_elements, found.num_selected) == (num, selected)
                expected, z = (
                    (found.expected, found.z)
                    if null == "tensor"
                    else (found.matched_expected, found.matched_z)
                )
                assert expected == pytest.approx(mean)
                assert z == pytest.approx((selected - mean) / sqrt(variance))


def test_units_of_a_family_add_up_to_its_tensors(config: Path) -> None:
    mask = random_mask(llama_shapes(), 0.15)
    result = structure(mask, config=config)
    heads = [name for name in mask if "q_proj" in name or "o_proj" in name]
    assert family(result, "head").num_selected == sum(map(mask.num_selected, heads))
    assert family(result, "channel").num_selected == mask.num_selected()
    assert family(result, "channel").num_elements == mask.num_elements()
    for one in result.masks[0].families:
        assert sum(u.num_selected for u in one.units) == one.num_selected
        assert sum(u.expected for u in one.units) == pytest.approx(one.num_selected)
        z = np.array([u.z for u in one.units])
        assert one.null.overdispersion == pytest.approx(np.mean(z**2))
        up = [u for u in one.units if u.q is not None and u.q <= 0.05 and (u.z or 0) > 0]
        assert one.null.num_up == len(up)


def test_stripes_equal_a_count_by_hand(config: Path) -> None:
    arrays = random_arrays(llama_shapes(), 0.2)
    result = structure(Mask.from_arrays(arrays), config=config)
    (report,) = [t for t in result.masks[0].tensors if t.name.endswith("0.mlp.up_proj.weight")]
    matrix = arrays[report.name]
    size, drawn = matrix.size, int(matrix.sum())
    for axis, counts, length in (
        (report.rows, matrix.sum(1), HIDDEN),
        (report.columns, matrix.sum(0), FFN),
    ):
        mean = length * drawn / size
        variance = mean * (1 - drawn / size) * (size - length) / (size - 1)
        assert axis.num_lines == len(counts)
        assert axis.dispersion == pytest.approx(np.mean((counts - mean) ** 2) / variance)
        excess = np.mean((counts - mean) ** 2) - variance
        assert axis.spread == pytest.approx(sqrt(max(0.0, excess)) / mean)


def test_random_masks_look_random(config: Path) -> None:
    """The variance of z is 1 and next to nothing is significant, in masks and in controls."""
    squares: dict[str, list[float]] = {}
    num_families = num_false = 0
    for seed in range(25):
        mask = random_mask(llama_shapes(), 0.1, seed)
        for one in structure(mask, config=config, seed=100 + seed).masks[0].families:
            for test in (one.null, one.control):
                assert test.overdispersion is not None
                squares.setdefault(one.name, []).append(test.overdispersion)
                num_families += 1
                num_false += test.num_up + test.num_down > 0
    for name, values in squares.items():
        error = sqrt(2 / (EXPECTED_UNITS[name] * len(values)))
        assert abs(np.mean(values) - 1) < 4 * error, name
    # Benjamini and Hochberg: any discovery is false, and there is one in at most 5 % of families.
    assert num_false <= 0.05 * num_families + 3 * sqrt(0.05 * num_families)


def test_the_matched_null_explains_masks_of_small_weights(base: Path) -> None:
    """Random but for magnitude: stripes against the tensor's null, none against the matched."""
    with open_checkpoint(base) as checkpoint:
        small = {
            name: np.abs(tensor.dtype.decode(tensor.read())) < 0.004
            for name, tensor in checkpoint.tensors.items()
        }
    seeds = range(12)
    masks = [random_matched(Mask.from_arrays(small), base, seed) for seed in seeds]
    results = [structure(mask, base=base) for mask in masks]
    for name in ("neuron", "channel", "token"):
        found = [family(result, name) for result in results]
        matched = [one.matched.overdispersion or 0.0 for one in found if one.matched is not None]
        error = np.std(matched, ddof=1) / sqrt(len(matched))
        assert abs(np.mean(matched) - 1) < 4 * error + 0.02
        plain = np.array([one.null.overdispersion for one in found])
        predicted = np.array([one.from_magnitude for one in found])
        assert plain.min() > 3
        assert np.mean(plain / predicted) == pytest.approx(1, abs=0.05)
        assert all(one.matched is not None and one.matched.num_up < 5 for one in found)


def planted(where: Callable[[dict[str, Array]], None]) -> Mask:
    arrays = random_arrays(llama_shapes(), 0.1)
    where(arrays)
    return Mask.from_arrays(arrays)


def test_a_planted_head_is_found(config: Path) -> None:
    def plant(arrays: dict[str, Array]) -> None:
        rng = np.random.default_rng(9)
        rows = arrays["model.layers.1.self_attn.q_proj.weight"][4 * HEAD : 5 * HEAD]
        rows |= rng.random(rows.shape) < 0.2

    result = structure(planted(plant), config=config)
    heads = family(result, "head")
    assert (heads.null.num_up, heads.control.num_up) == (1, 0)
    assert max(heads.units, key=lambda u: u.z or 0.0) == unit(heads, 1, 4)
    assert (unit(heads, 1, 4).q or 1) <= FALSE_DISCOVERY_RATE
    assert heads.null.spread is not None
    assert heads.null.spread > 0.1
    assert family(result, "kv_group").null.num_up == 0


def test_a_planted_neuron_and_a_planted_channel_are_found(config: Path) -> None:
    def plant(arrays: dict[str, Array]) -> None:
        arrays["model.layers.0.mlp.down_proj.weight"][:, 77] = True
        for name, array in arrays.items():
            if name.endswith("q_proj.weight"):
                array[:, 13] = True

    result = structure(planted(plant), config=config)
    neurons, channels = family(result, "neuron"), family(result, "channel")
    assert max(neurons.units, key=lambda u: u.z or 0.0) == unit(neurons, 0, 77)
    assert neurons.null.num_up == 1
    assert max(channels.units, key=lambda u: u.z or 0.0) == unit(channels, None, 13)
    assert result.masks[0].map is not None
    assert "q_proj" in result.masks[0].map.name or "down_proj" in result.masks[0].map.name


def test_a_planted_row_makes_the_map(config: Path) -> None:
    name = "model.embed_tokens.weight"

    def plant(arrays: dict[str, Array]) -> None:
        arrays[name][123] = True

    mask = planted(plant)
    result = structure(mask, config=config)
    assert max(family(result, "token").units, key=lambda u: u.z or 0.0).index == 123
    drawn = result.masks[0].map
    assert drawn is not None
    assert (drawn.name, drawn.shape) == (name, (VOCAB, HIDDEN))
    matrix = mask.array(name)
    assert sum(map(sum, drawn.counts)) == drawn.num_selected == matrix.sum()
    rows, columns = drawn.row_edges, drawn.column_edges
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, VOCAB, 0, HIDDEN)
    for at_row, counts in enumerate(drawn.counts):
        for at_column, count in enumerate(counts):
            top, bottom = rows[at_row : at_row + 2]
            left, right = columns[at_column : at_column + 2]
            assert count == matrix[top:bottom, left:right].sum()
    profile = drawn.rows
    assert profile.line_length == HIDDEN
    assert max(profile.highest) == HIDDEN
    starts = [*profile.starts, VOCAB]
    for at, (start, stop) in enumerate(pairwise(starts)):
        by_row = matrix[start:stop].sum(1)
        assert (profile.lowest[at], profile.highest[at]) == (by_row.min(), by_row.max())


def test_another_tensor_can_be_mapped(config: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    result = structure(random_mask(llama_shapes()), config=config, map=name)
    assert result.masks[0].map is not None
    assert result.masks[0].map.name == name
    for wrong in ("model.norm.weight", "nothing"):
        with pytest.raises(MaskError, match=f"{wrong} is no matrix of the masks; those are model"):
            structure(random_mask(llama_shapes()), config=config, map=wrong)


def test_masks_that_favour_the_same_units_share_them(config: Path) -> None:
    def plant(arrays: dict[str, Array]) -> None:
        rng = np.random.default_rng(5)
        for name, array in arrays.items():
            if "gate_proj" in name or "up_proj" in name:
                array[:40] |= rng.random((40, HIDDEN)) < 0.5

    first, second = planted(plant), planted(plant)
    second = second ^ random_mask(llama_shapes(), 0.02, seed=8)
    other = random_mask(llama_shapes(), 0.1, seed=7)
    result = structure(first, second, other, config=config)
    pairs = {(s.first, s.second): s for s in result.shared if s.family == "neuron"}
    assert sorted(pairs) == [(0, 1), (0, 2), (1, 2)]
    alike = pairs[0, 1]
    assert alike.num_units == LAYERS * FFN
    assert alike.spearman is not None
    assert alike.spearman > 0.6
    assert alike.control_spearman == pytest.approx(0, abs=0.2)
    assert alike.matched_spearman is None
    (up,) = [c for c in alike.common if c.direction == "up"]
    assert up.num_common > 70
    assert up.chance == pytest.approx(up.num_first * up.num_second / (LAYERS * FFN))
    assert up.log10_p < -20
    for pair in ((0, 2), (1, 2)):
        assert pairs[pair].spearman == pytest.approx(0, abs=0.2)
        assert all(c.num_common == 0 for c in pairs[pair].common)


def test_controls_of_several_masks_are_drawn_apart(config: Path) -> None:
    """The same seed would draw controls that favour the same units."""
    mask = random_mask(llama_shapes())
    result = structure(mask, mask, config=config)
    assert [each.control_seed for each in result.masks] == [0, 1]
    neurons = [s for s in result.shared if s.family == "neuron"]
    assert neurons[0].spearman == 1
    assert neurons[0].control_spearman == pytest.approx(0, abs=0.2)
    again = structure(mask, config=config, seed=1)
    assert family(again, "neuron").control == family(result, "neuron", 1).control


def test_a_tensor_that_a_mask_lacks_has_nothing_selected(config: Path) -> None:
    arrays = random_arrays(llama_shapes())
    name = "model.layers.0.mlp.up_proj.weight"
    lacking = {other: array for other, array in arrays.items() if other != name}
    empty = {**arrays, name: np.zeros_like(arrays[name])}
    whole = Mask.from_arrays(arrays)
    found = [structure(whole, Mask.from_arrays(one), config=config) for one in (lacking, empty)]
    assert found[0].masks[1].families == found[1].masks[1].families
    assert found[0].shared == found[1].shared


def test_files_are_read_as_masks_are(config: Path, base: Path, tmp_path: Path) -> None:
    mask = random_mask(llama_shapes())
    path = tmp_path / "m.safetensors"
    mask.save(path)
    of_mask = structure(mask, config=config)
    of_path = structure(path, config=config, threads=1)
    with open_mask(path) as stored:
        of_stored = structure(stored, config=config)
    assert of_path.masks[0].mask.id == str(path)
    for other in (of_path, of_stored):
        assert other.masks[0].families == of_mask.masks[0].families
        assert other.masks[0].tensors == of_mask.masks[0].tensors
        assert other.masks[0].map == of_mask.masks[0].map


def test_base_is_checked_and_recorded(base: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    with open_checkpoint(base) as checkpoint:
        tensors = {
            name: torch.from_numpy(tensor.read().view(np.int16)).view(torch.bfloat16) * 1.01
            for name, tensor in checkpoint.tensors.items()
        }
    save(tuned, {name: tensor.bfloat16() for name, tensor in tensors.items()}, LLAMA)
    mask = extract_mask(base, tuned)
    result = structure(mask, base=base)
    assert result.base is not None
    assert result.base.id == result.config == str(base)
    assert result.masks[0].mask.num_checked == len(mask)
    assert result.base.content_hash == mask.provenance["steps"][0]["base"]["content_hash"]
    with pytest.raises(MaskMismatchError, match=r"made against other weights than .*: model"):
        structure(mask, base=tuned)


def test_what_does_not_fit_is_told_at_once(base: Path, config: Path, tmp_path: Path) -> None:
    shapes = llama_shapes()
    other = {**shapes, "model.norm.weight": (7,), "model.embed_tokens.weight": (9, 9)}
    with pytest.raises(MaskMismatchError, match=r"different models: 2 of .*norm.* in mask 2"):
        structure(random_mask(shapes), random_mask(other), config=config)
    with pytest.raises(MaskMismatchError, match=r"does not fit, in 3 of .*is not in it"):
        structure(random_mask({**other, "new": (50, 50)}), base=base)
    assert structure(random_mask({**shapes, "new": (50, 50)}, 0.0), base=base)
    with pytest.raises(MaskError, match="structure needs a mask"):
        structure()
    with pytest.raises(CheckpointNotFoundError, match=r"expected a config\.json"):
        structure(random_mask(shapes), config=tmp_path)


def test_nothing_and_everything_selected(config: Path) -> None:
    for density in (0.0, 1.0):
        result = structure(random_mask(llama_shapes(), density), config=config)
        for one in result.masks[0].families:
            assert (one.null.num_tested, one.null.overdispersion) == (0, None)
            assert one.null.num_up == one.null.num_down == 0
        assert Structure.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_more_units_than_are_listed(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = random_mask(llama_shapes())
    whole = family(structure(mask, config=config), "neuron")
    monkeypatch.setattr("trimtab.masks.structure_families.MOST_LISTED", 100)
    few = family(structure(mask, config=config), "neuron")
    assert not few.has_all_units
    by_z = sorted(whole.units, key=lambda u: -(u.z or 0.0))
    assert [u.z for u in few.units] == [u.z for u in by_z[:25] + by_z[-25:]]
    assert replace(few, units=whole.units) == whole


def test_progress_adds_up(base: Path) -> None:
    data: list[tuple[int, int]] = []
    structure(random_mask(llama_shapes()), base=base, progress=lambda *one: data.append(one))
    assert sum(num for num, _ in data) == data[0][1]
