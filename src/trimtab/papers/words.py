"""What each measure is, in a few words, from the settings that it was given.

One function for each of `trimtab.papers.measures`, with the same settings and defaults; the
arms that are measured come after its words: "unchanged by bits (grpo − sft)".
"""

from __future__ import annotations


def sparsity(criterion: str = "bits", kind: str | None = None) -> str:
    """Of `sparsity`."""
    return f"unchanged{f' of kind {kind}' if kind else ''} by {criterion}"


def tolerance_gain(wide: str, narrow: str) -> str:
    """Of `tolerance-gain`."""
    return f"unchanged by {wide} and not by {narrow}"


def layer_spread(criterion: str = "bits") -> str:
    """Of `layer-spread`."""
    return f"unchanged by {criterion}, the sparsest layer less the densest"


def norm_excess(criterion: str = "bits") -> str:
    """Of `norm-excess`."""
    return f"unchanged by {criterion}, norms less all"


def accuracy(answers: str = "greedy", level: int | None = None) -> str:
    """Of `accuracy`."""
    return f"{answers} accuracy{'' if level is None else f' at level {level}'}"


def level_gap(hard: int, easy: int, answers: str = "sampled") -> str:
    """Of `level-gap`."""
    return f"{answers} accuracy at level {hard} less that at level {easy}"


def gain(answers: str = "greedy") -> str:
    """Of `gain`."""
    return f"{answers} accuracy gained"


def above_majority() -> str:
    """Of `above-majority`."""
    return "greedy accuracy above the best constant answer"


def equal(part: str = "all", criterion: str = "bits", to: str = "sub") -> str:
    """Of `equal`."""
    whose = "the base, " if to == "base" else ""
    return f"{whose}equal to the full run by {criterion}{_of(part)}"


def relative_l2(part: str = "all") -> str:
    """Of `relative-l2`."""
    return f"distance to the full run, of its update{_of(part)}"


def cosine(part: str = "all") -> str:
    """Of `cosine`."""
    return f"cosine with the update of the full run{_of(part)}"


def untouched() -> str:
    """Of `untouched`."""
    return "never moved"


def cancelled(of: str = "model") -> str:
    """Of `cancelled`."""
    return f"moved and came back, of {'all' if of == 'model' else 'what ever moved'}"


def effective() -> str:
    """Of `effective`."""
    return "moved and stayed"


def stepped() -> str:
    """Of `stepped`."""
    return "changed by one step"


def sparsity_at(step: int) -> str:
    """Of `sparsity-at`."""
    return f"unchanged after {step} steps"


def reward_at(step: int, over: int = 5) -> str:
    """Of `reward-at`."""
    return f"reward of the {over} steps until step {step}, on training questions"


def flattening() -> str:
    """Of `flattening`."""
    return "fall of the sparsity in the last quarter, to that in the first"


def gradient_density() -> str:
    """Of `gradient-density`."""
    return "gradients that are not 0"


def rank(figure: str, of: str = "mean") -> str:
    """Of `rank`."""
    control, _, which = of.rpartition("_")
    shuffled = ", its elements in random order" if control else ""
    words = {
        "matrix_rank": "rank of an update",
        "energy_rank": "rank of 99 % of the energy of an update",
    }
    return f"{'least' if which == 'min' else which} {words[figure]}{shuffled}"


def geometry(figure: str) -> str:
    """Of `geometry`."""
    return f"lift of {figure} over chance"


def overlap(figure: str = "lift", null: str = "independent") -> str:
    """Of `overlap`."""
    if figure == "explained":
        return "share of the overlap that magnitude explains"
    return f"lift over {_NULLS[null]}" if figure == "lift" else figure


_NULLS = {
    "independent": "independent masks",
    "per-tensor": "masks of the same count in each tensor",
    "magnitude-matched": "masks of the same magnitudes",
}


def _of(part: str) -> str:
    return "" if part == "all" else f", {part} the mask"
