"""What the kinds share that ask the gradients of the base: what they look at, and the output."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from trimtab.checkpoints import opened
from trimtab.cli.mask.make.options import Making, base_option, makes_a_mask
from trimtab.cli.questions import reward_table, task_config
from trimtab.cli.terminal import say
from trimtab.words import plural

if TYPE_CHECKING:
    from trimtab.training.probes.losses import Losses
    from trimtab.training.probes.measures import Measure
    from trimtab.training.runs.settings import DataTable, RewardTable

__all__ = ["Probing", "probes", "probes_batches"]


class Probing:
    """What a command asks a base about, and what becomes of the answer."""

    def __init__(self, base: str, dtype: Literal["bf16", "fp32"], making: Making, **asked: Any):
        """Check the options.

        Args:
            base: The checkpoint, as typed.
            dtype: In which it computes.
            making: How many elements are selected, and where the mask goes.
            asked: Options of the data and the reward.

        Raises:
            UsageError: They contradict each other.
        """
        self._base = base
        self._dtype = dtype
        self._making = making
        self._asked = asked
        if (asked["prompts"] is None) == (asked["task"] is None):
            raise click.UsageError("give either --prompts FILE or --task NAME: what to look at")
        if asked["task"] is None and (asked["config"] or asked["chat"]):
            raise click.UsageError("--config and --chat are for --task")
        if not making.is_sized:
            raise click.UsageError("give --density D or --like MASK: how many to select")

    def run(self, measure: Measure, losses: Losses) -> None:
        """Score every element, select, write the mask, and say what it took.

        Args:
            measure: What is made of the gradients.
            losses: Whose gradients.
        """
        from trimtab.training.probes.data import read_data
        from trimtab.training.probes.engine import probe

        making = self._making
        data = read_data(
            self._table(),
            losses.needs,
            reward=self._reward(losses),
            stop=self._asked["stop"],
            max_completion_length=self._asked["max_tokens"],
            seed=making.seed,
        )
        with opened(self._base) as (base,):
            # What cannot be selected is refused before the work, not after it.
            making.quotas({name: of.shape for name, of in base.tensors.items()}, base)
            with probe(
                self._base,
                measure,
                losses,
                data,
                folder=making.output.parent,
                names=making.names(base),
                seed=making.seed,
                dtype=self._dtype,
            ) as probed:
                say(_cost(probed.step), err=True)
                making.by_scores(probed.scores, base, probed.step)

    def _table(self) -> DataTable:
        from trimtab.training.runs.settings import DataTable

        prompts = self._asked["prompts"]
        return DataTable(
            file=None if prompts is None else str(prompts),
            task=self._asked["task"],
            chat=self._asked["chat"],
            config=task_config(self._asked["config"]),
        )

    def _reward(self, losses: Losses) -> RewardTable | None:
        given = {name: self._asked.get(name) for name in _JUDGING}
        is_judged = losses.needs == "rewards" and self._asked["prompts"] is not None
        if any(given.values()) and not is_judged:
            raise click.UsageError(
                "--verifier, --pattern, --column and --reward are for --loss reward and --prompts"
            )
        return reward_table(**given) if is_judged else None


_JUDGING = ("verifier", "pattern", "column", "reward")
"""Options that say what judges a sample."""

_ASKED = ("prompts", "task", "config", "chat", "stop", "max_tokens", *_JUDGING)
"""Those, and options that say what is looked at."""

_path = click.Path(path_type=Path)

_DATA = (
    click.option("--prompts", type=_path, metavar="FILE", help="Look at these JSON Lines rows."),
    click.option("--task", metavar="NAME", help="Or a task: addition or reasoning_gym:NAME."),
    click.option(
        "--config", multiple=True, metavar="KEY=VALUE", help="Configure a reasoning-gym task."
    ),
    click.option("--chat", is_flag=True, help="Put its questions as messages of a user."),
)

_SAMPLING = (
    click.option("--stop", metavar="TEXT", help="Ends a sample, beside the end token: one token."),
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        help="Of a sample.  [default: 256; addition 3]",
    ),
)

_DTYPE = click.option(
    "--dtype",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Compute in this.",
)

_LOSS = (
    click.option(
        "--loss",
        type=click.Choice(["sft", "reward"]),
        required=True,
        help="Of given completions, or the policy gradient of own samples that are rewarded.",
    ),
    click.option(
        "--batches",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Gradients, each of one batch.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Completions in a batch.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=2),
        help="Of each prompt, for --loss reward.  [default: 8]",
    ),
)

_REWARD = (
    click.option(
        "--verifier",
        type=click.Choice(["exact", "regex", "math"]),
        help="When a sample is right, for --prompts.  [default: exact]",
    ),
    click.option("--pattern", metavar="REGEX", help="Finds the answer, for --verifier regex."),
    click.option("--column", metavar="NAME", help="Column of the right answer.  [default: answer]"),
    click.option("--reward", metavar="FILE.py:NAME", help="A reward function, in place of both."),
)


def probes(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Probing` to a command, which is given it as its argument `probing`."""

    @wraps(function)
    def with_probing(*, base: str, dtype: Any, making: Making, **options: Any) -> None:
        asked = {name: options.pop(name) for name in _ASKED if name in options}
        function(probing=Probing(base, dtype, making, **asked), **options)

    return _with((base_option, *_DATA, *_SAMPLING), makes_a_mask(_DTYPE(with_probing)))


def probes_batches(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of `Probing`, and of a loss on batches.

    The command is given the first as its argument `probing`, the second as `losses`.
    """

    @wraps(function)
    def with_losses(
        *, probing: Probing, loss: str, batches: int, batch_size: int, samples: int | None
    ) -> None:
        from trimtab.training.probes.losses import AnswerLoss, RewardLoss

        if loss == "sft" and samples is not None:
            raise click.UsageError("--samples is for --loss reward: --loss sft draws none")
        losses: Losses = AnswerLoss(batches, batch_size)
        if loss == "reward":
            losses = RewardLoss(batches, batch_size, samples or 8)
        function(probing=probing, losses=losses)

    return _with((*_LOSS, *_REWARD), probes(with_losses))


def _with(options: tuple[Callable[..., Any], ...], function: Callable[..., None]) -> Any:
    """Add options to a command, the first of them listed first."""
    for option in reversed(options):
        function = option(function)
    return function


def _cost(step: Any) -> str:
    """What a probe took, in words."""
    memory = step["peak_memory"]
    above = (memory["num_bytes"] - memory["num_bytes_at_start"]) / 1e6
    tokens = plural(step["num_tokens"], "token")
    told = f"{plural(step['num_sequences'], 'completion')} with {tokens}"
    if "num_groups" in step:
        told += f", {step['num_groups_told']:,} of {step['num_groups']:,} prompts with a signal"
    return f"looked at {told}: {step['seconds']:.0f} s, at most {above:,.0f} MB above the model"
