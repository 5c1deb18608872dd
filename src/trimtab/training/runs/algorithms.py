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
            train_dataset=self.dataset(
                rows.rows, tokenizer, args.seed, ends_with_line=rows.ends_with_line
            ),
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **self.more(model, tokenizer, rows, reward),
        )

    def dataset(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        seed: int,
        *,
        ends_with_line: bool = False,
    ) -> Any:
        """The rows as the trainer is given them; most shuffle and tokenize them themselves.

        Where no reward looks at them, other columns are left out: TRL would train on `input_ids` in
        place of prompt and completion, end no text that has a `text` beside it, and so on.

        Args:
            rows: The rows.
            tokenizer: Of the model.
            seed: Of the run.
            ends_with_line: Whether completions end with their line, and not with an end token.
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


class _SFT(Algorithm):
    """TRL's loss on given completions, or on samples of the model.

    TRL ends a completion with the end token, and tokenizes the text of a sample again. So rows that
    say themselves which tokens are learned are tokenized here: samples, to the very tokens that
    were drawn; and completions that end with their line, as those that GRPO samples do.
    """

    def dataset(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        seed: int,
        *,
        ends_with_line: bool = False,
    ) -> Any:
        """Tokens of prompt and completion where the data has them; only the latter is learned."""
        from datasets import Dataset

        if not (ends_with_line or self.needs_samples):
            return super().dataset(rows, tokenizer, seed)

        def tokens(row: Mapping[str, Any]) -> dict[str, list[int]]:
            prompt: list[int] = prompt_ids(tokenizer, row["prompt"])
            if self.needs_samples:
                ids = row["completion_ids"]
            else:
                ids = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
            return {"input_ids": [*prompt, *ids], "labels": [-100] * len(prompt) + ids}

        return Dataset.from_list(list(map(tokens, rows)))


class _KTO(Algorithm):
    """Completions that are good or bad, each by itself.

    TRL estimates the KL term from the completions of neighbours in a batch, and therefore takes the
    rows in the order in which they are given, in every epoch. So they are shuffled here, by the
    seed, and both rows of a pair are made before: TRL would put all chosen ones before all rejected
    ones.
    """

    def problems(self, args: Any) -> Iterator[str]:
        """A batch of one has no neighbour to estimate the KL term from."""
        if args.per_device_train_batch_size < 2:
            yield (
                f"trainer.per_device_train_batch_size is {args.per_device_train_batch_size}, and "
                "KTO compares the completions of a batch with each other: expected at least 2"
            )

    def dataset(
        self,
        rows: Sequence[Mapping[str, Any]],
        tokenizer: Any,
        seed: int,
        *,
        ends_with_line: bool = False,
    ) -> Any:
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


_ALL = (
    # The loss is that of the completion, given the prompt.
    _SFT(
        name="sft",
        trainer="trl:SFTTrainer",
        config="trl:SFTConfig",
        columns=("prompt", "completion"),
    ),
    # SFT on those of the model's own samples that the reward accepts. It is the control for what
    # SFT does when its data comes from the model: same loss, other data.
    _SFT(
        name="rft",
        trainer="trl:SFTTrainer",
        config="trl:SFTConfig",
        columns=("prompt", "completion"),
        made_of_samples="completions",
        needs_samples=True,
    ),
    # The reference is the base: TRL loads it again from the folder that the model came from, in the
    # same dtype, also when a run is resumed.
    Algorithm(
        name="dpo",
        trainer="trl:DPOTrainer",
        config="trl:DPOConfig",
        columns=PAIRS,
        made_of_samples="pairs",
    ),
    # It needs no reference model.
    Algorithm(
        name="orpo",
        trainer="trl.experimental.orpo:ORPOTrainer",
        config="trl.experimental.orpo:ORPOConfig",
        columns=PAIRS,
        defaults={"remove_unused_columns": False},  # its collator reads them; TRL would drop them
        made_of_samples="pairs",
    ),
    _KTO(
        name="kto",
        trainer="trl:KTOTrainer",
        config="trl:KTOConfig",
        columns=("prompt", "completion", "label"),
        or_columns=PAIRS,
        made_of_samples="labels",
    ),
    # The loss of TRL's CPOTrainer without the cloning term. `CPOConfig` keeps `cpo_alpha = 1.0`
    # when only `loss_type` is set, which is another algorithm, CPO-SimPO, so what makes it SimPO is
    # fixed. TRL's `beta = 0.1` is DPO's; SimPO divides by the length and needs a larger one. Ours,
    # and the margin of half of it, are those that its authors trained Llama-3-Base with and
    # recommend to start from (README of princeton-nlp/SimPO).
    Algorithm(
        name="simpo",
        trainer="trl.experimental.cpo:CPOTrainer",
        config="trl.experimental.cpo:CPOConfig",
        columns=PAIRS,
        defaults={
            "beta": 2.0,
            "simpo_gamma": 1.0,
            "remove_unused_columns": False,  # its collator reads them; TRL would drop them
        },
        fixed={"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.0},
        made_of_samples="pairs",
    ),
    # trimtab's own trainer: TRL has none since 1.13. The reference is the base, copied before the
    # first step, also when a run is resumed.
    RolloutAlgorithm(
        name="ppo",
        trainer="trimtab.training:PPOTrainer",
        config="trimtab.training:PPOConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
    # Advantages within the group, a clipped ratio for each token.
    OnlineAlgorithm(
        name="grpo",
        trainer="trl:GRPOTrainer",
        config="trl:GRPOConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
    # Each sample against the mean of the others, a ratio for the whole. Its KL penalty is in the
    # reward and on by default (`beta`): the reference is the base, which TRL loads again from the
    # folder that the model came from.
    OnlineAlgorithm(
        name="rloo",
        trainer="trl:RLOOTrainer",
        config="trl:RLOOConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
    # trimtab's own trainer: TRL never had it, and verl's recipe no longer runs. The reward model
    # begins as the base; so does its reference, also when a run is resumed.
    RolloutAlgorithm(
        name="prime",
        trainer="trimtab.training:PRIMETrainer",
        config="trimtab.training:PRIMEConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
)

ALGORITHMS: Mapping[str, Algorithm] = {algorithm.name: algorithm for algorithm in _ALL}
"""Name in run files -> the algorithm."""
