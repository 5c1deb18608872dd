"""The algorithms of run files, in one table.

To add an algorithm, add an `Algorithm` to the table; subclass it if its trainer needs more than
settings. TRL is imported only when a run needs it.
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

DataRows = Sequence[Mapping[str, Any]]

Made = Literal["completions", "pairs", "labels"]
"""Training rows made from samples: good ones, pairs of good and bad, or both with a label."""

PAIRS = ("prompt", "chosen", "rejected")
"""Columns of preference data."""

OF_TEMPLATES = ("tools", "chat_template_kwargs")
"""Columns that TRL passes to the chat template."""

DEFAULTS: Mapping[str, Any] = {
    # TRL turns both on. bf16 arithmetic on fp32 weights should be a choice.
    "bf16": False,
    "activation_checkpointing": False,
    "logging_steps": 1,
    "report_to": "none",
    # Every 50 steps, keeping the last one: little is lost on a crash, and saving costs little.
    "save_steps": 50,
    "save_total_limit": 1,
}
"""Defaults of `[trainer]` that differ from those of TRL."""


@dataclass(frozen=True)
class Algorithm:
    """A trainer of TRL, or one with the same interface.

    Attributes:
        name: Name in run files.
        trainer: Import path of the trainer, `module:class`.
        config: Import path of its configuration.
        columns: Columns that every row of the data must have.
        or_columns: Alternative set of columns.
        defaults: Additional `DEFAULTS` of this algorithm.
        fixed: Settings that define the algorithm; `[trainer]` cannot change them.
        takes_reward: Whether it samples completions during training and rewards them.
        made_of_samples: Rows to make from samples that are drawn before training; None if it cannot
            use such samples.
        needs_samples: Whether it only trains on such samples.
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
        """Problems that its trainer would only report after the model is loaded.

        Args:
            args: An instance of `config_class`.
        """
        return iter(())

    def steps_per_round(self, args: Any) -> int:
        """Steps between two points from which a run resumes to the same weights."""
        return 1

    def build(
        self,
        model: Any,
        tokenizer: Any,
        rows: Rows,
        reward: Reward | None,
        args: Any,
        callbacks: Sequence[Any],
        held_out: Rows | None = None,
    ) -> Any:
        """Create the trainer.

        Args:
            model: Trained in place.
            tokenizer: Tokenizer of the model.
            rows: The data.
            reward: The reward; None if the algorithm takes none.
            args: An instance of `config_class`.
            callbacks: Trainer callbacks.
            held_out: Rows to evaluate the loss on; None for none.
        """
        datasets = {
            name: self.dataset(some.rows, tokenizer, args.seed, some.ends_with_line)
            for name, some in (("train_dataset", rows), ("eval_dataset", held_out))
            if some is not None
        }
        return _load(self.trainer)(
            model=model,
            args=args,
            processing_class=tokenizer,
            callbacks=list(callbacks),
            **datasets,
            **self.more(model, tokenizer, rows, reward),
        )

    def dataset(
        self, rows: DataRows, tokenizer: Any, seed: int, ends_with_line: bool = False
    ) -> Any:
        """The data set that is passed to the trainer; most trainers shuffle and tokenize it.

        Unless a reward uses them, other columns are dropped: TRL would train on `input_ids` instead
        of prompt and completion, add no end token to rows that also have a `text`, and so on.

        Args:
            rows: The rows.
            tokenizer: Tokenizer of the model.
            seed: Seed of the run.
            ends_with_line: Whether completions end with a newline instead of an end token.
        """
        from trimtab.training.runs.exact_dataset import ExactDataset

        if not self.takes_reward:
            columns = {*self.columns, *(self.or_columns or ()), *OF_TEMPLATES}
            rows = [{k: value for k, value in row.items() if k in columns} for row in rows]
        return ExactDataset.of(rows)

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        """Additional arguments of the trainer."""
        return {}


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


