"""A packed mask is the same mask again, with its base only, or it is refused."""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trimtab
from tests.cli.conftest import run as run
from tests.deltas.building import random_bits, write_folder
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import MaskError, MaskMismatchError, OutputExistsError
from trimtab.masks.header import BaseTensor
from trimtab.masks.mask import Mask


def made(
    folder: Path, density: float = 0.3, shape: tuple[int, ...] = (40, 30)
) -> tuple[Path, Path]:
    """A base, and a mask of one of its tensors that was made against it."""
    weight = random_bits("BF16", shape, 0)
    base = write_folder(
        folder / "base",
        {"w": ("BF16", weight), "other": ("F32", random_bits("F32", (3,), 0))},
    )
    with trimtab.open_checkpoint(base) as checkpoint:
        digest = {"w": BaseTensor("BF16", _hash(checkpoint.tensors["w"].read()))}
    selected = np.random.default_rng(0).random(shape) < density
    mask = Mask.from_arrays({"w": selected}, base=digest, provenance={"steps": [{"step": "x"}]})
    mask.save(folder / "mask.safetensors")
    return base, folder / "mask.safetensors"


def _hash(bits: Any) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(bits.tobytes())


@settings(max_examples=25, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=3),
    shape=st.sampled_from([(), (0,), (1,), (9,), (3, 5), (2, 0, 3), (4, 1, 3)]),
    density=st.sampled_from([0.0, 0.1, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_any_mask_of_any_base(
    dtypes: list[str], shape: tuple[int, ...], density: float, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(seed)
        base = write_folder(
            folder / "base",
            {f"t{n}": (d, random_bits(d, shape, seed + n)) for n, d in enumerate(dtypes)},
        )
        mask = Mask.from_arrays(
            {f"t{n}": np.asarray(rng.random(shape) < density) for n in range(len(dtypes))}
        )
        mask.save(folder / "mask.safetensors")
        size = trimtab.pack_mask(mask, base, folder / "packed.safetensors")
        assert size == (folder / "packed.safetensors").stat().st_size
        found = trimtab.unpack_mask(folder / "packed.safetensors", base, folder / "m.safetensors")
        assert found == mask.digest
        raw = (folder / "m.safetensors").read_bytes()
        assert raw == (folder / "mask.safetensors").read_bytes()


def test_what_follows_from_the_exponent_costs_next_to_nothing(tmp_path: Path) -> None:
    bits = random_bits("BF16", (1000, 1000), 0)
    base = write_folder(tmp_path / "base", {"w": ("BF16", bits)})
    by_exponent = Mask.from_arrays({"w": (bits >> 7) & 0xFF < 120})
    at_random = Mask.from_arrays({"w": np.random.default_rng(0).random(bits.shape) < 0.1})
    assert trimtab.pack_mask(by_exponent, base, tmp_path / "a.safetensors") < 4000
    entropy = 1e6 / 8 * -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    size = trimtab.pack_mask(at_random, base, tmp_path / "b.safetensors")
    assert entropy < size < 1.05 * entropy


def test_the_command_line(run: Callable[..., Any], tmp_path: Path) -> None:
    base, mask = made(tmp_path)
    packed, out = tmp_path / "p.safetensors", tmp_path / "out.safetensors"
    done = run("mask", "pack", mask, "--base", base, "-o", packed)
    assert done.code == 0
    size = packed.stat().st_size
    assert f"{size:,} bytes, {8 * size / 1200:.3f} bits an element, " in done.err
    assert f"{mask.stat().st_size / size:.2f} times smaller than the mask" in done.err
    done = run("mask", "unpack", packed, "--base", base, "-o", out)
    assert done.err == f"wrote {out}: digest {Mask.load(mask).digest}\n"
    assert out.read_bytes() == mask.read_bytes()


def test_names_of_a_wrapper_are_those_of_the_base(tmp_path: Path) -> None:
    base, path = made(tmp_path)
    mask = Mask.load(path)
    wrapped = mask.renamed({"w": "_orig_mod.w"})
    wrapped.save(tmp_path / "wrapped.safetensors")
    trimtab.pack_mask(tmp_path / "wrapped.safetensors", base, tmp_path / "p.safetensors")
    trimtab.unpack_mask(tmp_path / "p.safetensors", base, tmp_path / "out.safetensors")
    assert Mask.load(tmp_path / "out.safetensors") == Mask.load(tmp_path / "wrapped.safetensors")


def test_another_base_is_refused(tmp_path: Path) -> None:
    base, mask = made(tmp_path)
    packed, out = tmp_path / "p.safetensors", tmp_path / "out.safetensors"
    trimtab.pack_mask(mask, base, packed)
    with pytest.raises(OutputExistsError, match="exists already"):
        trimtab.pack_mask(mask, base, packed)
    changed = write_folder(tmp_path / "changed", {"w": ("BF16", random_bits("BF16", (40, 30), 1))})
    smaller = write_folder(tmp_path / "smaller", {"w": ("BF16", random_bits("BF16", (40, 3), 1))})
    none = write_folder(tmp_path / "none", {"v": ("BF16", random_bits("BF16", (40, 3), 1))})
    for other, reason in {
        changed: "w has the digest|w of the base has the digest",
        smaller: re.escape("has one of shape [40, 3]: w, of shape [40, 30] in the mask"),
        none: "has no such tensor: w",
    }.items():
        with pytest.raises(MaskMismatchError, match=reason):
            trimtab.pack_mask(mask, other, out)
        with pytest.raises(MaskMismatchError, match=reason):
            trimtab.unpack_mask(packed, other, out)
    assert not out.exists()


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    base, mask = made(tmp_path)
    packed, out = tmp_path / "p.safetensors", tmp_path / "out.safetensors"
    trimtab.pack_mask(mask, base, packed)
    with pytest.raises(MaskError, match="not a packed mask: expected a file from `trimtab mask"):
        trimtab.unpack_mask(mask, base, out)
    raw = packed.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = json.loads(header["__metadata__"]["tensors"])["w"]
    for changes, reason in (
        ({"shape": [2**40, 2**40]}, "of shape"),
        ({"shape": -1}, "not lists of sizes"),
        ({"frames": [0, 2**62]}, "has frames of"),
        ({"frames": [0.5]}, "not lists of sizes"),
        ({"num_selected": 2000}, "expected a number from 0 to 1200"),
        ({"num_selected": 7}, "and the file says 7"),
        ({"num_selected": 0}, "has the digest"),
        ({"coded_with": ["w"]}, "was not coded with a name and a hash"),
        ({"base": []}, "expected dtype and digest"),
        ({"frames": [*entry["frames"], 0]}, "frames do not fit"),
    ):
        metadata = {**header["__metadata__"], "tensors": json.dumps({"w": {**entry, **changes}})}
        text = json.dumps({**header, "__metadata__": metadata}).encode()
        packed.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        with pytest.raises(MaskError, match=reason):
            trimtab.unpack_mask(packed, base, out)
    rng, expected = random.Random(0), Mask.load(mask)
    for _ in range(300):
        damaged = bytearray(raw)
        damaged[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        packed.write_bytes(damaged[: rng.choice([len(raw), rng.randrange(len(raw))])])
        out.unlink(missing_ok=True)
        try:
            trimtab.unpack_mask(packed, base, out)
        except MaskError:
            assert not out.exists()
        else:  # in the provenance, or in a digit that says less than it could
            assert Mask.load(out) == expected
