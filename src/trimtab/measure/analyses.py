"""What the optional sections of a comparison hold, as plain data: the types that it is read by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypedDict

from trimtab.results.schema import Amount, Count, Share

__all__ = ["Analyses"]


class Predicted(TypedDict):
    """What precision alone predicts of some elements, beside what it leaves unchanged."""

    num_elements: Count
    num_nonfinite: Count
    num_not_float: Count
    dtypes: Mapping[str, Count]
    one_step: Count
    random_walk: Amount
    straight_line: Count
    adam_bound: Count
    sparsity: Mapping[str, Share | None]


def _no_more_than_there_are(row: Predicted) -> str | None:
    counts = {
        "num_nonfinite": row["num_nonfinite"],
        "num_not_float": row["num_not_float"],
        "one_step": row["one_step"],
        "random_walk": row["random_walk"],
        "straight_line": row["straight_line"],
        "adam_bound": row["adam_bound"],
    }
    # The random walk is a sum of chances, so its last bits may be above a whole number.
    most = row["num_elements"] * (1 + 1e-9)
    for name, count in counts.items():
        if count > most:
            return f"has {name} {count} of {row['num_elements']} elements"
    return None


PredictedCounts = Annotated[Predicted, _no_more_than_there_are]


class Precision(TypedDict):
    """What `PrecisionProbe.to_dict` gives."""

    lr: Amount
    steps: Count
    betas: tuple[float, float]
    adam_step_bound: Amount
    adam_displacement_bound: Amount
    by_kind: Mapping[str, PredictedCounts]
    total: PredictedCounts


class Skipped(TypedDict):
    """A tensor that was not analysed."""

    name: str
    shape: tuple[Count, ...]
    reason: str


class RankFigure(TypedDict):
    """A rank of a matrix; `fraction` is of the most that its shape allows."""

    value: Amount
    fraction: Amount
    error: Amount


class RankSummary(TypedDict):
    """A rank over the matrices."""

    min: Amount | None
    mean: Amount | None
    random_min: Amount | None
    random_mean: Amount | None


class Ranks(TypedDict):
    """All ranks of a matrix, and of the same elements in random order."""

    shape: tuple[Count, ...]
    method: str
    update: Mapping[str, RankFigure]
    random: Mapping[str, RankFigure]


def _same_figures(ranks: Ranks) -> str | None:
    wanted = {"matrix_rank", "rank_atol=1e-06", "energy_rank", "entropy_rank", "stable_rank"}
    for side in (ranks["update"], ranks["random"]):
        if side.keys() != wanted:
            return f"expected the figures {', '.join(sorted(wanted))}"
    return None


class RankMethod(TypedDict):
    """How ranks were found."""

    exact_up_to: Count
    max_elements: Count
    estimate: str
    random: str
    seed: int


class Rank(TypedDict):
    """What `RankAnalysis.to_dict` gives."""

    tolerance: Mapping[str, str | float]
    method: RankMethod
    num_matrices: Count
    num_zero_updates: Count
    skipped: tuple[Skipped, ...]
    summary: Mapping[str, RankSummary]
    by_tensor: Mapping[str, Annotated[Ranks, _same_figures]]


class ShareOfUpdate(TypedDict):
    """A share of an update beside its chance."""

    share: Share
    chance: Share
    lift: Amount


class GeometrySummary(TypedDict):
    """The shares over the matrices."""

    energy_left: ShareOfUpdate | None
    energy_right: ShareOfUpdate | None
    energy_both: ShareOfUpdate | None
    low_magnitude_mask: ShareOfUpdate | None
    principal_mask: ShareOfUpdate | None
    spectral_shift: Amount | None
    relative_update: Amount | None


class GeometryOfMatrix(GeometrySummary):
    """The shares of one matrix."""

    shape: tuple[Count, ...]
    num_elements: Count
    num_changed: Count
    k: Count | None


def _no_more_changed(row: GeometryOfMatrix) -> str | None:
    if row["num_changed"] <= row["num_elements"]:
        return None
    return f"has {row['num_changed']} changed of {row['num_elements']} elements"


class Geometry(TypedDict):
    """What `GeometryAnalysis.to_dict` gives."""

    principal: Share
    mask: Share
    max_rank: Count
    max_elements: Count
    num_matrices: Count
    num_zero_updates: Count
    skipped: tuple[Skipped, ...]
    summary: GeometrySummary
    by_tensor: Mapping[str, Annotated[GeometryOfMatrix, _no_more_changed]]


class Analyses(TypedDict, total=False):
    """The optional sections by name."""

    precision: Precision
    rank: Rank
    geometry: Geometry
