"""Predictions of a probe against casts of the same weights, settings and merging."""

from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest

from trimtab.elements.dtypes import DTYPES
from trimtab.errors import AnalysisError
from trimtab.measure.precision import PrecisionProbe

BF16 = DTYPES["BF16"]
PREDICTIONS = ("one_step", "random_walk", "straight_line", "adam_bound")


def weights(count: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(count) * 0.02).astype(np.float32)


def test_counts_equal_those_of_real_casts() -> None:
    probe = PrecisionProbe(lr=1e-5, steps=7, betas=(0.9, 0.95))
    bits = BF16.encode(weights(5000))
    probe.add("q_proj", bits, BF16)
    result = probe.to_dict()
    value = BF16.decode(bits)

    def movable(distance: float) -> int:
        up = BF16.decode(BF16.encode((value + distance).astype(np.float32)))
        down = BF16.decode(BF16.encode((value - distance).astype(np.float32)))
        return int(((up != value) | (down != value)).sum())

    entry = result["by_kind"]["q_proj"]
    assert entry == result["total"]
    assert entry["num_elements"] == 5000
    assert entry["dtypes"] == {"BF16": 5000}
    assert entry["one_step"] == movable(1e-5)
    assert entry["straight_line"] == movable(7e-5)
    assert entry["adam_bound"] == movable(result["adam_displacement_bound"])
    assert 0 < entry["one_step"] < entry["straight_line"] <= entry["adam_bound"] < 5000
    assert result["adam_displacement_bound"] > 7e-5
    assert result["adam_step_bound"] == pytest.approx(1e-5, rel=0.01)
    for name in PREDICTIONS:
        assert entry["sparsity"][name] == (5000 - entry[name]) / 5000


def test_an_fp32_master_saved_as_bf16_changes_as_the_random_walk_predicts() -> None:
    lr, steps = 5e-7, 300
    bits = BF16.encode(weights(200_000))
    probe = PrecisionProbe(lr=lr, steps=steps)
    probe.add("q_proj", bits, BF16)
    rng = np.random.default_rng(1)
    master = BF16.decode(bits) + lr * sqrt(steps) * rng.standard_normal(bits.size)
    changed = BF16.decode(BF16.encode(master.astype(np.float32))) != BF16.decode(bits)
    predicted = probe.to_dict()["total"]["random_walk"]
    # Elements are independent: the deviation of a count is below the root of its mean.
    assert abs(changed.sum() - predicted) < 4 * sqrt(predicted)


def test_chunks_and_merged_probes_equal_the_whole() -> None:
    f32 = DTYPES["F32"]
    parts = [("q_proj", BF16.encode(weights(3000))), ("norm", BF16.encode(np.ones(64)))]
    whole = PrecisionProbe(lr=1e-6, steps=100)
    left, right = PrecisionProbe(lr=1e-6, steps=100), PrecisionProbe(lr=1e-6, steps=100)
    for kind, bits in parts:
        whole.add(kind, bits, BF16)
        left.add(kind, bits[: len(bits) // 3], BF16)
        right.add(kind, bits[len(bits) // 3 :], BF16)
    for probe in (whole, right):
        probe.add("q_proj", f32.encode(weights(100, seed=2)), f32)
        probe.add("q_proj", np.arange(5, dtype=np.uint32), DTYPES["I32"])
    merged = left + right
    assert merged.to_dict() == whole.to_dict()
    assert left.to_dict()["by_kind"]["q_proj"]["num_elements"] == 1000  # inputs left alone
    assert whole.to_dict()["by_kind"]["q_proj"]["dtypes"] == {"BF16": 3000, "F32": 100}


def test_totals_are_sums_over_kinds() -> None:
    probe = PrecisionProbe(lr=1e-5, steps=20)
    probe.add("q_proj", BF16.encode(weights(1000)), BF16)
    probe.add("norm", BF16.encode(np.ones(10)), BF16)
    result = probe.to_dict()
    for name in ("num_elements", *PREDICTIONS):
        total = sum(entry[name] for entry in result["by_kind"].values())
        assert result["total"][name] == pytest.approx(total)
    assert result["by_kind"]["norm"]["adam_bound"] == 0


def test_elements_that_cannot_be_predicted_are_counted_apart() -> None:
    probe = PrecisionProbe(lr=1.0, steps=1)
    probe.add("q_proj", BF16.encode(np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])), BF16)
    probe.add("mask", np.zeros((2, 3), dtype=np.uint8), DTYPES["BOOL"])
    result = probe.to_dict()
    assert result["by_kind"]["q_proj"]["num_nonfinite"] == 3
    assert result["by_kind"]["q_proj"]["one_step"] == 2  # a zero moves under any step
    assert result["by_kind"]["mask"]["num_not_float"] == 6
    assert result["by_kind"]["mask"]["adam_bound"] == 0
    assert result["total"]["num_elements"] == 11


def test_result_is_plain_json_also_when_empty() -> None:
    result = PrecisionProbe(lr=1e-6, steps=1).to_dict()
    assert result["by_kind"] == {}
    assert result["total"]["sparsity"] == dict.fromkeys(PREDICTIONS)
    probe = PrecisionProbe(lr=1e-6, steps=10)
    probe.add("q_proj", BF16.encode(weights(10)), BF16)
    assert json.loads(json.dumps(probe.to_dict(), allow_nan=False)) == probe.to_dict()


@pytest.mark.parametrize(
    ("lr", "steps", "betas", "message"),
    [
        (0.0, 1, (0.9, 0.999), "learning rate"),
        (float("nan"), 1, (0.9, 0.999), "learning rate"),
        (float("inf"), 1, (0.9, 0.999), "learning rate"),
        (1e-6, 0, (0.9, 0.999), "steps"),
        (1e-6, 1, (0.9, 1.0), "betas"),
        (1e-6, 1, (0.9, 0.5), "betas"),
        (1e-6, 1, (-0.1, 0.9), "betas"),
    ],
)
def test_settings_out_of_range_are_refused(
    lr: float, steps: int, betas: tuple[float, float], message: str
) -> None:
    with pytest.raises(AnalysisError, match=message):
        PrecisionProbe(lr=lr, steps=steps, betas=betas)


def test_probes_of_different_settings_do_not_add() -> None:
    with pytest.raises(AnalysisError, match="different settings"):
        PrecisionProbe(lr=1e-6, steps=1) + PrecisionProbe(lr=1e-6, steps=2)
