"""`trimtab mask make fisher | sign-consistency | snip`: masks by gradients of the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

import trimtab
from trimtab.cli import questions
from trimtab.cli.mask_make import Selection, base_option, makes_a_mask
from trimtab.cli.options import PATH, Command, adding
from trimtab.cli.terminal import say
from trimtab.words import plural

if TYPE_CHECKING:
    from trimtab.training.probes.engine import Measure
    from trimtab.training.probes.losses import Losses

_probing_options = adding(
    base_option,
    click.option("--prompts", type=PATH, metavar="FILE", help="JSON Lines file of prompts."),
    questions.task_options,
    questions.answer_options,
    click.option(
        "--dtype",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
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
        help="Number of gradients, each of one batch.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=32,
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
    help="Number of prompts, at most.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=4,
    help="Number of completions sampled from the base for each.",
)
@makes_a_mask
def fisher(num_prompts: int, samples: int, **settings: Any) -> None:
    """Select the elements with the largest diagonal Fisher information of the base.

    That is the mean square of the gradient of the log-probability of completions sampled from BASE:
    where it is small, expected gradients are small under any reward.
    """
    _check(**settings)
    from trimtab.training.probes.engine import FISHER
    from trimtab.training.probes.losses import OwnSamples

    _probe(FISHER, OwnSamples(num_prompts, samples), **settings)


@click.command(
    "sign-consistency",
    cls=Command,
    short_help="Elements that the gradients of many batches push the same way.",
    epilog="Example: trimtab mask make sign-consistency --base base/ --task addition --loss sft "
    "--density 0.1 -o p.safetensors",
)
@_batch_options
@makes_a_mask
def sign_consistency(**settings: Any) -> None:
    """Select the elements that the gradients of many batches push the same way.

    The score is |sum of the signs of the gradient| / N over N batches.
    """
    _check(**settings)
    from trimtab.training.probes.engine import SIGN_CONSISTENCY

    _probe_batches(SIGN_CONSISTENCY, **settings)


@click.command(
    "snip",
    cls=Command,
    short_help="Elements whose removal would change the loss most.",
    epilog="Example: trimtab mask make snip --base base/ --task addition --loss sft --density 0.1 "
    "-o p.safetensors",
)
@_batch_options
@makes_a_mask
def snip(**settings: Any) -> None:
    """Select the elements whose removal would change the loss most, to first order.

    The score is |weight × mean gradient| over the batches, as in SNIP (Lee et al. 2019).
    """
    _check(**settings)
    from trimtab.training.probes.engine import SNIP

    _probe_batches(SNIP, **settings)


def _check(
    *,
    selection: Selection,
    prompts: Path | None,
    task: str | None,
    config: tuple[str, ...],
    chat: bool,
    loss: str | None = None,
    samples: int | None = None,
    **more: Any,
) -> None:
    """Raise a UsageError for options that contradict each other, before torch is loaded."""
    if loss == "sft" and samples is not None:
        raise click.UsageError("--samples is for --loss reward: --loss sft draws none")
    if (prompts is None) == (task is None):
        raise click.UsageError("give either --prompts FILE or --task NAME")
    if task is None and (config or chat):
        raise click.UsageError("--config and --chat are for --task")
    if not selection.is_sized:
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
    **settings: Any,
) -> None:
    from trimtab.training.probes.losses import AnswerLoss, RewardLoss

    losses: Losses = AnswerLoss(batches, batch_size)
    if loss == "reward":
        losses = RewardLoss(batches, batch_size, samples or 8)
    _probe(measure, losses, **settings)


def _probe(
    measure: Measure,
    losses: Losses,
    *,
    selection: Selection,
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
    """Score every element, select, write the mask, and print the cost."""
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
        seed=selection.seed,
    )
    with trimtab.open_checkpoint(base) as checkpoint:
        # A selection that is impossible fails now, not after the gradients are computed.
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        selection.quotas(shapes, checkpoint)
        with probe(
            base,
            measure,
            losses,
            data,
            folder=selection.target.path.parent,
            names=selection.names(checkpoint),
            seed=selection.seed,
            dtype=dtype,
        ) as probed:
            say(_cost(probed.step), err=True)
            selection.by_scores(probed.scores, checkpoint, probed.step)


def _cost(step: Any) -> str:
    """The cost of a probe, in words."""
    memory = step["peak_memory"]
    above = (memory["num_bytes"] - memory["num_bytes_at_start"]) / 1e6
    tokens = plural(step["num_tokens"], "token")
    read = f"{plural(step['num_sequences'], 'completion')} with {tokens}"
    if "num_groups" in step:
        with_signal = f"{step['num_groups_told']:,} of {step['num_groups']:,} prompts"
        read += f", {with_signal} with a signal"
    return f"read {read}: {step['seconds']:.0f} s, at most {above:,.0f} MB above the model"
