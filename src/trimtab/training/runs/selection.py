"""Which of a model's own samples it is trained on: accepted ones, pairs, or all with a label.

Identical samples to one prompt count once, and samples that did not end count nowhere: what was cut
off at the length limit is no completion. Samples of a prompt are independent of each other, so the
first ones are as random a choice as any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from trimtab.training.runs.algorithms.algorithm import Made
from trimtab.training.runs.tables import SamplesTable

__all__ = ["Sample", "select"]


@dataclass(frozen=True)
class Sample:
    """What the model said to a prompt.

    Attributes:
        completion: A text, or a list with one message.
        completion_ids: Its tokens as they were drawn, with the one that ended it.
        reward: What it is worth.
        has_ended: Whether it ended before the length limit.
    """

    completion: Any
    completion_ids: list[int]
    reward: float
    has_ended: bool


def select(
    prompts: Sequence[Any], samples: Sequence[Sequence[Sample]], made: Made, table: SamplesTable
) -> list[dict[str, Any]]:
    """Make rows to train on.

    Args:
        prompts: The prompts.
        samples: Samples of each.
        made: Which rows are wanted.
        table: Has the rule that tells good samples from bad ones.

    Returns:
        Rows with `prompt` and, by `made`: `completion` and `completion_ids`; `chosen` and
        `rejected`; or `completion` and `label`. In the order of the prompts; one may have none.
    """
    rows: list[dict[str, Any]] = []
    for prompt, group in zip(prompts, samples, strict=True):
        good, bad = _parted(_distinct(group), table)
        rows += ({"prompt": prompt, **row} for row in _MAKERS[made](good, bad, table.most))
    return rows


def _distinct(group: Sequence[Sample]) -> list[Sample]:
    """Those that ended, the first of each text."""
    first: dict[str, Sample] = {}
    for sample in group:
        if sample.has_ended:
            first.setdefault(str(sample.completion), sample)
    return list(first.values())


def _parted(group: Sequence[Sample], table: SamplesTable) -> tuple[list[Sample], list[Sample]]:
    """The good and the bad ones."""
    if table.rule == "threshold":
        good = [sample for sample in group if sample.reward >= table.threshold]
        return good, [sample for sample in group if sample.reward < table.threshold]
    if not group:
        return [], []
    best, worst = max(group, key=_reward), min(group, key=_reward)
    return [best], [worst] if worst.reward < best.reward else []


def _reward(sample: Sample) -> float:
    return sample.reward


def _completions(
    good: Sequence[Sample], bad: Sequence[Sample], most: int | None
) -> Iterator[dict[str, Any]]:
    for sample in islice(good, most):
        yield {"completion": sample.completion, "completion_ids": sample.completion_ids}


def _pairs(
    good: Sequence[Sample], bad: Sequence[Sample], most: int | None
) -> Iterator[dict[str, Any]]:
    """No sample is in two pairs."""
    both = zip(good, bad, strict=False)
    return ({"chosen": g.completion, "rejected": b.completion} for g, b in islice(both, most))


def _labels(
    good: Sequence[Sample], bad: Sequence[Sample], most: int | None
) -> Iterator[dict[str, Any]]:
    for label, samples in ((True, good), (False, bad)):
        for sample in islice(samples, most):
            yield {"completion": sample.completion, "label": label}


_MAKERS: Mapping[Made, Callable[..., Iterator[dict[str, Any]]]] = {
    "completions": _completions,
    "pairs": _pairs,
    "labels": _labels,
}
