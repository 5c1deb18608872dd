"""`Algorithm`: what a run has to know of an algorithm, and what every trainer of TRL shares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from trimtab.training.runs.datasets import Rows
from trimtab.training.runs.rewards import Reward

__all__ = ["PAIRS", "Algorithm", "Made"]

Made = Literal["completions", "pairs", "labels"]
"""What is made of samples: good ones, pairs of a good and a bad one, or both with a label."""

PAIRS = ("prompt", "chosen", "rejected")
"""Columns of a preference between two completions."""

OF_TEMPLATES = ("tools", "chat_template_kwargs")
"""Columns that TRL gives the chat template."""

DEFAULTS: Mapping[str, Any] = {
    # TRL turns both on. bf16 arithmetic on fp32 weights is a choice; on bf16 weights it is no news.
    "bf16": False,
    "activation_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    # Enough to lose little, and seldom enough to cost little: 50 steps apart, the last one kept.
    "save_steps": 50,
    "save_total_limit": 1,
}
"""Where `[trainer]` starts from, if not from TRL's own defaults."""


@dataclass(frozen=True)
class Algorithm:
    """A trainer of TRL, or of the same make.

    Attributes:
        name: As run files have it.
        trainer: Import path of the trainer, `module:class`.
        config: Import path of its configuration.
        columns: What every row of the data must have.
        or_columns: What it may have instead.
        defaults: More of `DEFAULTS`, of this algorithm only.
        fixed: Settings that make it this algorithm; `[trainer]` may not say otherwise.
        takes_reward: Whether completions are sampled while it trains, and rewarded by a function.
        made_of_samples: What is made of samples that are drawn before; None if none can be.
        needs_samples: Whether it is only ever trained on such samples.
    """

    name: str
    trainer: str
    config: str
    columns: tuple[str, ...]
    or_columns: tuple[str, ...] | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    takes_reward: bool = False
    made_of_samples: Made | None = None
    needs_samples: bool = False

    def config_class(self) -> type:
        """The configuration class that `[trainer]` is passed to."""
        return _load(self.config)

    def problems(self, args: Any) -> Iterator[str]:
        """What its trainer would refuse when the model is loaded, and can be told before.

        Args:
            args: An instance of `config_class`.
        """
        return iter(())

    def steps_per_round(self, args: Any) -> int:
        """Steps between two points at which a run can stop and go on to the same weights."""
        return 1

    def build(
        self,
        model: Any,
        tokenizer: Any,
        rows: Rows,
        reward: Reward | None,
        args: Any,
        callbacks: Sequence[Any],
    ) -> Any:
        """Set up the trainer.

        Args:
            model: Trained in place.
            tokenizer: Of the model.
            rows: The data.
            reward: What samples are worth; None where the algorithm takes none.
            args: An instance of `config_class`.
            callbacks: Trainer callbacks.
        """
        return _load(self.trainer)(
            model=model,
            args=args,
            train_dataset=self.dataset(rows.rows, tokenizer, args.seed),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **self.more(model, tokenizer, rows, reward),
        )

    def dataset(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, seed: int) -> Any:
        """The rows as the trainer is given them; most shuffle and tokenize them themselves.

        Where no reward looks at them, other columns are left out: TRL would train on `input_ids` in
        place of prompt and completion, end no text that has a `text` beside it, and so on.
        """
        from trimtab.training.runs.exact_dataset import ExactDataset

        if not self.takes_reward:
            kept = {*self.columns, *(self.or_columns or ()), *OF_TEMPLATES}
            rows = [{name: of for name, of in row.items() if name in kept} for row in rows]
        return ExactDataset.of(rows)

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        """Arguments of the trainer that others do not have."""
        return {}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)
