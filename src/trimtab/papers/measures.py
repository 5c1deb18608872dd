"""`MEASURES`: the figures that trials of papers use, each read from a result file of a cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from math import log
from statistics import fmean
from typing import Any

from trimtab.errors import SettingsError

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a figure is read.

    Attributes:
        source: The file with the figure, a key of `trimtab.papers.run.SOURCES`.
        read: Takes the content of the file and the settings of the measure.
        words: Takes all settings, and returns a description, which is followed by the arms:
            "unchanged by bits (grpo − sft)".
        unit: `share`, of 1; `points`, the difference of two shares; or `factor`.
        shares: Values of its setting `figure` that are shares, independent of `unit`.
    """

    source: str
    read: Callable[..., float]
    words: Callable[..., str]
    unit: str = "share"
    shares: tuple[str, ...] = ()

    def unit_of(self, settings: Mapping[str, Any], *, is_difference: bool = False) -> str:
        """The unit of a figure; a difference of shares is in points."""
        unit = "share" if settings.get("figure") in self.shares else self.unit
        return "points" if is_difference and unit == "share" else unit

    @property
    def settings(self) -> list[str]:
        """Names of its settings."""
        return list(signature(self.read).parameters)[1:]

    def describe(self, settings: Mapping[str, Any]) -> str:
        """Describe the figure with these settings.

        Raises:
            TypeError: A setting without default is missing.
        """
        bound = signature(self.read).bind(None, **settings)
        bound.apply_defaults()
        return self.words(*list(bound.arguments.values())[1:])


def _sparsity(data: Data, criterion: str = "bits", kind: str | None = None) -> float:
    group = data["total"] if kind is None else data["by_kind"][kind]
    return _unchanged(group, criterion)


def _unchanged(group: Data, criterion: str) -> float:
    num_elements: int = group["num_elements"]
    return (num_elements - group["num_changed"][criterion]) / num_elements


def _tolerance_gain(data: Data, wide: str, narrow: str) -> float:
    """Sparsity by a wider tolerance minus that by a narrower one."""
    return _sparsity(data, wide) - _sparsity(data, narrow)


def _layer_spread(data: Data, criterion: str = "bits") -> float:
    """Sparsity of the sparsest layer minus that of the densest."""
    by_layer = data["by_layer"].items()
    layers = [_unchanged(layer, criterion) for name, layer in by_layer if name.isdigit()]
    return max(layers) - min(layers)


def _norm_excess(data: Data, criterion: str = "bits") -> float:
    """Sparsity of norms minus that of the whole model."""
    return _sparsity(data, criterion, "norm") - _sparsity(data, criterion)


def _accuracy(data: Data, answers: str = "greedy", level: int | None = None) -> float:
    if level is None:
        accuracy: float = data["models"][-1]["answers"][f"{answers}_accuracy"]
        return accuracy
    for entry in data["by_level"]:
        if entry["level"] == level:
            of_level: float = entry["models"][-1][f"{answers}_accuracy"]
            return of_level
    raise SettingsError(f"there is no level {level} in the evaluation")


def _level_gap(data: Data, hard: int, easy: int, answers: str = "sampled") -> float:
    """Accuracy on the harder questions minus that on the easier ones."""
    return _accuracy(data, answers, hard) - _accuracy(data, answers, easy)


def _gain(data: Data, answers: str = "greedy") -> float:
    """Accuracy minus that of the base on the same questions."""
    before: float = data["models"][0]["answers"][f"{answers}_accuracy"]
    return _accuracy(data, answers) - before


def _above_majority(data: Data) -> float:
    """Greedy accuracy minus the score of the best constant answer."""
    majority: float = data["questions"]["majority_baseline"]["accuracy"]
    return _accuracy(data) - majority


def _equal(data: Data, part: str = "all", criterion: str = "bits", to: str = "sub") -> float:
    """Share of elements in which the model (or, as a control, the base) equals the full run."""
    total = data["total"][part]
    equal: int = total[f"num_{to}_equal"][criterion]
    return equal / total["num_elements"]


def _relative_l2(data: Data, part: str = "all") -> float:
    distance: float = data["total"][part]["relative_l2"]
    return distance


def _cosine(data: Data, part: str = "all") -> float:
    cosine: float = data["total"][part]["cosine"]
    return cosine


def _last(data: Data) -> Data:
    last: Data = data["points"][-1]["total"]
    return last


def _untouched(data: Data) -> float:
    """Share that never differed from the base."""
    last = _last(data)
    return 1 - last["ever"] / last["num_elements"]


def _cancelled(data: Data, of: str = "model") -> float:
    """Share that moved and came back: of the model, or of what ever moved."""
    last = _last(data)
    cancelled: float = last["returned"] / last["num_elements" if of == "model" else "ever"]
    return cancelled


def _effective(data: Data) -> float:
    last = _last(data)
    changed: float = last["changed"] / last["num_elements"]
    return changed


def _stepped(data: Data) -> float:
    """Mean share of the model that one step changed, as it would be saved."""
    return fmean(
        point["total"]["stepped"] / point["total"]["num_elements"] for point in _points(data)
    )


def _sparsity_at(data: Data, step: int) -> float:
    """Share of the model that equals the base after `step` steps."""
    (point,) = (point["total"] for point in _points(data) if point["step"] == step)
    return 1 - point["changed"] / point["num_elements"]


def _reward_at(data: Data, step: int, over: int = 5) -> float:
    """Mean training reward over the last `over` steps until `step`."""
    return fmean(log["reward"] for log in data["history"] if step - over < log["step"] <= step)


