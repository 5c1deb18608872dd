"""The trainer of a run: model, tokenizer, data and mask put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from trimtab.errors import SettingsError, TrimtabError
from trimtab.masks import Mask
from trimtab.training.masked_training import MaskedTraining, train_only
from trimtab.training.progress import Stage
from trimtab.training.runs.base_model import DTYPES
from trimtab.training.runs.prepare import PreparedRun

__all__ = ["Stop", "build_trainer", "follow", "order_by_epoch"]

Stop = Callable[[], bool]
"""Asked after every step whether to stop."""


def build_trainer(
    run: PreparedRun, mask: Mask | None, work: Path, callbacks: Sequence[Any]
) -> tuple[Any, MaskedTraining | None]:
    """Load the model and set up its trainer.

    Args:
        run: The run.
        mask: What is trained; None for everything, by torch's own optimizer.
        work: For the Trainer's checkpoints.
        callbacks: Trainer callbacks.
    """
    import torch
    from transformers import AutoTokenizer, PrinterCallback

    tokenizer = AutoTokenizer.from_pretrained(run.base.folder)
    dropout = {} if run.file.dropout is None else run.base.with_dropout(run.file.dropout)
    model = run.base.load(run.dtype, **dropout)
    args = copy(run.args)  # the Trainer writes to it, as we do
    args.output_dir = str(work)
    try:
        trainer = run.algorithm.build(model, tokenizer, run.rows, run.reward, args, callbacks)
    except TrimtabError:
        raise
    except Exception as error:  # whatever settings, data or model lead to in there
        told = (
            ""
            if isinstance(error, ValueError | TypeError | ImportError)
            else f"{type(error).__name__}: "
        )
        raise SettingsError(
            f"{run.algorithm.trainer.rpartition(':')[2]}: {told}{' '.join(str(error).split())}"
        ) from error
    run.base.check()  # TRL may have loaded a reference model from the same folder
    trainer.remove_callback(PrinterCallback)
    order_by_epoch(trainer)
    if mask is None:
        return trainer, None
    table = run.file.optimizer
    training = train_only(
        trainer,
        mask,
        also=run.file.also,
        master=table.master,
        state_dtype=getattr(torch, DTYPES[table.state_dtype]),
        clip_by=table.clip_by,
        nonfinite=table.nonfinite,
        check_base=False,  # `load_mask` compared it with the checkpoint itself
    )
    return trainer, training


def order_by_epoch(trainer: Any) -> None:
    """Make the order of the prompts follow from the seed and the epoch, for a run that goes on.

    TRL draws the orders of GRPO's and RLOO's epochs one after the other from one generator, which
    begins anew when a run is resumed: its second epoch would come in the order of the first.
    Trainers with other samplers are left as they are.
    """
    import torch
    from trl.trainer.utils import RepeatSampler

    make = trainer._get_train_sampler

    def made(*args: Any, **more: Any) -> Any:
        sampler = make(*args, **more)
        if not isinstance(sampler, RepeatSampler) or not sampler.shuffle:
            return sampler

        def set_epoch(epoch: int) -> None:
            sampler.generator.manual_seed(sampler.seed)
            for _ in range(epoch):
                torch.randperm(sampler.num_samples, generator=sampler.generator)

        sampler.set_epoch = set_epoch  # the Trainer calls it before every epoch
        return sampler

    trainer._get_train_sampler = made


def follow(run: PreparedRun, line: Stage, stop: Stop, num_steps: int | None = None) -> Any:
    """A Trainer callback that shows each step, and stops where a run can go on.

    Args:
        run: The run.
        line: Where steps are shown.
        stop: Whether to stop.
        num_steps: Steps to show as the whole; None for all of the Trainer's.
    """
    from transformers import TrainerCallback

    steps_per_round = run.algorithm.steps_per_round(run.args)

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line.expect(num_steps or state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            done = state.global_step
            if done >= state.max_steps:
                # The model itself is saved next; the Trainer would save a checkpoint before.
                control.should_save = control.should_save and run.keeps_checkpoints
            elif done % steps_per_round == 0 and stop():
                control.should_save = control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line.step(state.global_step, logs)

    return Follow()
