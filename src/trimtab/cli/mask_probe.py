"""`trimtab mask make fisher | sign-consistency | snip`: masks by gradients of the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import trimtab
from trimtab.cli import questions
from trimtab.cli.mask_make import Making, base_option, makes_a_mask
from trimtab.cli.options import PATH, Command, adding
from trimtab.cli.terminal import say
from trimtab.words import plural

if TYPE_CHECKING:
    from trimtab.training.probes.engine import Measure
    from trimtab.training.probes.losses import Losses

_probing_options = adding(
    base_option,
    click.option(
        "--prompts", type=PATH, metavar="FILE", help="JSON Lines file of prompts to look at."
    ),
    questions.task_options,
    questions.answer_options,
    click.option(
        "--dtype",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        show_default=True,
        help="Dtype to compute in.",
    ),
)

_batch_options = adding(
    click.option(
        "--loss",
        type=click.Choice(["sft", "reward"]),
        required=True,
        help="Loss: that of given completions, or the policy gradient of rewarded samples.",
    ),
    click.option(
        "--batches",
        type=click.IntRange(min=1),
        default=16,
        show_default=True,
        help="Number of gradients, each of one batch.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Number of completions in a batch.",
    ),
    click.option(
        "--samples",
        type=click.IntRange(min=2),
        help="Number of samples of each prompt, for --loss reward.  [default: 8]",
    ),
    questions.judging_options,
    _probing_options,
)


@click.command(
    "fisher",
    cls=Command,
    short_help="Elements with the largest Fisher information of the base on some prompts.",
    epilog="Example: trimtab mask make fisher --base base/ --task addition --density 0.1 -o "
    "p.safetensors",
)
@_probing_options
@click.option(
    "--num-prompts",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Number of prompts to look at, at most.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Number of completions that the base gives to each.",
)
@makes_a_mask
def fisher(num_prompts: int, samples: int, **asked: Any) -> None:
    """Select the elements with the largest diagonal Fisher information of the base.

    That is the mean square of the gradient of the log-probability of what BASE itself answers to
    some prompts: where it is small, expected gradients are small, whatever is rewarded.
    """
    _check(**asked)
    from trimtab.training.probes.engine import FISHER
    from trimtab.training.probes.losses import OwnSamples

    _probe(FISHER, OwnSamples(num_prompts, samples), **asked)


@click.command(
    "sign-consistency",
    cls=Command,
    short_help="Elements that the gradients of many batches push the same way.",
    epilog="Example: trimtab mask make sign-consistency --base base/ --task addition --loss sft "
    "--density 0.1 -o p.safetensors",
)
@_batch_options
@makes_a_mask
def sign_consistency(**asked: Any) -> None:
    """Select the elements that the gradients of many batches push the same way.

    The score is |sum of the signs of the gradient| / N over N batches.
    """
    _check(**asked)
    from trimtab.training.probes.engine import SIGN_CONSISTENCY

    _probe_batches(SIGN_CONSISTENCY, **asked)


@click.command(
    "snip",
    cls=Command,
    short_help="Elements whose removal would change the loss most.",
    epilog="Example: trimtab mask make snip --base base/ --task addition --loss sft --density 0.1 "
    "-o p.safetensors",
)
@_batch_options
@makes_a_mask
def snip(**asked: Any) -> None:
    """Select the elements whose removal would change the loss most, to first order.

    The score is |weight × mean gradient| over the batches, as in SNIP (Lee et al. 2019).
    """
    _check(**asked)
    from trimtab.training.probes.engine import SNIP

    _probe_batches(SNIP, **asked)


def _check(
    *,
    making: Making,
    prompts: Path | None,
    task: str | None,
    config: tuple[str, ...],
    chat: bool,
    loss: str | None = None,
    samples: int | None = None,
    **more: Any,
) -> None:
    """Refuse options that contradict each other, before torch is loaded.

    Raises:
        UsageError: They do.
    """
    if loss == "sft" and samples is not None:
        raise click.UsageError("--samples is for --loss reward: --loss sft draws none")
    if (prompts is None) == (task is None):
        raise click.UsageError("give either --prompts FILE or --task NAME: what to look at")
    if task is None and (config or chat):
        raise click.UsageError("--config and --chat are for --task")
    if not making.is_sized:
        raise click.UsageError("give --density D or --like MASK: how many to select")
    judging = [more.get(name) for name in ("verifier", "pattern", "column", "reward")]
    if any(judging) and (loss != "reward" or prompts is None):
        raise click.UsageError(
            "--verifier, --pattern, --column and --reward are for --loss reward and --prompts"
        )


def _probe_batches(
    measure: Measure,
    *,
    loss: str,
    batches: int,
    batch_size: int,
    samples: int | None,
    **asked: Any,
) -> None:
    from trimtab.training.probes.losses import AnswerLoss, RewardLoss

    losses: Losses = AnswerLoss(batches, batch_size)
    if loss == "reward":
        losses = RewardLoss(batches, batch_size, samples or 8)
    _probe(measure, losses, **asked)


def _probe(
    measure: Measure,
    losses: Losses,
    *,
    making: Making,
    base: str,
    dtype: Literal["bf16", "fp32"],
    prompts: Path | None,
    task: str | None,
    config: tuple[str, ...],
    chat: bool,
    stop: str | None,
    max_tokens: int | None,
    **judging: Any,
) -> None:
    """Score every element, select, write the mask, and say what it took.

    Args:
        measure: What is made of the gradients.
        losses: Whose gradients.
        making: How many elements are selected, and where the mask goes.
        base: The checkpoint, as typed.
        dtype: The dtype to compute in.
        prompts: A file of rows to look at.
        task: A task to look at instead.
        config: Settings of the task.
        chat: Put its questions as messages of a user.
        stop: A text that ends a sample.
        max_tokens: Tokens of a sample, at most.
        judging: The arguments of `reward_table`.
    """
    from trimtab.training.probes.engine import probe
    from trimtab.training.probes.losses import read_data

    is_judged = losses.needs == "rewards" and prompts is not None
    data = read_data(
        questions.task_table(
            task, config, file=None if prompts is None else str(prompts), chat=chat
        ),
        losses.needs,
        reward=questions.reward_table(**judging) if is_judged else None,
        stop=stop,
        max_completion_length=max_tokens,
        seed=making.seed,
    )
    with trimtab.open_checkpoint(base) as checkpoint:
        # What cannot be selected is refused before the work, not after it.
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        making.quotas(shapes, checkpoint)
        with probe(
            base,
            measure,
            losses,
            data,
            folder=making.target.path.parent,
            names=making.names(checkpoint),
            seed=making.seed,
            dtype=dtype,
        ) as probed:
            say(_cost(probed.step), err=True)
            making.by_scores(probed.scores, checkpoint, probed.step)


def _cost(step: Any) -> str:
    """What a probe took, in words."""
    memory = step["peak_memory"]
    above = (memory["num_bytes"] - memory["num_bytes_at_start"]) / 1e6
    tokens = plural(step["num_tokens"], "token")
    looked_at = f"{plural(step['num_sequences'], 'completion')} with {tokens}"
    if "num_groups" in step:
        with_signal = f"{step['num_groups_told']:,} of {step['num_groups']:,} prompts"
        looked_at += f", {with_signal} with a signal"
    return (
        f"looked at {looked_at}: {step['seconds']:.0f} s, at most {above:,.0f} MB above the model"
    )