def _flattening(data: Data) -> float:
    """Decrease of the sparsity in the last quarter of the points, relative to the first."""
    points = _points(data)
    quarter = max(1, len(points) // 4)
    density = [0.0, *(p["total"]["changed"] / p["total"]["num_elements"] for p in points)]
    return (density[-1] - density[-1 - quarter]) / density[quarter]


def _points(data: Data) -> Any:
    return data["points"]


def _gradient_density(data: Data) -> float:
    """Mean share of nonzero gradients, over the steps that had any."""
    key = "trimtab/gradient_density"
    return fmean(log[key] for log in data["history"] if key in log and log["grad_norm"] > 0)


def _overlap(data: Data, figure: str = "lift", null: str = "independent") -> float:
    """Overlap of two masks: `o1`, `o2`, `jaccard`, `lift` over a null, or `explained`.

    `explained` is log(lift of magnitude-matched random masks) / log(lift of the masks), both over
    independent masks: 1 if magnitude explains all of the overlap.
    """
    total = data["total"]
    if figure == "explained":
        lift, left = (total["nulls"][n]["lift"] for n in ("independent", "magnitude-matched"))
        return 1 - log(left) / log(lift)
    value: float = total[figure] if figure != "lift" else total["nulls"][null]["lift"]
    return value


def _rank(data: Data, figure: str, of: str = "mean") -> float:
    """Mean or minimum rank over the matrices, relative to full rank; `random_…` is the control."""
    share: float = data["rank"]["summary"][figure][of]
    return share


def _geometry(data: Data, figure: str) -> float:
    lift: float = data["geometry"]["summary"][figure]["lift"]
    return lift


def _of(part: str) -> str:
    return "" if part == "all" else f", {part} the mask"


def _rank_words(figure: str, of: str) -> str:
    control, _, which = of.rpartition("_")
    shuffled = ", its elements in random order" if control else ""
    words = {
        "matrix_rank": "rank of an update",
        "energy_rank": "rank of 99 % of the energy of an update",
    }
    return f"{'least' if which == 'min' else which} {words[figure]}{shuffled}"


def _overlap_words(figure: str, null: str) -> str:
    if figure == "explained":
        return "share of the overlap that magnitude explains"
    return f"lift over {_NULLS[null]}" if figure == "lift" else figure


_NULLS = {
    "independent": "independent masks",
    "per-tensor": "masks of the same count in each tensor",
    "magnitude-matched": "masks of the same magnitudes",
}


MEASURES: Mapping[str, Measure] = {
    "sparsity": Measure(
        "comparison",
        _sparsity,
        lambda criterion, kind: f"unchanged{f' of kind {kind}' if kind else ''} by {criterion}",
    ),
    "tolerance-gain": Measure(
        "comparison",
        _tolerance_gain,
        lambda wide, narrow: f"unchanged by {wide} and not by {narrow}",
        "points",
    ),
    "layer-spread": Measure(
        "comparison",
        _layer_spread,
        lambda criterion: f"unchanged by {criterion}, the sparsest layer less the densest",
        "points",
    ),
    "norm-excess": Measure(
        "comparison",
        _norm_excess,
        lambda criterion: f"unchanged by {criterion}, norms less all",
        "points",
    ),
    "accuracy": Measure(
        "evaluation",
        _accuracy,
        lambda answers, level: f"{answers} accuracy{'' if level is None else f' at level {level}'}",
    ),
    "level-gap": Measure(
        "evaluation",
        _level_gap,
        lambda hard, easy, answers: f"{answers} accuracy at level {hard} less that at level {easy}",
        "points",
    ),
    "gain": Measure("evaluation", _gain, lambda answers: f"{answers} accuracy gained", "points"),
    "above-majority": Measure(
        "evaluation",
        _above_majority,
        lambda: "greedy accuracy above the best constant answer",
        "points",
    ),
    "equal": Measure(
        "identity",
        _equal,
        lambda part, criterion, to: (
            f"{'the base, ' if to == 'base' else ''}equal to the full run by {criterion}{_of(part)}"
        ),
    ),
    "relative-l2": Measure(
        "identity",
        _relative_l2,
        lambda part: f"distance to the full run, of its update{_of(part)}",
        "factor",
    ),
    "cosine": Measure(
        "identity",
        _cosine,
        lambda part: f"cosine with the update of the full run{_of(part)}",
        "factor",
    ),
    "untouched": Measure("trajectory", _untouched, lambda: "never moved"),
    "cancelled": Measure(
        "trajectory",
        _cancelled,
        lambda of: f"moved and came back, of {'all' if of == 'model' else 'what ever moved'}",
    ),
    "effective": Measure("trajectory", _effective, lambda: "moved and stayed"),
    "stepped": Measure("trajectory", _stepped, lambda: "changed by one step"),
    "sparsity-at": Measure(
        "trajectory", _sparsity_at, lambda step: f"unchanged after {step} steps"
    ),
    "reward-at": Measure(
        "result",
        _reward_at,
        lambda step, over: f"reward of the {over} steps until step {step}, on training questions",
    ),
    "flattening": Measure(
        "trajectory",
        _flattening,
        lambda: "fall of the sparsity in the last quarter, to that in the first",
    ),
    "gradient-density": Measure("result", _gradient_density, lambda: "gradients that are not 0"),
    "rank": Measure("rank", _rank, _rank_words),
    "geometry": Measure(
        "geometry", _geometry, lambda figure: f"lift of {figure} over chance", "factor"
    ),
    "overlap": Measure(
        "overlap", _overlap, _overlap_words, "factor", ("o1", "o2", "jaccard", "explained")
    ),
}
