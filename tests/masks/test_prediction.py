"""A prediction scored, against NumPy on the same arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tests.masks.test_average_precision import by_thresholds
from tests.measure.checkpoints import Tensors, llama_tensors, moved, save
from trimtab.checkpoints.checkpoint import open_checkpoint
from trimtab.elements.dtypes import DTYPES, exponent_bins
from trimtab.errors import MaskMismatchError, ResultFormatError
from trimtab.masks.extract import extract_mask
from trimtab.masks.header import BaseTensor
from trimtab.masks.makers.weight_scores import low_magnitude_scores
from trimtab.masks.mask import Mask
from trimtab.masks.prediction import PredictionScore, score_prediction
from trimtab.masks.selection.quotas import Quotas
from trimtab.masks.selection.scores import ArrayScores, write_scores
from trimtab.masks.selection.top_k import select

Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """A base, what changed in it, and a prediction of that by scores."""

    folder: Path
    tensors: Tensors
    true: Mask
    pred: Mask
    scores: Arrays


@pytest.fixture
def case(tmp_path: Path) -> Case:
    tensors = llama_tensors()
    folder = save(tmp_path / "base", tensors)
    true = extract_mask(folder, save(tmp_path / "tuned", moved(tensors)))
    rng = np.random.default_rng(0)
    # Scores of few levels, which know a little of what is true.
    scores = {
        name: np.round(4 * (rng.random(true.shape(name)) + 0.3 * true.array(name))) for name in true
    }
    held = ArrayScores(scores, true.base)
    quotas = Quotas.of_density(0.15, held.shapes, match="total")
    pred = select(held, quotas, seed=0, provenance={"step": "test"})
    return Case(folder, tensors, true, pred, scores)


def joined(arrays: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    return np.concatenate([arrays[name].ravel() for name in names])


def masks_of(case: Case) -> tuple[Arrays, Arrays]:
    pred, true = ({n: mask.array(n) for n in case.true} for mask in (case.pred, case.true))
    return pred, true


def test_shares_are_those_of_the_arrays(case: Case) -> None:
    score = score_prediction(case.pred, case.true, base=case.folder)
    pred, true = masks_of(case)
    for found, names in (
        (score.total, list(pred)),
        (score.by_layer()[1], [name for name in pred if ".1." in name]),
        (score.by_kind()["q_proj"], [name for name in pred if "q_proj" in name]),
    ):
        p, t = joined(pred, names), joined(true, names)
        assert found.precision == (p & t).sum() / p.sum()
        assert found.recall == (p & t).sum() / t.sum()
        assert found.density == t.mean()
        assert found.average_precision == pytest.approx(by_thresholds(p.astype(float), t))
        assert found.lifts["independent"] == pytest.approx(found.precision / t.mean())


def test_the_matched_lift_is_over_every_bin(case: Case) -> None:
    score = score_prediction(case.pred, case.true, base=case.folder)
    pred, true = masks_of(case)
    expected = 0.0
    for name, tensor in case.tensors.items():
        bins = exponent_bins(tensor.view(torch.int16).numpy().view(np.uint16), DTYPES["BF16"])
        for number in np.unique(bins):
            inside = bins == number
            expected += pred[name][inside].sum() * true[name][inside].mean()
    hits = sum((pred[name] & true[name]).sum() for name in pred)
    assert score.total.lifts["magnitude-matched"] == pytest.approx(hits / expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_smallest_weights_are_the_mean_over_ties(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.tensor([0.5, -0.5, 0.25, 0.5, 2.0, -0.5, 1.0, 3.0], dtype=dtype)
    folder = save(tmp_path / "base", {"w": weight}, None)
    true = Mask.from_arrays({"w": np.array([1, 0, 1, 1, 1, 0, 0, 0], dtype=np.bool_)})
    pred = Mask.from_arrays({"w": np.array([0, 0, 0, 0, 1, 1, 1, 0], dtype=np.bool_)})
    quality = score_prediction(pred, true, base=folder).total
    # 0.25 is surely among the three smallest, and two of the four of 0.5, half of which are true.
    assert quality.num_low == 1 + 2 * 2 / 4
    assert quality.lifts["low-magnitude"] == 1 / 2
    nothing = Mask.from_arrays({"w": np.zeros(8, dtype=np.bool_)})
    assert score_prediction(nothing, true, base=folder).total.num_low == 0


def test_the_low_magnitude_mask_has_the_lift_of_itself(case: Case) -> None:
    with open_checkpoint(case.folder) as base:
        scores = low_magnitude_scores(base)
        quotas = Quotas.like(case.true, scores.shapes)
        drawn = [select(scores, quotas, seed=s, provenance={}) for s in range(20)]
        found = [score_prediction(m, case.true, base=base).total for m in drawn]
    lifts = np.array([quality.lifts["low-magnitude"] for quality in found], dtype=np.float64)
    assert np.mean(lifts) == pytest.approx(1, abs=5 * np.std(lifts) / len(lifts) ** 0.5)


def test_a_ranking_is_judged_as_a_whole(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    held = ArrayScores(case.scores, case.true.base)
    write_scores(path, held, provenance={"step": "test"})
    score = score_prediction(case.pred, case.true, scores=path)
    _, true = masks_of(case)
    q_proj = [name for name in true if "q_proj" in name]
    for found, names in (
        (score.total, list(true)),
        (score.by_kind()["q_proj"], q_proj),
        (score.by_layer()[None], [name for name in true if ".layers." not in name]),
    ):
        expected = by_thresholds(joined(case.scores, names), joined(true, names))
        assert found.average_precision == pytest.approx(expected)
    assert score.ranking is not None
    assert (score.ranking.id, score.ranking.is_exact) == (str(path), True)
    assert score.ranking.provenance["step"] == "test"
    # Tensors without scores come last.
    some = ArrayScores({name: case.scores[name] for name in q_proj}, {})
    partly = score_prediction(case.pred, case.true, scores=some)
    padded = [
        case.scores[name] if name in q_proj else np.full(true[name].shape, -1.0) for name in true
    ]
    flat = np.concatenate([array.ravel() for array in padded])
    assert partly.total.average_precision == pytest.approx(
        by_thresholds(flat, joined(true, list(true)))
    )


def test_nothing_to_predict(case: Case) -> None:
    empty = Mask.from_arrays(
        {name: np.zeros(case.true.shape(name), np.bool_) for name in case.true}
    )
    total = score_prediction(case.pred, empty).total
    assert (total.precision, total.recall, total.average_precision) == (0.0, None, None)
    total = score_prediction(empty, case.true, base=case.folder).total
    assert (total.precision, total.recall) == (None, 0.0)
    assert total.average_precision == total.density
    assert total.lifts["low-magnitude"] is None


def test_what_does_not_fit_is_refused(case: Case, tmp_path: Path) -> None:
    other = {name: BaseTensor("BF16", "0" * 32) for name in case.true}
    with pytest.raises(MaskMismatchError, match="was another one when it was scored"):
        score_prediction(case.pred, case.true, scores=ArrayScores(case.scores, other))
    small = {name: array[:1] for name, array in case.scores.items()}
    with pytest.raises(MaskMismatchError, match=r"embed_tokens.weight has shape \(40, 32\)"):
        score_prediction(case.pred, case.true, scores=ArrayScores(small))
    tuned = tmp_path / "tuned"
    with pytest.raises(MaskMismatchError, match="other weights"):
        score_prediction(case.pred, case.true, base=tuned)


def result(case: Case) -> PredictionScore:
    scores = ArrayScores(case.scores, case.true.base)
    return score_prediction(case.pred, case.true, scores=scores, base=case.folder)


def test_json_round_trip(case: Case) -> None:
    data = json.loads(json.dumps(result(case).to_dict(), allow_nan=False))
    assert PredictionScore.from_dict(data).to_dict() == data
    assert (data["format"], data["format_version"]) == ("trimtab.prediction", 1)
    assert data["total"]["lifts"].keys() == {
        "independent",
        "per-tensor",
        "magnitude-matched",
        "low-magnitude",
    }
    bare = score_prediction(case.pred, case.true).to_dict()
    assert PredictionScore.from_dict(json.loads(json.dumps(bare))).to_dict() == bare


@pytest.mark.parametrize(
    "damage",
    [
        {"num_low": {}},
        {"num_low": None},
        {"ranking": {"total": 2}},
        {"overlap": {}},
        {"overlap": None},
        {"provenance": 7},
    ],
)
def test_damage_is_refused(case: Case, damage: dict[str, Any]) -> None:
    with pytest.raises(ResultFormatError):
        PredictionScore.from_dict({**result(case).to_dict(), **damage})


@pytest.mark.parametrize(
    ("key", "value"), [("total", 2), ("is_exact", 1), ("by_layer", [[0, "x"]]), ("by_kind", 3)]
)
def test_a_damaged_ranking_is_refused(case: Case, key: str, value: Any) -> None:
    report = result(case).to_dict()
    report["ranking"][key] = value
    with pytest.raises(ResultFormatError, match="damaged prediction"):
        PredictionScore.from_dict(report)
