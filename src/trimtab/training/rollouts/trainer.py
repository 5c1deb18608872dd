"""`RolloutTrainer`, the base class of the PPO and PRIME trainers.

`trainer.model` is the policy alone; optimizer, schedule, accumulation, clipping, logging and
checkpoints are the Trainer's. A round starts in `_prepare_inputs`, where the Trainer would move a
batch to the device: completions are sampled and split into the batches of all steps of the round.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from trimtab.errors import SettingsError
from trimtab.training.rollouts.auxiliary_model import AuxiliaryModel
from trimtab.training.rollouts.rewards import Rewards, RewardSource, reward_problems
from trimtab.training.rollouts.sampling import (
    Batch,
    PolicyBatch,
    RoundSampler,
    Sampler,
    Samples,
    ids_of,
    in_chunks,
    policy_loss,
    prompt_problems,
    split_rows,
    take_rows,
    token_log_probs,
)
from trimtab.training.runs.data import prompt_ids


@dataclass
class RolloutConfig(TrainingArguments):  # type: ignore[misc]
    """Settings of sampling and of the optimizer steps of a round.

    One optimizer step uses `per_device_train_batch_size x gradient_accumulation_steps` completions,
    a mini-batch. A round samples `num_mini_batches` of them, and makes `num_ppo_epochs` passes over
    them, reshuffled each time.

    Attributes:
        num_ppo_epochs: Passes over the completions of a round. 4, as in `baselines` and in TRL
            until 1.12.
        num_mini_batches: Mini-batches of a round. 1, as in TRL until 1.12.
        cliprange: The clip range epsilon of the policy loss. 0.2, the best of Schulman et al. 2017
            (arXiv 1707.06347), sec. 6.1, table 1.
        max_completion_length: Maximum tokens of a completion. 512, as in TRL's GRPO (1.16).
        temperature: Logits are divided by it, when completions are sampled and in all
            log-probabilities. 1: the policy itself.
        top_p: Probability mass to sample completions from. 1: all of it.
        whiten_advantages: Whether to scale advantages to mean 0 and variance 1 in each round.
        disable_dropout: Whether to disable dropout. With dropout, the ratio of the new policy
            to the old one is not 1 in the first step of a round.
        remove_unused_columns: Has no effect: reward functions get every column.
    """

    num_ppo_epochs: int = 4
    num_mini_batches: int = 1
    cliprange: float = 0.2
    max_completion_length: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    whiten_advantages: bool = True
    disable_dropout: bool = True
    remove_unused_columns: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = list(self._problems())
        if problems:
            raise SettingsError("; ".join(problems))

    @property
    def mini_batch_size(self) -> int:
        """Completions per optimizer step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    @property
    def round_size(self) -> int:
        """Completions per round."""
        return self.mini_batch_size * self.num_mini_batches

    @property
    def rows_per_round(self) -> int:
        """Rows of the data per round."""
        return self.round_size

    @property
    def steps_per_round(self) -> int:
        """Optimizer steps per round."""
        return self.num_ppo_epochs * self.num_mini_batches

    def _problems(self) -> Iterator[str]:
        for name in ("num_ppo_epochs", "num_mini_batches", "max_completion_length"):
            if (count := getattr(self, name)) < 1:
                yield f"{name} is {count}, expected at least 1"
        for name in ("cliprange", "temperature"):
            if not (value := getattr(self, name)) > 0:
                yield f"{name} is {value}, expected a number above 0"
        if not 0 < self.top_p <= 1:
            yield f"top_p is {self.top_p}, expected a number above 0 and at most 1"
        if self.fp16:
            yield "fp16 scales gradients by a varying factor: use bf16"


