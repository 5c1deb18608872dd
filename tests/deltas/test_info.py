"""What a delta tells, by itself and with its base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import trimtab
from tests.deltas.building import moved, random_bits, write_folder
from trimtab.elements.dtypes import DTYPES
from trimtab.errors import DeltaError
from trimtab.report import html_of, text_of


def test_distances_are_those_of_a_comparison(tmp_path: Path) -> None:
    """Every dtype, any bits: NaNs and zeros too."""
    old = {name: (name, random_bits(name, (8, 9), i)) for i, name in enumerate(DTYPES)}
    new = {name: (dtype, moved(bits, 0.4, 3)) for name, (dtype, bits) in old.items()}
    old["norm"], new["norm"] = (("BF16", np.arange(100, 105, dtype=np.uint16) + k) for k in (0, 3))
    old["scalar"], new["scalar"] = (("F32", np.array(k, np.uint32)) for k in (7, 5))
    old["empty"] = new["empty"] = ("BF16", np.zeros((0, 4), np.uint16))
    base, tuned = write_folder(tmp_path / "base", old), write_folder(tmp_path / "tuned", new)
    trimtab.make_delta(base, tuned, tmp_path / "x.delta")
    shown = trimtab.delta_info(tmp_path / "x.delta", base).by_name()
    compared = {change.name: change for change in trimtab.compare(base, tuned).tensors}
    assert shown.keys() == compared.keys()
    for name, entry in shown.items():
        assert entry.ulp_histogram == compared[name].counts.plain_ulp_histogram(), name
        assert entry.num_changed == compared[name].counts.num_changed["bits"], name
    assert shown["norm"].ulp_histogram == {"3": 5}
    assert shown["scalar"].ulp_histogram == {"-2": 1}


def test_by_itself_and_with_the_base(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0x3F00, 0x4000, (60, 40)).astype(np.uint16)
    tuned = values + np.random.default_rng(1).choice([0, 0, 0, 1, 1, 2, 20], values.shape)
    tuned = np.concatenate([tuned.astype(np.uint16), values[:2]])
    name = "model.layers.0.self_attn.q_proj.weight"
    base = write_folder(tmp_path / "base", {name: ("BF16", values)})
    made = trimtab.make_delta(
        base, write_folder(tmp_path / "tuned", {name: ("BF16", tuned)}), tmp_path / "x.delta"
    )
    alone = trimtab.delta_info(tmp_path / "x.delta")
    assert alone == made and "flat positions" in text_of(alone)
    assert "ulp" not in text_of(alone) and "flat limit" not in text_of(alone)

    full = trimtab.delta_info(tmp_path / "x.delta", base, threads=1)
    (entry,) = full.tensors
    steps = (tuned[:60].astype(int) - values).reshape(-1)
    wanted = {"1": (steps == 1).sum(), "2": (steps == 2).sum(), "17..32": (steps == 20).sum()}
    assert entry.ulp_histogram == wanted
    assert entry.num_changed == sum(wanted.values()) + 80
    text = text_of(full)
    assert f"17..32          0        {wanted['17..32']}" in text
    assert "80 changed elements have no distance" in html_of(full)
    full.save(tmp_path / "x.json")
    assert trimtab.load_result(tmp_path / "x.json") == full

    # The flat limit: positions, and distances of which 17..32 leaves four bits open.
    num, size = entry.num_changed, tuned.size
    counts = np.array([*wanted.values(), 80])
    bits = num * np.log2(size / num) + (size - num) * np.log2(size / (size - num))
    bits += (counts * np.log2(num / counts)).sum() + 4 * wanted["17..32"] + 80 * 16
    assert f"{100 * bits / 8 / tuned.nbytes:.2f} %" in text

    with pytest.raises(DeltaError, match="the delta was applied before"):
        trimtab.delta_info(tmp_path / "x.delta", tmp_path / "tuned")


def test_a_histogram_that_no_delta_has(tmp_path: Path) -> None:
    weight = random_bits("BF16", (4, 6), 1)
    base = write_folder(tmp_path / "base", {"w": ("BF16", weight)})
    tuned = write_folder(tmp_path / "tuned", {"w": ("BF16", weight + np.uint16(1))})
    data = trimtab.make_delta(base, tuned, tmp_path / "x.delta").to_dict()
    for histogram, message in (
        ({"x": 1}, "which is no distance"),
        ({"1": 1000}, "counts more than 24 elements"),
    ):
        data["tensors"][0]["ulp_histogram"] = histogram
        with pytest.raises(trimtab.TrimtabError, match=message):
            trimtab.Manifest.from_dict(data)
