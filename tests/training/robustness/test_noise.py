"""Noise has exactly the size and the places that it says, in every dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from trimtab.training.perturbation.noise import NOISES, Hit, level_problem, noisy

pytestmark = pytest.mark.train

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MANTISSA = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
INTEGERS: dict[torch.dtype, Any] = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
}


def weights(dtype: torch.dtype = torch.float32, num: int = 4000) -> torch.Tensor:
    values = torch.randn(num, generator=torch.Generator().manual_seed(3)) * 0.1
    values[:7] = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-30, 3e4, -3e4])
    return values.to(dtype)


PLACES = torch.arange(1, 4000, 3)


def bits(values: torch.Tensor) -> np.ndarray:
    """As unsigned integers of any width, in int64."""
    width = 8 * values.element_size()
    return values.view(INTEGERS[values.dtype]).numpy().astype(np.int64) & ((1 << width) - 1)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_given_are_left_as_they_are(noise: str, dtype: torch.dtype) -> None:
    given = weights(dtype)
    before = given.clone()
    after, hit = noisy(given, PLACES, noise, 0.5, seed=0, name="w")
    assert np.array_equal(bits(given), bits(before))
    assert (after.dtype, after.shape) == (dtype, PLACES.shape)
    old, new = before[PLACES].double(), after.double()
    assert hit.num_chosen == len(PLACES)
    assert hit.num_changed == int((bits(after) != bits(before[PLACES])).sum())
    assert hit.squared_noise == pytest.approx(float(((new - old) ** 2).sum()))
    assert hit.squared_weights == pytest.approx(float((old**2).sum()))


@pytest.mark.parametrize("level", [0.01, 0.3, 2.0])
def test_gaussian_noise_has_the_norm_asked_for(level: float) -> None:
    given = weights()[7:]
    places = torch.arange(0, len(given), 2)
    after, hit = noisy(given, places, "gaussian", level, seed=1, name="w")
    assert hit.relative_norm == pytest.approx(level, rel=1e-5)
    drawn = (after - given[places]).double()
    drawn /= drawn.norm() / len(drawn) ** 0.5
    # Standard normal: the mean and the fourth moment of 2,000 draws, within five standard errors.
    assert abs(float(drawn.mean())) < 5 / len(drawn) ** 0.5
    assert abs(float((drawn**4).mean()) - 3) < 5 * (96 / len(drawn)) ** 0.5


@pytest.mark.parametrize("level", [0.01, 0.3, 2.0])
def test_absolute_gaussian_noise_is_relative_to_the_whole_tensor(level: float) -> None:
    given = weights()[7:]
    small = given.abs().argsort()[:500]
    large = given.abs().argsort()[-500:]
    norms = [
        noisy(given, places, "gaussian-absolute", level, seed=1, name="w")[1].squared_noise ** 0.5
        for places in (small, large)
    ]
    rms = float(given.double().square().mean().sqrt())
    assert norms == pytest.approx([level * rms * 500**0.5] * 2, rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.001, 0.37, 1.0])
def test_a_sign_flip_changes_the_sign_bit_and_nothing_else(
    dtype: torch.dtype, level: float
) -> None:
    given = weights(dtype)
    after, hit = noisy(given, PLACES, "sign", level, seed=2, name="w")
    difference = bits(after) ^ bits(given[PLACES])
    sign = 1 << (8 * given.element_size() - 1)
    assert set(difference.tolist()) <= {0, sign}
    assert hit.num_changed == (difference != 0).sum() == round(level * len(PLACES))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("level", [0.001, 0.37, 1.0])
def test_a_bit_flip_changes_one_bit_of_the_mantissa(dtype: torch.dtype, level: float) -> None:
    given = weights(dtype)
    after, hit = noisy(given, PLACES, "bitflip", level, seed=2, name="w")
    difference = bits(after) ^ bits(given[PLACES])
    hits = difference[difference != 0]
    assert hit.num_changed == len(hits) == round(level * len(PLACES))
    assert set(hits.tolist()) <= {1 << place for place in range(MANTISSA[dtype])}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_the_mantissa_is_as_likely(dtype: torch.dtype) -> None:
    num = 40_000
    given = torch.ones(num, dtype=dtype)
    after, _ = noisy(given, torch.arange(num), "bitflip", 1.0, seed=5, name="w")
    places, counts = np.unique(np.log2(bits(after) ^ bits(given)), return_counts=True)
    share = 1 / MANTISSA[dtype]
    assert places.tolist() == list(range(MANTISSA[dtype]))
    assert np.abs(counts - num * share).max() < 5 * (num * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("noise", ["sign", "bitflip"])
def test_the_hit_elements_are_at_random(noise: str) -> None:
    given = torch.ones(20_000)
    after, _ = noisy(given, torch.arange(20_000), noise, 0.3, seed=5, name="w")
    first = int((after != given)[:10_000].sum())
    assert abs(first - 3000) < 5 * (10_000 * 0.3 * 0.7 / 2) ** 0.5


@pytest.mark.parametrize("noise", NOISES)
def test_seed_and_name_decide_the_draw(noise: str) -> None:
    def draw(seed: int, name: str) -> np.ndarray:
        return bits(noisy(weights(), PLACES, noise, 0.5, seed=seed, name=name)[0])

    assert np.array_equal(draw(0, "w"), draw(0, "w"))
    assert not np.array_equal(draw(0, "w"), draw(1, "w"))
    assert not np.array_equal(draw(0, "w"), draw(0, "v"))


def test_levels_scale_the_same_draw() -> None:
    given = weights()[7:].double()
    places = torch.arange(100)
    small, large = (
        noisy(given, places, "gaussian", level, seed=0, name="w")[0] - given[places]
        for level in (0.1, 1.0)
    )
    assert torch.allclose(10 * small, large, rtol=1e-9, atol=0)


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_chosen_is_nothing_done(noise: str) -> None:
    after, hit = noisy(weights(), PLACES[:0], noise, 1.0, seed=0, name="w")
    assert len(after) == 0
    assert hit == Hit()
    assert hit.relative_norm is None


def test_noise_relative_to_zeros_is_zero() -> None:
    after, hit = noisy(torch.zeros(8), torch.arange(8), "gaussian", 1.0, seed=0, name="w")
    assert (hit.num_changed, hit.relative_norm) == (0, None)
    assert not after.any()


def test_hits_add_up() -> None:
    assert Hit(3, 2, 9.0, 16.0) + Hit(1, 1, 16.0, 9.0) == Hit(4, 3, 25.0, 25.0)
    assert Hit(3, 2, 9.0, 16.0).relative_norm == 0.75


@pytest.mark.parametrize(
    ("noise", "level", "words"),
    [
        ("gaussian", 0.0, "a level of 0: expected a number above 0"),
        ("sign", float("nan"), "a level of nan: expected a number above 0"),
        ("gaussian", float("inf"), "a level of inf: expected a number above 0"),
        ("sign", 1.5, "sign at level 1.5: it is a share of the elements, at most 1"),
        ("bitflip", 2.0, "bitflip at level 2: it is a share of the elements, at most 1"),
        ("gaussian-absolute", 2.0, None),
        ("sign", 1.0, None),
    ],
)
def test_levels_that_mean_nothing(noise: str, level: float, words: str | None) -> None:
    assert level_problem(noise, level) == words