class Means:
    """Weighted means by name; sums stay on their device until `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = defaultdict(float)
        self._weights: dict[str, float] = defaultdict(float)

    def add(self, name: str, total: float | Tensor, weight: float) -> None:
        """Add to a sum and to its weight."""
        self._sums[name] = self._sums[name] + total
        self._weights[name] += weight

    def take(self) -> dict[str, float]:
        """Return all means, in the order of their first `add`, and reset them."""
        means = {name: float(total) / self._weights[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._weights.clear()
        return means


Rows = Sequence[Mapping[str, Any]]

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
"""Names of float attributes of modules that call dropout as a function."""


class RolloutTrainer(Trainer):  # type: ignore[misc]
    """Samples completions in rounds, and takes some optimizer steps on each round.

    Subclasses define the models in addition to the policy (`make_reference`, `make_auxiliary`), and
    how a round is made (`make_round`).

    Args:
        model: The policy; `trainer.model`. Trained in place.
        args: The settings.
        train_dataset: Rows with a `prompt`, as text or messages, and the columns of the rewards.
        processing_class: The tokenizer.
        reward_funcs: A reward function with TRL's signature, a reward model or its path, or a list
            of them, whose rewards are added.
        callbacks: Trainer callbacks.
        optimizers: As for `Trainer`.
        ref_model: The reference; by default a copy of `model` as it is now. Pass it in a script
            that starts from weights that were trained already.

    Attributes:
        reference: The frozen reference; None without one.
        auxiliary: The model that is trained with the policy; saved in the Trainer's checkpoints.
        engine: Samples in place of the policy, if there is one: `EngineRollouts`.

    Raises:
        SettingsError: Arguments cannot be used; names all problems.
    """

    args: RolloutConfig
    engine: Any = None

    def __init__(
        self,
        model: PreTrainedModel,
        args: RolloutConfig,
        train_dataset: Any,
        processing_class: Any,
        reward_funcs: RewardSource | Sequence[RewardSource],
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        ref_model: PreTrainedModel | None = None,
    ) -> None:
        sources: list[Any] = [reward_funcs]
        if isinstance(reward_funcs, list | tuple):
            sources = list(reward_funcs)
        problems = [
            *_problems(model, args, train_dataset, processing_class),
            *reward_problems(sources),
        ]
        if problems:
            raise SettingsError(f"{type(self).__name__}: {'; '.join(problems)}")
        if args.disable_dropout:
            _disable_dropout(model)
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # rows stay rows
            train_dataset=train_dataset,
            processing_class=processing_class,
            callbacks=None if callbacks is None else list(callbacks),
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # losses are scaled in `compute_loss` alone
        self._rewards = Rewards(sources, processing_class, args.device)
        self.sampler = Sampler(
            model,
            processing_class,
            args.max_completion_length,
            temperature=args.temperature,
            top_p=args.top_p,
        )
        self.means = Means()
        self._round: list[Any] | None = None
        self._batch: Any = None
        self._num_batches = 0  # of the current optimizer step, so far
        self.reference = self.make_reference(self.model if ref_model is None else ref_model)
        self.auxiliary = self.make_auxiliary()

    @abstractmethod
    def make_reference(self, model: Any) -> Any:
        """Create the frozen reference from a model; None for no reference."""

    @abstractmethod
    def make_auxiliary(self) -> AuxiliaryModel:
        """Create the model that is trained with the policy."""

    @abstractmethod
    def make_round(self, rows: Rows) -> list[Any]:
        """Sample completions, and split them into the batches of a round, in order.

        Args:
            rows: `args.rows_per_round` rows of the data.
        """

    def train_auxiliary(self, batch: Any, is_last: bool) -> None:
        """Train the auxiliary model, if it takes a step with every step of the policy.

        Args:
            batch: The batch of the policy loss.
            is_last: Whether the policy takes its optimizer step next.
        """

    def add_to_losses(self, losses: Tensor, log_probs: Tensor, batch: Any) -> Tensor:
        """Add terms to the clipped policy loss of each token; none by default."""
        return losses

    # Overrides of the Trainer.

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Overrides the Trainer's: yields for every batch all rows of its round."""
        args = self.args
        sampler = RoundSampler(
            len(self.train_dataset),
            args.rows_per_round,
            args.steps_per_round * args.gradient_accumulation_steps,
            args.seed if args.data_seed is None else args.data_seed,
        )
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.rows_per_round,
            sampler=sampler,
            collate_fn=self.data_collator,
        )
        return self.accelerator.prepare(loader)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Overrides the Trainer's: starts with a new round, also after an interruption."""
        self._round, self._num_batches = None, 0
        self.auxiliary.forget_gradients()
        return super().train(*args, **kwargs)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Overrides the Trainer's: also trains the auxiliary model on the batch."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        is_last: bool = self.accelerator.sync_gradients
        self.train_auxiliary(self._batch, is_last)
        self._num_batches = 0 if is_last else self._num_batches + 1
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Overrides the Trainer's: maps the rows of a round to its next batch."""
        args = self.args
        step = self.state.global_step % args.steps_per_round
        if self._round is None or (step == 0 and self._num_batches == 0):
            self._round = self.make_round(inputs)
        self._batch = self._round[step * args.gradient_accumulation_steps + self._num_batches]
        return self._batch

    def compute_loss(
        self, model: Any, inputs: PolicyBatch, return_outputs: bool = False, **_: Any
    ) -> Tensor:
        """The policy loss on a batch, averaged over the tokens of its mini-batch."""
        args, batch = self.args, inputs
        log_probs = token_log_probs(model, batch.samples, args.temperature)
        losses, is_clipped = policy_loss(
            log_probs, batch.log_probs, batch.advantages, args.cliprange
        )
        losses = self.add_to_losses(losses, log_probs, batch)
        mask = batch.samples.completion_mask
        self.means.add("clip_fraction", is_clipped[mask].sum(), batch.samples.num_tokens)
        loss = losses[mask].sum() / batch.num_tokens
        # The Trainer divides by the number of batches, but this is the mean of the mini-batch.
        return loss * self.current_gradient_accumulation_steps

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Overrides the Trainer's: also creates the schedule of the auxiliary model."""
        decayed = self.get_decay_parameter_names(self.auxiliary.model)
        self.auxiliary.start(self.auxiliary_steps(num_training_steps), decayed)
        return super().create_scheduler(num_training_steps, optimizer)

    def auxiliary_steps(self, num_training_steps: int) -> int:
        """Number of steps of the auxiliary model, given those of the policy."""
        return num_training_steps

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        self.auxiliary.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.auxiliary.load(Path(checkpoint))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Overrides the Trainer's: adds the means since the last log of training."""
        if not any(name.startswith("eval_") for name in logs):
            logs.update(self.means.take())
        super().log(logs, *args, **kwargs)

    # Helpers of subclasses.

    def autocast(self, model: Any) -> AbstractContextManager[None]:
        """Autocast to bf16, if the Trainer does or if only the policy has bf16 weights."""
        is_wider = next(model.parameters()).dtype != self.model.dtype
        return torch.autocast(
            self.args.device.type, torch.bfloat16, enabled=self.args.bf16 or is_wider
        )

    def sample_and_reward(self, rows: Rows) -> tuple[Samples, Tensor]:
        """Sample a completion for each row, and reward it.

        Returns:
            The completions, and their rewards: fp32 `[rows]`.
        """
        prompts = [prompt_ids(self.processing_class, row["prompt"]) for row in rows]
        with self.autocast(self.model):
            samples = (self.engine or self.sampler).sample(prompts)
        ids = ids_of(samples)
        texts = self.sampler.texts(ids)
        completions = [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ]
        rewards = self._rewards(rows, completions, ids).to(self.args.device)
        self.means.add("reward", rewards.sum(), len(rows))
        self.means.add("completion_length", samples.num_tokens, len(rows))
        self.means.add("ended", samples.has_ended.sum(), len(rows))
        return samples, rewards

    def log_probs(self, model: Any, samples: Samples, temperature: float) -> Tensor:
        """Log-probabilities of completion tokens, in batches and without gradient."""

        def compute(part: Samples) -> Tensor:
            with self.autocast(model):
                return token_log_probs(model, part, temperature)

        return in_chunks(compute, model, samples, self.args.per_device_train_batch_size)

    def batches(self, whole: Batch) -> list[Batch]:
        """Split a round into the batches of all its steps.

        Args:
            whole: A dataclass with `samples` and `num_tokens`, which is set to the number of
                completion tokens of the mini-batch of a batch.
        """
        if self.engine is not None:
            whole = self.engine.corrected(whole)
        mask = whole.samples.completion_mask
        return [
            replace(take_rows(whole, batch), num_tokens=int(mask[mini_batch].sum()))
            for batch, mini_batch in self._batch_rows(len(mask))
        ]

    def _batch_rows(self, num_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the rows of every batch and of its mini-batch, reshuffled for each pass."""
        args = self.args
        for _ in range(args.num_ppo_epochs):
            order = torch.randperm(num_rows)
            for mini_batch in split_rows(order, args.mini_batch_size):
                for batch in split_rows(mini_batch, args.per_device_train_batch_size):
                    yield batch, mini_batch


def frozen_copy(model: Any) -> Any:
    """A copy of a model, to be used without training.

    `requires_grad` is set for speed: on a CPU, torch multiplies the slice of hidden states that
    `logits_to_keep` leaves many times more slowly by weights that do not require a gradient.
    """
    return copy.deepcopy(model).requires_grad_(True)


def _problems(model: Any, args: RolloutConfig, rows: Any, tokenizer: Any) -> Iterator[str]:
    """Yield everything that is wrong with the arguments."""
    if args.world_size > 1 or args.n_gpu > 1:
        yield (
            "it runs in one process on one device: start it without torchrun, and set "
            "CUDA_VISIBLE_DEVICES to one device"
        )
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        yield (
            f"model is a {type(model).__name__}, expected a causal language model of transformers"
        )
        return
    if tokenizer is None:
        yield "processing_class is missing: expected the tokenizer of the model"
        return
    if not hasattr(rows, "__len__"):
        yield f"train_dataset is a {type(rows).__name__}, expected a data set with a length"
        return
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = None if context is None else context - args.max_completion_length
    yield from prompt_problems(rows, tokenizer, room)
    if 0 < len(rows) < args.rows_per_round:
        yield (
            f"train_dataset has {len(rows)} rows, expected at least the {args.rows_per_round} of a "
            "round"
        )


def _disable_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