class OnlineAlgorithm(Algorithm):
    """Trains on groups of samples for the same prompt, compared by their rewards."""

    def problems(self, args: Any) -> Iterator[str]:
        """VLLM is used only if it is installed."""
        if args.use_vllm and find_spec("vllm") is None:
            yield "trainer.use_vllm: vllm is not installed: install it, or leave the key out"

    def steps_per_round(self, args: Any) -> int:
        """Samples may be used for several steps; a resumed run draws new ones first."""
        every = args.steps_per_generation * args.num_iterations
        accumulation: int = args.gradient_accumulation_steps
        return lcm(every, accumulation) // accumulation

    def more(
        self, model: Any, tokenizer: Any, rows: Rows, reward: Reward | None
    ) -> Mapping[str, Any]:
        """The reward; a newline also becomes the end token if completions in the data end so."""
        if rows.ends_with_line:
            model.generation_config.eos_token_id = [end_token(tokenizer)]
        assert reward is not None, "the run file was checked for it"
        return {"reward_funcs": reward.function}


class RolloutAlgorithm(OnlineAlgorithm):
    """Samples in rounds, and trains a second model in addition to the policy."""

    def problems(self, args: Any) -> Iterator[str]:
        """None: the configuration checks itself."""
        return iter(())

    def steps_per_round(self, args: Any) -> int:
        """Samples are used for all steps of a round."""
        steps: int = args.steps_per_round
        return steps


class _SFT(Algorithm):
    """TRL's SFT on given completions, or on samples of the model.

    TRL appends the end token, and would tokenize the text of a sample again. So two kinds of rows
    are tokenized here: samples, with exactly the tokens that were drawn; and completions that end
    with a newline, like those that GRPO samples.
    """

    def dataset(
        self, rows: DataRows, tokenizer: Any, seed: int, ends_with_line: bool = False
    ) -> Any:
        """Tokens and labels if completions end with a newline or are samples; else the rows."""
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
    """TRL's KTO on completions with a label.

    TRL estimates the KL term from neighbouring completions in a batch, so it uses the rows in their
    given order in every epoch. They are shuffled here, by the seed, after splitting pairs into two
    rows: TRL would put all chosen ones before all rejected ones.
    """

    def problems(self, args: Any) -> Iterator[str]:
        """A batch of one has no neighbour to estimate the KL term from."""
        if args.per_device_train_batch_size < 2:
            yield (
                f"trainer.per_device_train_batch_size is {args.per_device_train_batch_size}, and "
                "KTO compares the completions of a batch with each other: expected at least 2"
            )

    def dataset(
        self, rows: DataRows, tokenizer: Any, seed: int, ends_with_line: bool = False
    ) -> Any:
        """Two rows per pair, shuffled."""
        ordered = [single for row in rows for single in _singles(row)]
        Random(seed).shuffle(ordered)
        return super().dataset(ordered, tokenizer, seed)


def _singles(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The row itself, or the two rows of a pair."""
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
    # SFT on the model's own samples that the reward accepts: same loss as SFT, on-policy data.
    _SFT(
        name="rft",
        trainer="trl:SFTTrainer",
        config="trl:SFTConfig",
        columns=("prompt", "completion"),
        made_of_samples="completions",
        needs_samples=True,
    ),
    # The reference is the base: TRL loads it again from the folder of the model, in the same dtype,
    # also when a run is resumed.
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
    # when only `loss_type` is set, which is another algorithm, CPO-SimPO, so these are fixed. TRL's
    # `beta = 0.1` is that of DPO; SimPO divides by the length and needs a larger one. Ours, and the
    # margin of half of it, are those that its authors trained Llama-3-Base with and
    # recommend as a start (README of princeton-nlp/SimPO).
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
    # Advantages within the group, a clipped ratio per token.
    OnlineAlgorithm(
        name="grpo",
        trainer="trl:GRPOTrainer",
        config="trl:GRPOConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
    # Advantage over the mean of the other samples, one ratio per completion. Its KL penalty is in
    # the reward and on by default (`beta`); TRL loads the reference from the folder of the model.
    OnlineAlgorithm(
        name="rloo",
        trainer="trl:RLOOTrainer",
        config="trl:RLOOConfig",
        columns=("prompt",),
        takes_reward=True,
    ),
    # trimtab's own trainer: TRL never had it, and verl's recipe no longer runs. Reward model and
    # reference start as the base, also when a run is resumed.
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
