"""`Mask` against the bool arrays that it was made of."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given

from tests.masks.masks import SHAPES, any_mask, arrays, example_mask
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks import packed
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask


def test_says_what_its_arrays_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "CHUNK_BYTES", 7)  # several chunks, and a tensor ends inside one
    made = arrays()
    mask = Mask.from_arrays(made)
    assert mask.names == tuple(made) == tuple(mask)
    assert len(mask) == len(made)
    for name, array in made.items():
        assert name in mask
        assert mask.shape(name) == array.shape
        assert mask.num_elements(name) == array.size
        assert mask.num_selected(name) == array.sum()
        assert mask.array(name).dtype == np.bool_
        np.testing.assert_array_equal(mask.array(name), array)
        assert mask.indices(name).dtype == np.int64
        np.testing.assert_array_equal(mask.indices(name), np.flatnonzero(array))
    num_selected = sum(int(array.sum()) for array in made.values())
    num_elements = sum(array.size for array in made.values())
    assert (mask.num_selected(), mask.num_elements()) == (num_selected, num_elements)
    assert mask.density == num_selected / num_elements
    assert "absent" not in mask


def test_the_first_element_is_the_lowest_bit() -> None:
    mask = Mask.from_arrays({"w": np.array([1, 0, 0, 1, 0, 0, 0, 0, 1, 1], dtype=np.bool_)})
    assert mask.packed("w").tolist() == [0b00001001, 0b00000011]


def test_elements_are_counted_in_c_order() -> None:
    array = np.zeros((3, 5), dtype=np.bool_, order="F")
    array[1, 2] = True
    assert Mask.from_arrays({"w": array}).indices("w").tolist() == [7]
    assert Mask.from_arrays({"w": array.T}).indices("w").tolist() == [7]
    array[2, 0] = True
    assert Mask.from_arrays({"w": array.T}).indices("w").tolist() == [2, 7]


def test_nothing_can_be_written_to_it() -> None:
    made = arrays()
    mask = Mask.from_arrays(made, provenance=(message := {"steps": [{"step": "mine"}]}))
    digest = mask.digest
    made["model.norm.weight"][:] = True
    message["steps"].append({"step": "forged"})
    with pytest.raises(ValueError, match="read-only"):
        mask.packed("model.norm.weight")[0] = 255
    with pytest.raises(TypeError):
        mask.base["w"] = BaseTensor("BF16", "0" * 32)  # type: ignore[index]
    with pytest.raises(TypeError):
        mask.provenance["command"] = "other"  # type: ignore[index]
    mask.array("model.norm.weight")[:] = True
    assert Mask.from_arrays(arrays()) == mask
    assert mask.digest == digest
    assert mask.provenance == {"steps": [{"step": "mine"}]}


def test_the_digest_is_over_names_shapes_and_bits() -> None:
    made = {"b": np.array([True, False]), "a": np.array([[True]])}
    hashed = b'["a", [1, 1]]' + b"\x01" + b'["b", [2]]' + b"\x01"
    mask = Mask.from_arrays(made)
    assert mask.digest == xxhash.xxh3_128_hexdigest(hashed)
    assert mask.digest == Mask.from_arrays(dict(reversed(made.items()))).digest
    for other in (
        {**made, "a": np.array([[False]])},
        {**made, "a": np.array([True])},
        {"b": made["b"], "c": made["a"]},
        {"b": made["b"]},
    ):
        assert Mask.from_arrays(other).digest != mask.digest
        assert Mask.from_arrays(other) != mask


def test_equality_is_of_what_is_selected() -> None:
    mask = example_mask()
    same = Mask.from_arrays(dict(reversed(arrays().items())))
    assert mask == same
    assert hash(mask) == hash(same)
    assert mask != example_mask(seed=1)
    assert mask != "mask"
    assert pickle.loads(pickle.dumps(mask)) == mask


def test_a_mask_of_nothing() -> None:
    mask = Mask.from_arrays({})
    assert (mask.density, mask.num_selected(), len(mask)) == (0.0, 0, 0)
    assert mask.complement() == mask


def test_the_complement_selects_the_rest() -> None:
    mask = example_mask()
    rest = mask.complement()
    for name, array in arrays().items():
        np.testing.assert_array_equal(rest.array(name), ~array)
        assert rest.num_selected(name) == array.size - array.sum()
        assert np.bitwise_count(rest.packed(name)).sum() == rest.num_selected(name)
    assert rest.complement() == mask
    assert rest.base == mask.base


def test_a_random_mask_has_the_same_counts() -> None:
    mask = example_mask()
    control = mask.random_like(3)
    assert control != mask
    assert control != mask.random_like(4)
    assert control == mask.random_like(3)
    assert [control.num_selected(name) for name in mask] == [mask.num_selected(n) for n in mask]
    assert [control.shape(name) for name in mask] == list(SHAPES.values())
    # A tensor's draw depends on nothing but seed, name, shape and count.
    alone = Mask.from_arrays({"model.norm.weight": mask.array("model.norm.weight")})
    np.testing.assert_array_equal(
        alone.random_like(3).array("model.norm.weight"), control.array("model.norm.weight")
    )


def test_provenance_lists_the_steps() -> None:
    mask = example_mask()
    made = mask.random_like(3).complement().with_provenance(command="trimtab mask complement")
    assert made.provenance["command"] == "trimtab mask complement"
    assert made.provenance["steps"] == [
        {"step": "extract", "criterion": "bits"},
        {"step": "random", "seed": 3, "of": mask.digest},
        {"step": "complement", "of": mask.random_like(3).digest},
    ]
    assert {"trimtab_version", "date"} <= made.provenance.keys()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"arrays": {"a": np.zeros(2), "b": np.zeros(2, np.uint8)}}, "a is float64, b is uint8"),
        ({"arrays": {"a\n": np.zeros(2, np.bool_)}}, r"'a\\n': not names of tensors"),
        ({"arrays": {"__metadata__": np.zeros(2, np.bool_)}}, "'__metadata__'"),
        ({"arrays": {}, "base": {"w": BaseTensor("BF16", "0" * 32)}}, "base has w"),
        (
            {"arrays": {"w": np.zeros(2, np.bool_)}, "base": {"w": BaseTensor("BF16", "0x1")}},
            "base of w: a digest is not 32",
        ),
        ({"arrays": {}, "provenance": {"when": np.float32(1)}}, "cannot be stored as JSON"),
        ({"arrays": {}, "provenance": {"when": float("nan")}}, "cannot be stored as JSON"),
        ({"arrays": {}, "provenance": {"steps": "extract"}}, "not a list of objects"),
        ({"arrays": {}, "provenance": {"steps": ["extract"]}}, "not a list of objects"),
    ],
)
def test_what_is_no_mask(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(MaskError, match=words):
        Mask.from_arrays(**arguments)  # type: ignore[arg-type]


def test_check_lets_the_right_model_pass() -> None:
    mask = example_mask()
    digests = {name: base.digest for name, base in mask.base.items()}
    mask.check(SHAPES)
    mask.check({**SHAPES, "frozen": (3,)}, digests)
    mask.check(SHAPES, {"frozen": "0" * 32})
    # A buffer of the checkpoint that no model has: nothing of it is selected.
    empty = np.zeros((4, 4), dtype=np.bool_)
    Mask.from_arrays({**arrays(), "attn.causal_mask": empty}).check(SHAPES)


def test_check_names_every_mismatch_at_once() -> None:
    mask = example_mask()
    shapes = {**SHAPES, "model.norm.weight": (34,)}
    del shapes["model.layers.0.mlp.up_proj.weight"]
    digests = {name: base.digest for name, base in mask.base.items()}
    digests["model.embed_tokens.weight"] = "f" * 32
    with pytest.raises(MaskMismatchError) as caught:
        mask.check(shapes, digests)
    message = str(caught.value)
    assert "in 3 of its 6 tensors" in message
    assert "model.layers.0.mlp.up_proj.weight is not in the model" in message
    assert "model.norm.weight has shape (34,), in the mask (33,)" in message
    assert f"model.embed_tokens.weight has the digest {'f' * 32}" in message
    assert "scalar" not in message


def test_repr_says_how_much() -> None:
    mask = Mask.from_arrays({"w": np.ones((3, 1000), dtype=np.bool_)})
    assert repr(mask) == f"Mask(3,000 of 3,000 elements in 1 tensor, digest {mask.digest})"


@given(mask=any_mask())
def test_any_mask_round_trips(tmp_path_factory: pytest.TempPathFactory, mask: Mask) -> None:
    path: Path = tmp_path_factory.mktemp("mask") / "m.safetensors"
    mask.save(path)
    loaded = Mask.load(path)
    assert loaded == mask
    assert loaded.names == mask.names
    assert loaded.digest == mask.digest
    assert loaded.base == mask.base
    assert json.dumps(dict(loaded.provenance)) == json.dumps(dict(mask.provenance))
    for name in mask:
        assert loaded.packed(name).tobytes() == mask.packed(name).tobytes()
    assert loaded.complement().complement() == mask
    assert loaded.random_like(1).num_selected() == mask.num_selected()
