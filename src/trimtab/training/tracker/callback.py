"""`UpdateTracker`: a callback that follows every optimizer step of a Trainer, TRL's among them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trimtab.errors import SettingsError
from trimtab.training.tracker.parts import parse_stored_dtype
from trimtab.training.tracker.run import KindTotals, Session, TrackerSettings


class UpdateTracker(TrainerCallback):  # type: ignore[misc]
    """Counts, step by step, what training does to the weights as they are stored.

    One line before `trainer.train()`::

        UpdateTracker("updates.trimtab").attach(trainer)

    At each point and for each kind of tensor: elements that differ from the base, from the point
    before, ever did, and came back; gradients that are not 0; elements that the optimizer moved
    and rounding kept where they were; norms. All is by bits in the stored dtype: fp32 weights are
    rounded to it before they are compared, as they are when a checkpoint is saved.

    The file has every point (`trimtab trajectory updates.trimtab` reads it), and the Trainer's
    logs have the last one, under `trimtab/…`. A run that is resumed from one of its checkpoints
    goes on in the same file, and ends as if it had not stopped.

    What counts as moved by the optimizer is in `trimtab.training.tracker.gradients`. It is known at
    `every=1` only, since a step is compared with the one before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        stored_dtype: str | None = None,
        log_kinds: bool = False,
        force: bool = False,
        keep_base: bool = False,
    ) -> None:
        """Say what to track; nothing is read or written before training begins.

        Args:
            path: The file to write. Until the last step, `path` + `.base` lies beside it: the
                weights that training began with.
            every: Steps from point to point. A point is also taken whenever a checkpoint is saved,
                and at the last step.
            stored_dtype: Dtype in which fp32 weights are compared: `bfloat16`, `float16` or
                `float32`. By default the one of 16 bits that holds the base without loss, if any
                does, and else `float32`. Other weights are compared in their own.
            log_kinds: Also log the figures of each kind.
            force: Let a new run replace the file. A resumed one goes on in it either way.
            keep_base: Leave `path` + `.base` there after the last step, too: for a run that may
                have to go on from an earlier checkpoint until its result is saved.

        Raises:
            SettingsError: A setting is out of range.
        """
        if every < 1:
            raise SettingsError(f"every is a number of steps from 1 on, not {every}")
        self._settings = TrackerSettings(Path(path), every, parse_stored_dtype(stored_dtype), force)
        self._log_kinds = log_kinds
        self._keep_base = keep_base
        self._session: Session | None = None
        self._is_logged = True

    def __repr__(self) -> str:
        path, every = str(self._settings.path), self._settings.every
        state = "" if self._session is None else f", step {self._session.last_step}"
        return f"UpdateTracker({path!r}, every={every}{state})"

    def attach(self, trainer: Any) -> UpdateTracker:
        """Track the training of a trainer.

        The tracker comes before the trainer's other callbacks, so that those that report to
        TensorBoard and the like find its figures in the logs. (With `trainer.add_callback` it
        would come after them, and only the file and `trainer.state.log_history` had them.)
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the base, or find the point that the run is resumed after."""
        self._session = Session(self._settings, kwargs["model"], state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See the gradients, which the optimizer may use up."""
        if self._session is not None and self._is_due(state.global_step + 1):
            self._session.see_gradients(kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point, while the gradients are still there."""
        if self._is_due(state.global_step + 1):
            self._take_point(state.global_step + 1, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point of the last step."""
        if state.global_step >= state.max_steps or control.should_save:
            self._take_point(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point, so that the run can be resumed from this checkpoint."""
        self._take_point(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point if training was stopped between two, and let go of everything."""
        if self._session is None:
            return
        if not args.load_best_model_at_end:  # else other weights are loaded by now
            self._take_point(state.global_step)
        is_over = state.global_step >= state.max_steps
        self._session.close(finished=is_over and not self._keep_base)
        self._session = None

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Add the figures of the last point to the logs of a step."""
        if self._is_logged or not logs or "loss" not in logs or self._session is None:
            return
        totals = self._session.totals
        if not totals:
            return
        figures = _for_logs("", KindTotals.sum_of(totals.values()))
        if self._log_kinds:
            for kind, of in totals.items():
                figures |= _for_logs(f"/{kind}", of)
        logs.update(figures)
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(figures)
        self._is_logged = True

    def _is_due(self, step: int) -> bool:
        return step % self._settings.every == 0

    def _take_point(self, step: int, optimizer: Any = None) -> None:
        if self._session is not None and step > self._session.last_step:
            self._session.take_point(step, optimizer)
            self._is_logged = False


def _for_logs(suffix: str, totals: KindTotals) -> dict[str, float]:
    """The figures of one point, as shares of all elements where they count any."""
    whole, figures = max(totals.num_elements, 1), totals.figures
    values = {
        "changed": totals.changed / whole,
        "stepped": figures.stepped / whole,
        "ever": totals.ever / whole,
        "returned": (totals.ever - totals.changed) / whole,
        "gradient_density": figures.gradient_density,
        "absorbed": figures.absorbed_share,
        "step_norm": figures.step_norm,
        "update_norm": figures.update_norm,
    }
    return {f"trimtab/{name}{suffix}": of for name, of in values.items() if of is not None}
