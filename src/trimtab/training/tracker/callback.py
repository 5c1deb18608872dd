"""`UpdateTracker`, a callback that tracks the optimizer steps of a Trainer (also TRL's)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from trimtab.errors import SettingsError
from trimtab.training.tracker.parts import parse_stored_dtype
from trimtab.training.tracker.run import KindTotals, Session, TrackerSettings


class UpdateTracker(TrainerCallback):  # type: ignore[misc]
    """Counts, step by step, how training changes the weights as they are stored.

    Attach it before `trainer.train()`::

        UpdateTracker("updates.trimtab").attach(trainer)

    At each point it records per kind of tensor: how many elements differ from the base and from
    the previous point, ever differed, and came back; nonzero gradients; elements that the optimizer
    moved and rounding left unchanged; and norms. Bits are compared in the stored dtype: fp32
    weights are rounded to it first, as when a checkpoint is saved.

    The file has every point (`trimtab trajectory updates.trimtab` reads it), and the Trainer's
    logs have the last one, under `trimtab/…`. A run that is resumed from one of its checkpoints
    continues the same file, and ends with the same file as an uninterrupted run.

    See `trimtab.training.tracker.gradients` for what counts as moved by the optimizer. This is
    known with `every=1` only, since each step is compared with the previous one.
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
        """Set what to track; nothing is read or written before training starts.

        Args:
            path: The file to write. Until the last step, the initial weights are kept next to it,
                in `path` + `.base`.
            every: Steps between points. A point is also taken whenever a checkpoint is saved, and
                at the last step.
            stored_dtype: Dtype in which fp32 weights are compared: `bfloat16`, `float16` or
                `float32`. By default a 16-bit dtype if it represents the base exactly, else
                `float32`. Other weights are compared in their own dtype.
            log_kinds: Whether to also log the figures of each kind.
            force: Whether a new run may replace the file. A resumed run always continues it.
            keep_base: Whether to keep `path` + `.base` after the last step, for a run that may be
                resumed from an earlier checkpoint.

        Raises:
            SettingsError: A setting is out of range.
        """
        if every < 1:
            raise SettingsError(f"every is {every}, expected a number of steps of at least 1")
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

        The tracker is put before the trainer's other callbacks, so that those that report to
        TensorBoard and so on find its figures in the logs. (With `trainer.add_callback` it would
        come after them, and only the file and `trainer.state.log_history` would have them.)
        """
        callbacks = trainer.callback_handler.callbacks
        if self not in callbacks:
            callbacks.insert(0, self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the base, or find the point from which the run is resumed."""
        self._session = Session(self._settings, kwargs["model"], state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the gradients, before the optimizer consumes them."""
        if self._session is not None and self._is_due(state.global_step + 1):
            self._session.count_gradients(kwargs["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point, while the gradients still exist."""
        if self._is_due(state.global_step + 1):
            self._take_point(state.global_step + 1, kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point at the last step, or before a checkpoint is saved."""
        if state.global_step >= state.max_steps or control.should_save:
            self._take_point(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point, so that the run can be resumed from this checkpoint."""
        self._take_point(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take a point if training was stopped between two, and close the session."""
        if self._session is None:
            return
        if not args.load_best_model_at_end:  # else the best weights are loaded by now
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
            for kind, kind_totals in totals.items():
                figures |= _for_logs(f"/{kind}", kind_totals)
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
    """The figures of one point; counts of elements as shares of all elements."""
    num_elements, figures = max(totals.num_elements, 1), totals.figures
    values = {
        "changed": totals.changed / num_elements,
        "stepped": figures.stepped / num_elements,
        "ever": totals.ever / num_elements,
        "returned": (totals.ever - totals.changed) / num_elements,
        "gradient_density": figures.gradient_density,
        "absorbed": figures.absorbed_share,
        "step_norm": figures.step_norm,
        "update_norm": figures.update_norm,
    }
    return {f"trimtab/{name}{suffix}": value for name, value in values.items() if value is not None}
