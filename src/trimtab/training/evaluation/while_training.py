"""Held-out questions while a model trains, without an effect on its training.

Random states are restored and the model is only read, so a run ends in the same weights with and
without evaluations. Answers are greedy and computed as in training: with the weights in memory, and
under autocast if training is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from trimtab.errors import CheckpointError
from trimtab.results.journal import Journal
from trimtab.training.evaluation.answering import Progress, ask
from trimtab.training.evaluation.questions import Questions

FIGURES = ("step", "num_questions", "num_right", "accuracy", "interval")
"""Keys of an evaluation in `result.json`; its line in the journal has more."""


def evaluate_while_training(
    trainer: Any,
    questions: Questions,
    *,
    every: int,
    batch_size: int,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """Ask a model questions before it trains, every few steps and after the last one.

    Figures are logged by `trainer.log`, as `eval_accuracy`, `eval_num_right` and `eval_runtime` (in
    seconds), and so reach callbacks and trackers. Each evaluation is a line of a JSON Lines file.
    When a checkpoint is resumed, the lines of later steps are dropped: those steps are repeated.

    Args:
        trainer: A transformers `Trainer`, not yet training; its `evaluate` is replaced.
        questions: Held-out questions.
        every: Optimizer steps between two evaluations.
        batch_size: Completions generated at a time.
        path: The JSON Lines file.
        progress: Called after every batch of an evaluation.
    """
    from transformers import TrainerCallback

    journal = Journal(path, CheckpointError)

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        started = perf_counter()
        modes = {module: module.training for module in trainer.model.modules()}
        trainer.model.eval()  # TRL's `log` looks at it
        try:
            with _same_random_state():
                answers = ask(
                    trainer.model,
                    trainer.processing_class,
                    questions,
                    seed=0,
                    num_samples=0,
                    batch_size=batch_size,
                    progress=progress,
                )
            seconds = perf_counter() - started
            journal.append(
                {
                    "step": trainer.state.global_step,
                    "num_questions": answers.num_questions,
                    "num_right": answers.num_greedy_correct,
                    "accuracy": answers.greedy_accuracy,
                    "interval": answers.greedy_interval,
                    "right": [index for index, one in enumerate(answers.answers) if one.correct],
                    "seconds": seconds,
                }
            )
            metrics = {
                "eval_accuracy": answers.greedy_accuracy,
                "eval_num_right": answers.num_greedy_correct,
                "eval_runtime": seconds,
            }
            trainer.log(dict(metrics))
        finally:
            for module, mode in modes.items():
                module.training = mode
        trainer.control = trainer.callback_handler.on_evaluate(
            trainer.args, trainer.state, trainer.control, metrics
        )
        return metrics

    class Evaluate(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not state.global_step or not path.exists():
                journal.begin()
            else:
                journal.keep([line for line in journal.lines() if _step(line) <= state.global_step])
            if not state.global_step:
                evaluate()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % every == 0 or state.global_step >= state.max_steps:
                control.should_evaluate = True

    trainer.evaluate = evaluate
    trainer.add_callback(Evaluate())


def evaluations_in(path: Path) -> list[dict[str, Any]]:
    """The figures of all evaluations in a file of `evaluate_while_training`.

    Raises:
        CheckpointError: The file cannot be read.
    """
    return [
        {key: row[key] for key in FIGURES}
        for row in map(_row, Journal(path, CheckpointError).lines())
    ]


def _row(line: bytes) -> Mapping[str, Any]:
    row: Mapping[str, Any] = json.loads(line)
    return row


def _step(line: bytes) -> int:
    return int(_row(line)["step"])


@contextmanager
def _same_random_state() -> Iterator[None]:
    """Restore the random states of Python and NumPy; `ask` restores that of torch.

    A reward function may draw from them.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the state that old code draws from
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
