"""Held-out questions and loss while a model trains, without an effect on its training.

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
from trimtab.training.rollouts.sampling import seeded

FIGURES = ("step", "loss", "num_questions", "num_right", "accuracy", "interval")
"""Keys of an evaluation in `result.json`; its line in the journal has more."""


def evaluate_while_training(
    trainer: Any,
    questions: Questions | None,
    *,
    every: int,
    batch_size: int,
    path: Path,
    progress: Progress | None = None,
) -> None:
    """Evaluate a model before it trains, every few steps and after the last one.

    If the trainer has an `eval_dataset`, it evaluates that and logs its figures as always. Those of
    the questions are logged by `trainer.log` as `eval_accuracy`, `eval_num_right` and
    `eval_runtime` (in seconds, unless the trainer has logged its own), and so reach callbacks and
    trackers. Each evaluation is a line of a JSON Lines file. When a checkpoint is resumed, the
    lines of later steps are dropped: those steps are repeated.

    Args:
        trainer: A transformers `Trainer`, not yet training; its `evaluate` is replaced.
        questions: Held-out questions; None for none.
        every: Optimizer steps between two evaluations.
        batch_size: Completions generated at a time.
        path: The JSON Lines file.
        progress: Called after every batch of questions.
    """
    from transformers import TrainerCallback

    journal = Journal(path, CheckpointError)
    evaluate_dataset = None if trainer.eval_dataset is None else trainer.evaluate

    def evaluate(*_: Any, **__: Any) -> dict[str, float]:
        started, metrics = perf_counter(), dict[str, float]()
        row = dict.fromkeys((*FIGURES, "right", "seconds"))
        row["step"] = trainer.state.global_step
        with _unchanged(trainer.model):
            if evaluate_dataset is not None:
                metrics |= evaluate_dataset()
                row["loss"] = metrics["eval_loss"]
            if questions is not None:
                answers = ask(
                    trainer.model,
                    trainer.processing_class,
                    questions,
                    seed=0,
                    num_samples=0,
                    batch_size=batch_size,
                    progress=progress,
                )
                row |= {
                    "num_questions": answers.num_questions,
                    "num_right": answers.num_greedy_correct,
                    "accuracy": answers.greedy_accuracy,
                    "interval": answers.greedy_interval,
                    "right": [index for index, one in enumerate(answers.answers) if one.correct],
                }
                asked = {
                    "eval_accuracy": answers.greedy_accuracy,
                    "eval_num_right": answers.num_greedy_correct,
                }
                if evaluate_dataset is None:
                    asked["eval_runtime"] = perf_counter() - started
                trainer.log(dict(asked))
                metrics |= asked
        journal.append({**row, "seconds": perf_counter() - started})
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
        {key: row.get(key) for key in FIGURES}
        for row in map(_row, Journal(path, CheckpointError).lines())
    ]


def _row(line: bytes) -> Mapping[str, Any]:
    row: Mapping[str, Any] = json.loads(line)
    return row


def _step(line: bytes) -> int:
    return int(_row(line)["step"])


@contextmanager
def _unchanged(model: Any) -> Iterator[None]:
    """Put a model into evaluation mode, and restore its modes and all random states.

    TRL's `log` looks at the mode. A reward function may draw from the states of Python and NumPy.
    """
    modes = {module: module.training for module in model.modules()}
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- old code draws from it
    try:
        with seeded(model.device, 0):
            model.eval()
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
