"""The algorithms of run files: one table of what a run has to know of each trainer.

To add an algorithm, add an `Algorithm` to the table; a subclass where its trainer needs more than
settings. Nothing here imports TRL before a run asks for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from math import lcm
from random import Random
from typing import Any, Literal

from trimtab.training.addition import end_token
from trimtab.training.runs.data import Rows, prompt_ids
from trimtab.training.runs.rewards import Reward

__all__ = [
    "ALGORITHMS",
    "DPO",
    "GRPO",
    "KTO",
    "ORPO",
    "PAIRS",
    "PPO",
    "PRIME",
    "RFT",
    "RLOO",
    "SFT",
    "SIMPO",
    "Algorithm",
    "Made",
    "OnlineAlgorithm",
    "RolloutAlgorithm",
]

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


class OnlineAlgorithm(Algorithm):
    """Groups of samples to one prompt, compared by their rewards."""

    def problems(self, args: Any) -> Iterator[str]:
        """Samples come from vLLM only where it is installed."""
        if args.use_vllm and find_spec("vllm") is None:
            yield "trainer.use_vllm: vllm is not installed: install it, or leave the key out"

    def steps_per_round(self, args: Any) -> int:
        """Samples may serve several steps; a run that goes on draws new ones first."""
        every = args.steps_per_generation * args.num_iterations
        accumulation: int = args.gradient_accumulation_steps
        return lcm(every, accumulation) // accumulation

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        """The reward; and the end of a line ends a completion where it does so in the data."""
        if rows.ends_with_line:
            model.generation_config.eos_token_id = [end_token(tokenizer)]
        assert reward is not None, "the run file was checked for it"
        return {"reward_funcs": reward.function}


class RolloutAlgorithm(OnlineAlgorithm):
    """Samples in rounds, and trains a second model beside the policy."""

    def problems(self, args: Any) -> Iterator[str]:
        """None: the configuration itself refuses what its trainer would."""
        return iter(())

    def steps_per_round(self, args: Any) -> int:
        """Samples serve all steps of a round."""
        steps: int = args.steps_per_round
        return steps


SFT = Algorithm(
    name="sft",
    trainer="trl:SFTTrainer",
    config="trl:SFTConfig",
    columns=("prompt", "completion"),
)


class _RFT(Algorithm):
    def dataset(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, seed: int) -> Any:
        """Tokens of prompt and sample; only the sample is learned."""
        from datasets import Dataset

        return Dataset.from_list(
            [_labelled(prompt_ids(tokenizer, row["prompt"]), row["completion_ids"]) for row in rows]
        )


def _labelled(prompt: list[int], completion: list[int]) -> dict[str, list[int]]:
    return {"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion}


RFT = _RFT(
    name="rft",
    trainer="trl:SFTTrainer",
    config="trl:SFTConfig",
    columns=("prompt", "completion"),
    made_of_samples="completions",
    needs_samples=True,
)


DPO = Algorithm(
    name="dpo",
    trainer="trl:DPOTrainer",
    config="trl:DPOConfig",
    columns=PAIRS,
    made_of_samples="pairs",
)


ORPO = Algorithm(
    name="orpo",
    trainer="trl.experimental.orpo:ORPOTrainer",
    config="trl.experimental.orpo:ORPOConfig",
    columns=PAIRS,
    defaults={"remove_unused_columns": False},  # its collator reads them; TRL would warn and do so
    made_of_samples="pairs",
)


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


SIMPO = Algorithm(
    name="simpo",
    trainer="trl.experimental.cpo:CPOTrainer",
    config="trl.experimental.cpo:CPOConfig",
    columns=PAIRS,
    defaults={
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "remove_unused_columns": False,  # its collator reads them; TRL would warn and do so
    },
    fixed={"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0},
    made_of_samples="pairs",
)


PPO = RolloutAlgorithm(
    name="ppo",
    trainer="trimtab.training:PPOTrainer",
    config="trimtab.training:PPOConfig",
    columns=("prompt",),
    takes_reward=True,
)


GRPO = OnlineAlgorithm(
    name="grpo",
    trainer="trl:GRPOTrainer",
    config="trl:GRPOConfig",
    columns=("prompt",),
    takes_reward=True,
)


RLOO = OnlineAlgorithm(
    name="rloo",
    trainer="trl:RLOOTrainer",
    config="trl:RLOOConfig",
    columns=("prompt",),
    takes_reward=True,
)


PRIME = RolloutAlgorithm(
    name="prime",
    trainer="trimtab.training:PRIMETrainer",
    config="trimtab.training:PRIMEConfig",
    columns=("prompt",),
    takes_reward=True,
)


ALGORITHMS: Mapping[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (SFT, RFT, DPO, ORPO, KTO, SIMPO, PPO, GRPO, RLOO, PRIME)
}
