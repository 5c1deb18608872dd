"""Figures over seeds against their definitions; what is saved comes back, what is damaged not."""

from __future__ import annotations

import copy
import json
from math import exp, log
from typing import Any

import numpy as np
import pytest

from tests.training.robustness.results import make_probe
from trimtab.errors import ResultFormatError
from trimtab.results.robustness import Robustness


def told(probe: Robustness, noise: str, level: float, arm: str) -> dict[str, Any]:
    (summary,) = [s for s in probe.summaries() if (s["noise"], s["level"]) == (noise, level)]
    (found,) = [row for row in summary["arms"] if row["arm"] == arm]
    return found


def values(probe: Robustness, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """KL and accuracy of each seed."""
    cells = [c for c in probe.cells if (c.noise, c.level, c.arm) == ("sign", 1.0, arm)]
    cells.sort(key=lambda cell: cell.seed)
    return np.array([c.kl for c in cells]), np.array([(c.num_correct or 0) / 8 for c in cells])


def interval(numbers: np.ndarray) -> list[float]:
    """Mean and t-interval of three numbers; 4.302653 is the quantile of two degrees of freedom."""
    assert len(numbers) == 3
    half = 4.302653 * numbers.std(ddof=1) / 3**0.5
    return [numbers.mean(), numbers.mean() - half, numbers.mean() + half]


def ends(over: dict[str, Any]) -> list[float]:
    return [over["mean"], over["low"], over["high"]]


def test_figures_of_an_arm() -> None:
    probe = make_probe()
    found = told(probe, "sign", 1.0, "random")
    kl, accuracy = values(probe, "random")
    assert ends(found["kl"]) == pytest.approx(interval(kl))
    assert ends(found["accuracy"]) == pytest.approx(interval(accuracy))
    assert found["num_chosen"] == 100
    assert found["share_in_mask"]["mean"] == pytest.approx(0.1)
    assert found["num_changed"]["mean"] == 91
    assert found["relative_norm"]["mean"] == 1.0


def test_the_mask_beside_another_set_seed_by_seed() -> None:
    probe = make_probe()
    beside = told(probe, "sign", 1.0, "magnitude")["mask_beside_it"]
    (kl, right), (other_kl, other_right) = values(probe, "mask"), values(probe, "magnitude")
    assert ends(beside["kl_difference"]) == pytest.approx(interval(kl - other_kl))
    assert ends(beside["accuracy_difference"]) == pytest.approx(
        [1 / 8] * 3 if (right - other_right).std() == 0 else interval(right - other_right)
    )
    expected = np.exp(interval(np.log(kl / other_kl)))
    assert ends(beside["kl_ratio"]) == pytest.approx(expected.tolist())
    ratios = [log(a / b) for a, b in zip(kl, other_kl, strict=True)]
    assert beside["kl_ratio"]["least"] == pytest.approx(exp(min(ratios)))
    assert beside["kl_ratio"]["n"] == 3
    assert told(probe, "sign", 1.0, "mask")["mask_beside_it"] is None


def test_one_seed_has_no_interval() -> None:
    found = told(make_probe(num_seeds=1), "gaussian", 0.1, "outside")
    assert (found["kl"]["low"], found["mask_beside_it"]["kl_ratio"]["high"]) == (None, None)
    assert found["mask_beside_it"]["kl_ratio"]["mean"] == pytest.approx(2)


def test_noise_that_rounding_took_has_no_ratio() -> None:
    probe = make_probe()
    cells = tuple(copy.copy(cell) for cell in probe.cells)
    silent = cells[1]  # outside the mask
    object.__setattr__(silent, "kl", 0.0)
    found = told(make_probe(cells=cells), silent.noise, silent.level, silent.arm)
    assert found["mask_beside_it"]["kl_ratio"] is None
    assert found["mask_beside_it"]["kl_difference"]["n"] == 3


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_a_round_trip(asked: bool, num_seeds: int) -> None:
    data = make_probe(asked=asked, num_seeds=num_seeds).to_dict()
    read = json.loads(json.dumps(data, allow_nan=False))
    assert read == data
    assert Robustness.from_dict(read).to_dict() == data
    assert (data["questions"] is None) == (not asked)


def damaged(change: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(make_probe().to_dict()))
    change(data)
    return dict(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.pop("cells"),
        lambda data: data["cells"].clear(),
        lambda data: data["cells"].pop(),
        lambda data: data["cells"].append(data["cells"][0]),
        lambda data: data["cells"][0].update(kl="much"),
        lambda data: data["cells"][0].update(kl=float("nan")),
        lambda data: data["cells"][0].update(num_correct=9),
        lambda data: data["cells"][0].update(num_correct=None),
        lambda data: data["cells"][0].update(num_changed=101),
        lambda data: data["cells"][0].update(num_chosen=-1),
        lambda data: data["cells"][0].update(noise=3),
        lambda data: data["cells"][0].update(more=1),
        lambda data: data.update(questions=None),
        lambda data: data["questions"].pop("num_questions"),
        lambda data: data.update(arms=["random", "mask"]),
        lambda data: data.update(arms=[]),
        lambda data: data["text"].update(source=3),
        lambda data: data["provenance"].pop("mask"),
        lambda data: data.update(settings=None),
    ],
)
def test_damage_is_one_sentence(change: Any) -> None:
    with pytest.raises(ResultFormatError, match="damaged robustness probe"):
        Robustness.from_dict(damaged(change))


def test_another_format_or_version() -> None:
    with pytest.raises(ResultFormatError, match=r"expected format 'trimtab\.robustness'"):
        Robustness.from_dict(damaged(lambda data: data.update(format="trimtab.identity")))
    with pytest.raises(ResultFormatError, match="run `trimtab robustness` again"):
        Robustness.from_dict(damaged(lambda data: data.update(format_version=2)))
