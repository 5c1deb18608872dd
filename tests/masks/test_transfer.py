"""A mask carried to other checkpoints, against the bool arrays that it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from tests.checkpoints.building import random_bits, tensors_bytes
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask
from trimtab.masks.transfer import transfer

Shapes = dict[str, tuple[int, ...]]


def model(
    layers: int = 5, width: int = 8, inner: int = 12, vocabulary: int = 21, head: bool = False
) -> Shapes:
    """Shapes of a small model."""
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width)}
    for layer in range(layers):
        shapes |= {
            f"model.layers.{layer}.self_attn.q_proj.weight": (width, width),
            f"model.layers.{layer}.mlp.up_proj.weight": (inner, width),
            f"model.layers.{layer}.input_layernorm.weight": (width,),
        }
    shapes["model.norm.weight"] = (width,)
    return shapes | ({"lm_head.weight": (vocabulary, width)} if head else {})


def arrays_of(shapes: Mapping[str, tuple[int, ...]], density: float = 0.3) -> dict[str, Any]:
    """Bool arrays of a model."""
    rng = np.random.default_rng(0)
    return {name: rng.random(shape) < density for name, shape in shapes.items()}


def mask_of(arrays: Mapping[str, Any]) -> Mask:
    """A mask made against some base."""
    base = {name: BaseTensor("F32", f"{i:032x}") for i, name in enumerate(arrays)}
    return Mask.from_arrays(arrays, base=base, provenance={"steps": [{"step": "extract"}]})


def saved(folder: Path, shapes: Mapping[str, tuple[int, ...]], config: str = "{}") -> Path:
    """A checkpoint of a model."""
    folder.mkdir()
    weights = {name: random_bits(shape, seed) for seed, (name, shape) in enumerate(shapes.items())}
    (folder / "model.safetensors").write_bytes(tensors_bytes(weights))
    (folder / "config.json").write_text(config)
    return folder


def base_of(folder: Path) -> dict[str, BaseTensor]:
    """What the tensors of a checkpoint are."""
    with open_checkpoint(folder) as checkpoint:
        return {
            name: BaseTensor(tensor.dtype.name, xxhash.xxh3_128_hexdigest(tensor.read().tobytes()))
            for name, tensor in checkpoint.tensors.items()
        }


def test_the_same_shapes_keep_their_bits(tmp_path: Path) -> None:
    arrays = arrays_of(model())
    other = saved(tmp_path / "other", dict(reversed(model().items())))
    mask = mask_of(arrays)
    made = Mask.of(transfer(mask, other))
    assert made == mask
    assert made.names == tuple(reversed(mask.names))
    assert made.base == base_of(other)
    before, step = made.provenance["steps"]
    assert before == {"step": "extract"}
    to = step.pop("to")
    assert (to["id"], to["num_tensors"]) == (str(other), len(arrays))
    assert step == {
        "step": "transfer",
        "of": mask.digest,
        "maps": [],
        "layers": None,
        "seed": None,
        "by_density": [],
        "common_rows": [],
        "not_in_mask": [],
        "left_out": [],
    }


def test_from_file_to_file(tmp_path: Path) -> None:
    mask = mask_of(arrays_of(model()))
    mask.save(tmp_path / "m")
    other = saved(tmp_path / "other", model(3, 16))
    maps = ["layers=interpolate", "units=density"]
    with open_mask(tmp_path / "m") as stored:
        transfer(stored, other, maps=maps, seed=4).save(tmp_path / "t")
    made = Mask.of(transfer(mask, other, maps=maps, seed=4))
    assert Mask.load(tmp_path / "t") == made
    assert Mask.load(tmp_path / "t").base == made.base == base_of(other)


@pytest.mark.parametrize("vocabulary", [1, 16, 20, 22, 64])
def test_another_vocabulary_keeps_the_rows_of_its_tokens(tmp_path: Path, vocabulary: int) -> None:
    arrays = arrays_of(model(width=7, head=True))
    other = saved(tmp_path / "other", model(width=7, vocabulary=vocabulary, head=True))
    made = Mask.of(transfer(mask_of(arrays), other))
    common = min(21, vocabulary)
    resized = ["model.embed_tokens.weight", "lm_head.weight"]
    for name in made:
        expected = arrays[name]
        if name in resized:
            expected = np.zeros((vocabulary, 7), dtype=np.bool_)
            expected[:common] = arrays[name][:common]
        np.testing.assert_array_equal(made.array(name), expected)
    assert made.provenance["steps"][1]["common_rows"] == [
        {"name": name, "shape": [vocabulary, 7], "mask_shape": [21, 7]} for name in resized
    ]
    assert made.provenance["steps"][1]["maps"] == []


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (1, [0]),
        (2, [0, 4]),
        (3, [0, 2, 4]),
        (4, [0, 1, 3, 4]),  # 0, 4/3, 8/3, 4
        (9, [0, 1, 1, 2, 2, 3, 3, 4, 4]),  # halves are rounded up
    ],
)
def test_layers_are_interpolated_when_asked_to(
    tmp_path: Path, depth: int, layers: list[int]
) -> None:
    arrays = arrays_of(model())
    other = saved(tmp_path / "other", model(depth))
    made = Mask.of(transfer(mask_of(arrays), other, maps=["layers=interpolate"]))
    assert set(made) == set(model(depth))
    for name in made:
        source = name
        for layer, before in enumerate(layers):
            if f".{layer}." in name:
                source = name.replace(f".{layer}.", f".{before}.")
        np.testing.assert_array_equal(made.array(name), arrays[source])
    step = made.provenance["steps"][1]
    assert step["layers"] == {str(layer): before for layer, before in enumerate(layers)}
    assert step["maps"] == ["layers=interpolate"]
    passed_over = [n for n in arrays if ".layers." in n and int(n.split(".")[2]) not in layers]
    assert step["left_out"] == passed_over


def test_a_layer_far_out_costs_nothing(tmp_path: Path) -> None:
    """Indices are words of a stranger: nothing is allocated by them."""
    far = {name.replace(".2.", ".999999999."): shape for name, shape in model(3).items()}
    other = saved(tmp_path / "other", far)
    made = Mask.of(transfer(mask_of(arrays_of(model())), other, maps=["layers=interpolate"]))
    assert made.provenance["steps"][1]["layers"] == {"0": 0, "1": 0, "999999999": 4}
    assert set(made) == set(far)


def test_densities_of_rows_are_carried_when_asked_to(tmp_path: Path) -> None:
    shapes = model()
    arrays = arrays_of(shapes)
    up = "model.layers.1.mlp.up_proj.weight"
    arrays[up] = np.arange(12)[:, None] * np.ones(8) > np.full((12, 8), np.arange(8) * 1.5)
    wider = model(width=16, inner=23, vocabulary=30)
    other = saved(tmp_path / "other", wider)
    made = Mask.of(transfer(mask_of(arrays), other, maps=["units=density"], seed=3))
    # Row i of 23 stands for row i·11/22 of 12, rounded half up.
    before = arrays[up].sum(axis=1)[[(i + 1) // 2 for i in range(23)]]
    np.testing.assert_array_equal(made.array(up).sum(axis=1), 2 * before)
    embed = made.array("model.embed_tokens.weight")
    np.testing.assert_array_equal(
        embed[:21].sum(axis=1), 2 * arrays["model.embed_tokens.weight"].sum(axis=1)
    )
    assert not embed[21:].any()  # tokens that the mask knows nothing of
    for name, shape in wider.items():
        assert made.shape(name) == shape
        if "norm" in name:  # one row
            assert made.num_selected(name) == 2 * arrays[name].sum()
    step = made.provenance["steps"][1]
    assert (step["maps"], step["seed"]) == (["units=density"], 3)
    assert step["by_density"] == list(wider)
    again = transfer(mask_of(arrays), other, maps=["units=density"], seed=3)
    assert Mask.of(again) == made
    assert Mask.of(transfer(mask_of(arrays), other, maps=["units=density"])) != made


def test_no_width_loses_what_is_rare(tmp_path: Path) -> None:
    """A row of one in eight becomes half of one in four: every other row has it."""
    arrays = arrays_of({"w": (40, 8)}, density=0)
    arrays["w"][:, 5] = True
    other = saved(tmp_path / "other", {"w": (40, 4)})
    made = Mask.of(transfer(Mask.from_arrays(arrays), other, maps=["units=density"]))
    assert made.num_selected() == 20
    assert made.array("w").sum(axis=1).max() == 1


def test_experts_stay_apart(tmp_path: Path) -> None:
    """Each axis before the last is carried by itself."""
    arrays = {"experts.up_proj": np.zeros((3, 4, 5), dtype=np.bool_)}
    arrays["experts.up_proj"][1] = True
    other = saved(tmp_path / "other", {"experts.up_proj": (3, 7, 10)})
    made = Mask.of(transfer(Mask.from_arrays(arrays), other, maps=["units=density"]))
    assert made.array("experts.up_proj").sum(axis=(1, 2)).tolist() == [0, 70, 0]


def test_a_tensor_without_elements_is_carried(tmp_path: Path) -> None:
    for before, after in (((0, 3), (2, 4)), ((2, 3), (2, 0)), ((2, 0), (2, 5))):
        other = saved(tmp_path / f"{before}{after}", {"w": after, "v": (2,)})
        arrays = {"w": np.ones(before, np.bool_), "v": np.ones(2, np.bool_)}
        made = Mask.of(transfer(Mask.from_arrays(arrays), other, maps=["units=density"]))
        assert (made.shape("w"), made.num_selected("w")) == (after, 0)


def test_what_only_one_side_has_is_told(tmp_path: Path) -> None:
    shapes = model()
    arrays = arrays_of(shapes)
    buffer = {"rotary.inv_freq": np.zeros(4, dtype=np.bool_)}
    other = saved(tmp_path / "other", model(head=True))
    made = Mask.of(transfer(mask_of(arrays | buffer), other))
    assert set(made) == set(shapes)
    step = made.provenance["steps"][1]
    assert step["not_in_mask"] == ["lm_head.weight"]
    assert step["left_out"] == ["rotary.inv_freq"]


TIED = '{"tie_word_embeddings": true, "architectures": ["LlamaForCausalLM"]}'


@pytest.mark.parametrize(
    ("other", "maps", "words"),
    [
        (model(4), [], ["it is of 5 layers, and OTHER has 4; ", "--map layers=interpolate"]),
        (model(6), ["units=density"], ["it is of 5 layers, and OTHER has 6. "]),
        (
            model(width=16),
            ["layers=interpolate"],
            [
                "model.embed_tokens.weight has shape (21, 8), and (21, 16) there; "
                "model.layers.0.self_attn.q_proj.weight has shape (8, 8), and (16, 16) there; ",
                "; and 12 more. ",
                "needs it named: --map units=density",
            ],
        ),
        (model(2, 16), [], ["--map layers=interpolate --map units=density"]),
        (
            {**model(), "model.norm.weight": (8, 1)},
            ["units=density"],
            ["model.norm.weight has shape (8,), and (8, 1) there. Expected a checkpoint with"],
        ),
        (
            {name.replace("up_proj", "fc_in"): shape for name, shape in model().items()},
            ["layers=interpolate", "units=density"],
            ["model.layers.0.mlp.up_proj.weight is not there; ", "layers.4.mlp.up_proj.weight is"],
        ),
        (
            {name.replace("up_proj", "fc_in"): shape for name, shape in model(9).items()},
            ["layers=interpolate"],
            ["model.layers.4.mlp.up_proj.weight is not there. Expected a checkpoint"],
        ),
        ({"w": (3,)}, [], ["model.embed_tokens.weight is not there; ", "and 12 more"]),
    ],
)
def test_what_cannot_be_carried_is_refused(
    tmp_path: Path, other: Shapes, maps: list[str], words: list[str]
) -> None:
    folder = saved(tmp_path / "other", other)
    with pytest.raises(MaskMismatchError) as caught:
        transfer(mask_of(arrays_of(model())), folder, maps=maps)
    message = str(caught.value).replace(str(folder), "OTHER")
    assert message.startswith("the mask does not transfer to OTHER: ")
    for word in words:
        assert word in message


def test_a_tied_head_is_not_there(tmp_path: Path) -> None:
    other = saved(tmp_path / "other", model(), TIED)
    mask = mask_of(arrays_of(model(head=True)))
    with pytest.raises(
        MaskMismatchError, match=r"lm_head\.weight is not there, where model\.embed"
    ):
        transfer(mask, other)


def test_a_mask_of_nothing_that_is_there(tmp_path: Path) -> None:
    other = saved(tmp_path / "other", model())
    with pytest.raises(MaskMismatchError, match="it has no tensor that could be carried"):
        transfer(Mask.from_arrays({"w": np.zeros(3, dtype=np.bool_)}), other)


def test_an_unknown_map(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="no map 'layers=nearest': expected layers=interpolate or"):
        transfer(mask_of(arrays_of(model())), tmp_path, maps=["layers=nearest"])


def test_shares_of_the_whole_are_kept(tmp_path: Path) -> None:
    """Of every tensor, within half an element, whatever the widths."""
    arrays = arrays_of({"a.weight": (50, 30), "b.weight": (7, 101), "c.bias": (64,)}, 0.07)
    other = saved(tmp_path / "other", {"a.weight": (50, 47), "b.weight": (7, 13), "c.bias": (99,)})
    made = Mask.of(transfer(Mask.from_arrays(arrays), other, maps=["units=density"]))
    for name, array in arrays.items():
        expected = Fraction(int(array.sum()) * made.num_elements(name), array.size)
        assert abs(made.num_selected(name) - expected) <= Fraction(1, 2)
