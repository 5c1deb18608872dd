"""Set algebra of masks against that of Python's sets, in memory and from file to file."""

from __future__ import annotations

import operator
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.masks.masks import SHAPES, arrays, example_mask
from trimtab.errors import MaskError, MaskMismatchError
from trimtab.masks.algebra import OPERATIONS, Operation, combine, complement, restrict
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask
from trimtab.masks.on_disk import open_mask

Elements: TypeAlias = set[tuple[str, int]]
Operator: TypeAlias = Callable[[Mask, Mask], Mask]

OPERATORS: dict[Operation, Operator] = {
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "minus": operator.sub,
}

MODEL = {"a": (3, 5), "b": (17,), "c": (), "d": (0, 4), "e": (2, 2, 9)}


def elements(mask: Mask) -> Elements:
    """What is selected, as a set."""
    return {(name, int(index)) for name in mask for index in mask.indices(name)}


@st.composite
def masks_of_a_model(draw: st.DrawFn) -> Mask:
    """A mask of some of the tensors of a model."""
    names = draw(st.lists(st.sampled_from(sorted(MODEL)), unique=True))
    return Mask.from_arrays({name: draw(hnp.arrays(np.bool_, MODEL[name])) for name in names})


@given(first=masks_of_a_model(), second=masks_of_a_model())
def test_operators_are_those_of_sets(first: Mask, second: Mask) -> None:
    assert OPERATORS.keys() == OPERATIONS.keys()
    for of_masks in OPERATORS.values():
        made = of_masks(first, second)
        assert elements(made) == of_masks(elements(first), elements(second))  # type: ignore[arg-type]
        assert made.names == (*first, *(name for name in second if name not in first))
        assert all(made.shape(name) == MODEL[name] for name in made)
        for name in made:
            assert made.num_selected(name) == len(made.indices(name))


@given(first=masks_of_a_model())
def test_the_complement_is_of_the_own_tensors(first: Mask) -> None:
    everything = {(name, index) for name in first for index in range(first.num_elements(name))}
    assert elements(~first) == everything - elements(first)
    assert (~first).names == first.names
    assert ~~first == first


@given(first=masks_of_a_model(), second=masks_of_a_model(), third=masks_of_a_model())
def test_laws(first: Mask, second: Mask, third: Mask) -> None:
    assert first & second == second & first
    assert (first | second) | third == first | (second | third)
    assert first ^ second == (first | second) - (first & second)
    assert elements(first & (second | third)) == elements((first & second) | (first & third))


def test_de_morgan_where_both_have_the_same_tensors() -> None:
    first, second = example_mask(0.4), example_mask(0.6, seed=1)
    assert ~(first & second) == ~first | ~second
    assert first - second == first & ~second


@pytest.mark.parametrize("operation", list(OPERATIONS))
def test_from_file_to_file(tmp_path: Path, operation: Operation) -> None:
    first = example_mask(0.4)
    second = Mask.from_arrays({**arrays(0.6, seed=1), "more": np.ones(11, dtype=np.bool_)})
    first.save(tmp_path / "first")
    second.save(tmp_path / "second")
    with open_mask(tmp_path / "first") as one, open_mask(tmp_path / "second") as other:
        made = combine(operation, one, other).with_provenance(command="typed")
        num_selected = made.save(tmp_path / "new" / "made")
    loaded = Mask.load(tmp_path / "new" / "made")
    assert loaded == OPERATORS[operation](first, second)
    assert loaded.num_selected() == num_selected
    assert loaded.provenance["command"] == "typed"


def test_a_file_can_be_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    example_mask().save(path)
    with open_mask(path) as stored:
        complement(stored).save(path, force=True)
    assert Mask.load(path) == ~example_mask()


def test_provenance_keeps_both(tmp_path: Path) -> None:
    first = example_mask().with_provenance(command="first command")
    second = example_mask(seed=1).random_like(3)
    made = first - second
    assert made.provenance["command"] is None
    assert {"trimtab_version", "date"} <= made.provenance.keys()
    assert made.provenance["steps"] == [
        {"step": "minus", "of": [first.digest, second.digest], "base_differs": []}
    ]
    assert made.provenance["made_from"] == {
        first.digest: dict(first.provenance),
        second.digest: dict(second.provenance),
    }
    rest = ~made
    assert [one["step"] for one in rest.provenance["steps"]] == ["minus", "complement"]
    assert rest.provenance["steps"][1]["of"] == made.digest
    assert rest.provenance["made_from"] == made.provenance["made_from"]


def test_provenance_of_a_loop_is_no_deeper_than_of_one() -> None:
    masks = [Mask.from_arrays({"w": np.arange(300) == index}) for index in range(200)]
    made = masks[0]
    for mask in masks[1:]:
        made = made | mask
    made |= masks[0]
    assert made.provenance["made_from"].keys() >= {mask.digest for mask in masks}
    assert all("made_from" not in one for one in made.provenance["made_from"].values())
    assert made.num_selected() == 200


def test_a_mask_is_never_made_from_itself() -> None:
    mask = example_mask()
    made = (mask | mask) & mask
    assert made.digest == mask.digest
    assert made.provenance["made_from"] == {mask.digest: dict(mask.provenance)}


