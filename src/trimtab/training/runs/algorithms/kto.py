"""KTO by TRL's `KTOTrainer`: completions that are good or bad, each by itself.

TRL estimates the KL term from the completions of neighbours in a batch, and therefore takes the
rows in the order in which they are given, in every epoch. So they are shuffled here, by the seed,
and both rows of a pair are made before: TRL would put all chosen ones before all rejected ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from trimtab.training.runs.algorithms.algorithm import PAIRS, Algorithm

__all__ = ["KTO"]


class _KTO(Algorithm):
    def problems(self, args: Any) -> Iterator[str]:
        """A batch of one has no neighbour to estimate the KL term from."""
        if args.per_device_train_batch_size < 2:
            yield (
                f"trainer.per_device_train_batch_size is {args.per_device_train_batch_size}, and "
                "KTO compares the completions of a batch with each other: expected at least 2"
            )

    def dataset(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, seed: int) -> Any:
        """Two rows of each pair, all shuffled."""
        ordered = [single for row in rows for single in _singles(row)]
        Random(seed).shuffle(ordered)
        return super().dataset(ordered, tokenizer, seed)


def _singles(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row as it is, or the two rows of a pair."""
    if "label" in row:
        return [row]
    return [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": True},
        {"prompt": row["prompt"], "completion": row["rejected"], "label": False},
    ]


KTO = _KTO(
    name="kto",
    trainer="trl:KTOTrainer",
    config="trl:KTOConfig",
    columns=("prompt", "completion", "label"),
    or_columns=PAIRS,
    made_of_samples="labels",
)
