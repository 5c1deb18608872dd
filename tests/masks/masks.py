"""Seeded masks, and strategies that make any mask."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask

SHAPES = {
    "model.embed_tokens.weight": (40, 32),
    "model.layers.0.self_attn.q_proj.weight": (32, 32),
    "model.layers.0.mlp.up_proj.weight": (48, 31),
    "model.norm.weight": (33,),
    "scalar": (),
    "nothing": (0, 5),
}

names = st.text(st.characters(exclude_categories=["C", "Zs", "Zl", "Zp"]), max_size=12)
shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=11)
digests = st.text("0123456789abcdef", min_size=32, max_size=32)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
"""Anything that JSON holds, lone surrogates included."""


@st.composite
def any_mask(draw: st.DrawFn) -> Mask:
    """A mask of a few small tensors, with or without base and provenance."""
    arrays = draw(st.dictionaries(names, hnp.arrays(np.bool_, shapes), max_size=4))
    of_base = st.builds(BaseTensor, st.sampled_from(["BF16", "F32"]), digests)
    base = {name: draw(of_base) for name in arrays if draw(st.booleans())}
    provenance = draw(st.dictionaries(st.text(), plain, max_size=3))
    provenance.pop("steps", None)
    return Mask.from_arrays(arrays, base=base, provenance=provenance)


def arrays(density: float = 0.2, seed: int = 0) -> dict[str, np.ndarray]:
    """Bool arrays of all shapes that matter."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.random(shape) < density) for name, shape in SHAPES.items()}


def example_mask(density: float = 0.2, seed: int = 0) -> Mask:
    """A mask of a few small tensors, made against a base, with a step of provenance."""
    base = {name: BaseTensor("BF16", f"{index:032x}") for index, name in enumerate(SHAPES)}
    return Mask.from_arrays(
        arrays(density, seed),
        base=base,
        provenance={"steps": [{"step": "extract", "criterion": "bits"}]},
    )