def test_a_base_is_kept_unless_the_masks_contradict_each_other() -> None:
    def mask(**base: str) -> Mask:
        made = {name: np.ones(3, dtype=np.bool_) for name in ("same", "differs", "one", "none")}
        digests = {name: BaseTensor("BF16", digit * 32) for name, digit in base.items()}
        return Mask.from_arrays(made, base=digests)

    made = mask(same="1", differs="2") & mask(same="1", differs="3", one="4")
    assert made.base == {"same": BaseTensor("BF16", "1" * 32), "one": BaseTensor("BF16", "4" * 32)}
    assert made.provenance["steps"][0]["base_differs"] == ["differs"]
    # The same bytes as another dtype are another base.
    fp16 = Mask.from_arrays({"w": np.array([True])}, base={"w": BaseTensor("F16", "1" * 32)})
    bf16 = Mask.from_arrays({"w": np.array([True])}, base={"w": BaseTensor("BF16", "1" * 32)})
    assert not (fp16 | bf16).base


def test_shapes_that_differ_are_told_at_once() -> None:
    first = Mask.from_arrays({n: np.zeros((2, n_), np.bool_) for n_, n in enumerate("abcdefgh", 1)})
    second = Mask.from_arrays({n: np.zeros((2, 9), np.bool_) for n in "abcdefghi"})
    with pytest.raises(MaskMismatchError) as caught:
        first & second
    message = str(caught.value)
    assert "8 of 9 tensors differ in shape" in message
    assert "a is (2, 1), and (2, 9) in mask 2; b is (2, 2)" in message
    assert "and 3 more. Transfer one to the model of the other" in message


def test_only_masks_are_combined() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        example_mask() & {"model.norm.weight"}  # type: ignore[operator]


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    num_bytes, num_tensors = 1 << 18, 24
    for seed in range(2):
        made = {f"w{i}": np.arange(8 * num_bytes) % (3 + seed) == 0 for i in range(num_tensors)}
        Mask.from_arrays(made).save(tmp_path / f"{seed}")
    del made
    tracemalloc.start()
    try:
        with open_mask(tmp_path / "0") as first, open_mask(tmp_path / "1") as second:
            combine("xor", first, second).save(tmp_path / "xor")
            complement(first).save(tmp_path / "complement")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_bytes < peak < 6 * num_bytes < num_tensors * num_bytes


LLAMA = {
    "model.embed_tokens.weight": (6, 4),
    **{
        f"model.layers.{layer}.{name}.weight": (4, 4)
        for layer in range(12)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
    },
    "model.norm.weight": (4,),
}


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({"kinds": ["q_proj"]}, lambda name: "q_proj" in name),
        ({"kinds": ("norm", "k_proj")}, lambda name: "norm" in name or "k_proj" in name),
        ({"layers": [1, 11]}, lambda name: ".1." in name or ".11." in name),
        ({"layers": [2], "kinds": ["up_proj"]}, lambda name: ".2.mlp" in name),
        ({"tensors": ["model.norm.weight"]}, lambda name: "norm" in name),
        ({"tensors": ["*.layers.1?.*attn*"]}, lambda n: ".10.self" in n or ".11.self" in n),
        ({"tensors": ["*norm*", "*embed*"], "kinds": ["embed"]}, lambda name: "embed" in name),
    ],
)
def test_restricted_to_some_tensors(
    conditions: dict[str, list[object]], kept: Callable[[str], bool]
) -> None:
    rng = np.random.default_rng(0)
    made = {name: rng.random(shape) < 0.5 for name, shape in LLAMA.items()}
    base = {name: BaseTensor("BF16", f"{i:032x}") for i, name in enumerate(LLAMA)}
    mask = Mask.from_arrays(made, base=base, provenance={"steps": [{"step": "extract"}]})
    part = mask.restrict(**conditions)  # type: ignore[arg-type]
    assert part.names == tuple(name for name in LLAMA if kept(name)) != ()
    for name in part:
        np.testing.assert_array_equal(part.array(name), made[name])
    assert part.base == {name: base[name] for name in part}
    none = {"kinds": None, "layers": None, "tensors": None}
    result = {key: list(value) for key, value in conditions.items()}
    assert part.provenance["steps"] == [
        {"step": "extract"},
        {"step": "restrict", "of": mask.digest, **none, **result},
    ]


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({}, "expected kinds, layers or tensors"),
        ({"kinds": ["q_prj", "q_proj"]}, "no kinds q_prj; it has embed, k_proj, norm, q_proj, up_"),
        ({"layers": [0, 12, 13]}, "no layers 12, 13; it has 0 to 11"),
        ({"tensors": ["norm", "*"]}, "no tensors norm; its first is model.embed_tokens.weight"),
        ({"kinds": ["norm"], "layers": [3]}, "no tensor of the mask is in all of the kinds and la"),
        ({"kinds": []}, "no tensor of the mask is in all of the kinds given"),
    ],
)
def test_conditions_that_nothing_meets(conditions: dict[str, list[object]], words: str) -> None:
    mask = Mask.from_arrays({name: np.ones(shape, np.bool_) for name, shape in LLAMA.items()})
    with pytest.raises(MaskError, match=words.replace("*", r"\*")):
        restrict(mask, **conditions)  # type: ignore[arg-type]


def test_names_that_look_like_patterns_are_names() -> None:
    mask = Mask.from_arrays({"w[0]": np.array(True), "w0": np.array(True)})
    assert mask.restrict(tensors=["w[0]"]).names == ("w[0]",)
    assert mask.restrict(tensors=["w[0-9]"]).names == ("w0",)


def test_a_mask_without_layers_has_none() -> None:
    mask = Mask.from_arrays({name: np.zeros(shape, np.bool_) for name, shape in SHAPES.items()})
    assert mask.restrict(layers=[0]).names == tuple(name for name in SHAPES if ".0." in name)
    with pytest.raises(MaskError, match="no layers 0; it has none"):
        mask.restrict(kinds=["norm"]).restrict(layers=[0])
    with pytest.raises(MaskError, match="no tensors x; it has none"):
        Mask.from_arrays({}).restrict(tensors=["x"])
